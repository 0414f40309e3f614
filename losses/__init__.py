"""Losses: pure functions of arrays and feature dictionaries, in the conventions they state."""

from losses.distillation import (
    L1,
    L2,
    L3,
    PAINT,
    PERCEPTUAL,
    TEXTURE,
    DistillationWeights,
    distillation_loss,
    gram_loss,
    relative_gram_loss,
)
from losses.gram import gram_matrix
from losses.moments import moments_loss
from losses.perceptual import perceptual_loss
from losses.pixel import low_band_loss, pixel_loss
from losses.sameness import sameness_loss
from losses.spectrum import spectrum_loss
from losses.texture import texture_loss

__all__ = [
    "L1",
    "L2",
    "L3",
    "PAINT",
    "PERCEPTUAL",
    "TEXTURE",
    "DistillationWeights",
    "distillation_loss",
    "gram_loss",
    "gram_matrix",
    "low_band_loss",
    "moments_loss",
    "perceptual_loss",
    "pixel_loss",
    "relative_gram_loss",
    "sameness_loss",
    "spectrum_loss",
    "texture_loss",
]
