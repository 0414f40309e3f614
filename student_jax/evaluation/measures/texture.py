"""Measures that see texture apart from colour.

A Gram distance is mostly colour: transferring colour statistics alone brings most of its gain. Here
the colours are matched first, or left out, and distributions are compared as wholes. Pictures are
float [h w 3] in [0, 1]; every distance is 0 for the style itself and is relative to the style.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from scipy.ndimage import gaussian_filter

from student_jax.evaluation.measures.pixels import Picture, luma
from student_jax.nets.vgg_weights import bundled_vgg16

COVARIANCE_EPS = 1e-5
"""Added to the variances of a result before its colours are matched: colours that a grey result
lacks are not blown up. A hundredth of the variance of a picture whose values deviate by 0.03."""
GREY_MEAN, GREY_DEVIATION = 0.45, 0.225
"""Of standardised luminance: ImageNet's, which VGG was trained with."""
QUANTILES = 256
"""Of each distribution that are compared."""
PROJECTIONS = 64
PATCH_SIDES = (3, 7, 15)
HIGH_BAND_DEVIATION = 4.0
"""Deviation in pixels of the Gaussian that is taken off to leave the high band."""
STYLES_KEPT = 128


def match_colours(
    image: Picture, style: Float[np.ndarray, "h2 w2 3"], eps: float = COVARIANCE_EPS
) -> Picture:
    """Give an image the mean and the covariance of a style's colours; the result is not clipped.

    x -> (x - mean_x) (C_x + eps I)^(-1/2) C_s^(1/2) + mean_s with symmetric square roots, the
    linear colour transfer of Gatys et al., "Preserving Color in Neural Artistic Style Transfer",
    2016, section 3.2. The regularisation is of the image's covariance alone, so that a style
    matched to itself stays as it is but for colours that it hardly has.
    """
    pixels, target = (x.reshape(-1, 3).astype(np.float64) for x in (image, style))
    whiten = _matrix_power(np.cov(pixels.T, bias=True) + eps * np.eye(3), -0.5)
    colour = _matrix_power(np.cov(target.T, bias=True), 0.5)
    matched = (pixels - pixels.mean(0)) @ whiten @ colour + target.mean(0)
    return matched.reshape(image.shape).astype(np.float32)


def _matrix_power(matrix: Float[np.ndarray, "3 3"], power: float) -> Float[np.ndarray, "3 3"]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 0) ** power) @ vectors.T


def standardised_luminance(image: Picture) -> Picture:
    """The luma as a grey picture of mean 0.45 and deviation 0.225, not clipped.

    A flat picture stays flat: 1e-3 is added to its deviation.
    """
    y = luma(image)
    y = (y - y.mean()) / (y.std() + 1e-3)
    grey = (GREY_MEAN + GREY_DEVIATION * y).astype(np.float32)
    return np.repeat(grey[..., None], 3, axis=-1)


