"""Statistics of the colours and of the features of pictures."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

STATISTICS = 12
"""Numbers of a `ColourStatistics`."""

CHANNEL_PAIRS = ((0, 1), (0, 2), (1, 2))


class ColourStatistics(NamedTuple):
    """How the colours of each picture are distributed."""

    mean: Float[Array, "b 3"]
    deviation: Float[Array, "b 3"]
    correlation: Float[Array, "b 3"]
    """Of `CHANNEL_PAIRS`."""
    skewness: Float[Array, "b 3"]


def products(colours: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """Products of `CHANNEL_PAIRS`."""
    return jnp.stack([colours[..., i] * colours[..., j] for i, j in CHANNEL_PAIRS], axis=-1)


def colour_moments(images: Float[Array, "b h w 3"], stride: int) -> Float[Array, "b h2 w2 12"]:
    """Means of the colours, of their squares, products and cubes, over each square of `stride`
    pixels."""
    b, h, w, _ = images.shape
    moments = jnp.concatenate([images, images**2, products(images), images**3], axis=-1)
    return moments.reshape(b, h // stride, stride, w // stride, stride, -1).mean((2, 4))


def colour_statistics(
    moments: Float[Array, "b h w 12"], hidden: Bool[Array, "b h w"] | None = None
) -> ColourStatistics:
    """Statistics of whole pictures from the moments of their squares, but for the hidden ones."""
    if hidden is None:
        total = moments.mean((1, 2))
    else:
        seen = ~hidden[..., None]
        total = moments.mean((1, 2), where=seen)
    mean, square, product, cube = jnp.split(total, 4, axis=-1)
    # A flat picture has no deviation; the constant, a fiftieth of ImageNet's, keeps it from zero.
    deviation = jnp.sqrt(jnp.maximum(square - mean**2, 0) + 4e-4)
    correlation = (product - products(mean)) / products(deviation)
    skewness = (cube - 3 * mean * square + 2 * mean**3) / deviation**3
    return ColourStatistics(mean, deviation, correlation, jnp.clip(skewness, -4, 4))


def feature_statistics(features: Float[Array, "b h w c"]) -> Float[Array, "b 2*c"]:
    """Means and standard deviations of the channels."""
    x = features.astype(jnp.float32)
    mean = x.mean((1, 2))
    variance = ((x - mean[:, None, None]) ** 2).mean((1, 2))
    return jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], axis=-1)
