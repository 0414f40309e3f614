"""The colour measure of StyleID's protocol: the histogram loss of HistoGAN."""

import numpy as np
from jaxtyping import Float

from student_jax.evaluation.measures.pixels import AnyPicture

SIDE = 256
"""Larger pictures are sampled down to squares of this side, as StyleID's authors do."""
BINS = np.linspace(-3, 3, 64, dtype=np.float32)
WIDTH = 0.02
EPS = 1e-6


def histogram_loss(a: AnyPicture, b: AnyPicture) -> float:
    """Hellinger distance of the RGB-uv histograms: 0 for equal colours, 1 for disjoint ones.

    The colour matching loss of Afifi et al., "HistoGAN", CVPR 2021, with the settings that Chung et
    al. ("Style Injection in Diffusion", CVPR 2024) measure with. Sizes may differ.
    """
    difference = np.sqrt(rgb_uv_histogram(a)) - np.sqrt(rgb_uv_histogram(b))
    return float(np.sqrt((difference.astype(np.float64) ** 2).sum() / 2))


def rgb_uv_histogram(image: AnyPicture) -> Float[np.ndarray, "3 64 64"]:
    """Soft histogram of log-chrominances, weighted by intensity; its entries add up to 1.

    For each channel: the logarithms of its ratios to the first and to the second of the others,
    counted by an inverse-quadratic kernel, as in the HistoGAN paper.
    """
    if max(image.shape[:2]) > SIDE:
        image = _sample(image, SIDE)
    pixels = image.reshape(-1, 3).astype(np.float32)
    intensity = np.sqrt((pixels**2).sum(axis=1, keepdims=True) + EPS)
    logs = np.log(pixels + np.float32(EPS))
    histogram = np.empty((3, 64, 64), np.float32)
    for channel, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        u, v = (
            1 / (1 + ((logs[:, channel] - logs[:, other])[:, None] - BINS) ** 2 / WIDTH**2)
            for other in (first, second)
        )
        histogram[channel] = (intensity * u).T @ v
    return histogram / (histogram.sum() + EPS)


def _sample(image: AnyPicture, side: int) -> Float[np.ndarray, "side side 3"]:
    """Bilinear samples at the centres of a coarser grid, without any blur before."""
    for axis in (0, 1):
        length = image.shape[axis]
        place = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
        below = np.floor(place).astype(int)
        share = (place - below).reshape([-1 if i == axis else 1 for i in range(3)])
        image = (1 - share) * image.take(below, axis) + share * image.take(
            np.minimum(below + 1, length - 1), axis
        )
    return image