def high_band(residual: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """What a Gaussian blur of 4 pixels' deviation takes away."""
    return residual - gaussian_filter(residual, HIGH_BAND_DEVIATION)


def sameness(residuals: Sequence[Float[np.ndarray, "h w"]]) -> float:
    """Mean correlation of the residuals that different styles leave on one content.

    Args:
        residuals: of two styles or more, the high band of the luma of result minus content.

    Returns:
        Mean Pearson correlation over all pairs of styles, -1 to 1. It is near 1 where a method
        paints one grain whatever the style; a residual without variation correlates with none.
    """
    if len(residuals) < 2:
        raise ValueError(f"{len(residuals)} residual; sameness compares two styles or more")
    rows = np.stack([residual.ravel() for residual in residuals]).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    correlation = rows @ rows.T
    return float(correlation[np.triu_indices(len(rows), 1)].mean())


def quantiles(values: Float[ArrayLike, "n k"], count: int = QUANTILES) -> Float[np.ndarray, "q k"]:
    """`count` evenly spaced quantiles of each column (of n values, at (i + 0.5) / count)."""
    # NumPy sorts 20 times as fast as XLA does on a CPU, in rows rather than in columns.
    rows = np.sort(np.ascontiguousarray(np.asarray(values).T), axis=1)
    n = rows.shape[1]
    place = (np.arange(count) + 0.5) / count * n - 0.5
    low = np.clip(np.floor(place).astype(int), 0, n - 1)
    high = np.minimum(low + 1, n - 1)
    share = np.clip(place - low, 0, 1).astype(np.float32)
    return ((1 - share) * rows[:, low] + share * rows[:, high]).T


def wasserstein(a: Float[np.ndarray, "q k"], b: Float[np.ndarray, "q k"]) -> float:
    """Relative sliced 2-Wasserstein distance of two sets by the quantiles of their projections.

    sqrt(mean (a - b)^2) / sqrt(mean (b - mean of b)^2), means over quantiles and projections: the
    distance (Bonneel et al., 2015) in units of the second set's deviation.
    """
    spread = np.mean((b - b.mean(0)) ** 2)
    return float(np.sqrt(np.mean((a - b) ** 2) / (spread + 1e-12)))


class SlicedWasserstein:
    """Sliced Wasserstein distances of a picture to a style.

    `features` is the mean over relu1_1, relu2_1, relu3_1 and relu4_1 of the bundled VGG16 of the
    distance between the sets of feature vectors, of 64 fixed random directions (Heitz et al., "A
    Sliced Wasserstein Loss for Neural Texture Synthesis", CVPR 2021). `patches` is the mean over
    patches of 3, 7 and 15 px of the standardised luminance, without their means (after Elnekave and
    Weiss, "Generating Natural Images with Direct Patch Distributions Matching", ECCV 2022).
    """

    def __init__(self):
        graphdef, self._vgg = nnx.split(bundled_vgg16())
        rng = np.random.default_rng(0)
        dims = {"relu1_1": 64, "relu2_1": 128, "relu3_1": 256, "relu4_1": 512}
        directions = {name: _unit(rng.normal(size=(c, PROJECTIONS))) for name, c in dims.items()}
        filters = []
        for side in PATCH_SIDES:
            patches = rng.normal(size=(side * side, PROJECTIONS))
            patches = _unit(patches - patches.mean(0))
            filters.append(patches.reshape(side, side, 1, PROJECTIONS).astype(np.float32))

        def of_features(state, image: Float[Array, "h w 3"]) -> list[Float[Array, "_ k"]]:
            features = nnx.merge(graphdef, state)(image[None], tuple(directions))
            return [
                features[name].reshape(-1, matrix.shape[0]) @ matrix
                for name, matrix in directions.items()
            ]

        self._of_features = partial(jax.jit(of_features), self._vgg)
        self._of_patches = jax.jit(partial(_project_patches, filters))
        self._styles: dict[bytes, list[np.ndarray]] = {}

    def features(self, image: Picture, style: Float[np.ndarray, "h2 w2 3"]) -> float:
        """Distance of the VGG features; it sees colour too."""
        return self._distance("features", self._of_features, image, style)

    def patches(self, image: Picture, style: Float[np.ndarray, "h2 w2 3"]) -> float:
        """Distance of the luminance's patches; it does not see colour. Sides of 15 px or more."""
        grey, target = (standardised_luminance(x)[..., :1] for x in (image, style))
        return self._distance("patches", self._of_patches, grey, target)

    def _distance(self, kind, project, image, style) -> float:
        pixels = np.ascontiguousarray(style, np.float32)
        key = hashlib.sha256(repr((kind, pixels.shape)).encode() + pixels.tobytes()).digest()
        if key not in self._styles:
            if len(self._styles) == STYLES_KEPT:
                del self._styles[next(iter(self._styles))]
            self._styles[key] = [quantiles(x) for x in project(pixels)]
        own = [quantiles(x) for x in project(np.asarray(image, np.float32))]
        distances = [wasserstein(a, b) for a, b in zip(own, self._styles[key], strict=True)]
        return float(np.mean(distances))


def _unit(columns: Float[np.ndarray, "c k"]) -> Float[np.ndarray, "c k"]:
    return (columns / np.linalg.norm(columns, axis=0)).astype(np.float32)


def _project_patches(
    filters: list[Float[np.ndarray, "_ _ 1 k"]], grey: Float[Array, "h w 1"]
) -> list[Float[Array, "_ k"]]:
    projected = []
    for kernel in filters:
        response = jax.lax.conv_general_dilated(
            grey[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        projected.append(response.reshape(-1, kernel.shape[-1]))
    return projected
