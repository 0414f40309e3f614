"""The global part of a style: one map of all colours of a content, and a code for the rest.

It costs next to nothing, so it is always computed in float32.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

MOMENTS = 13
"""Channels of `cell_moments`."""

STATISTICS = 12
"""Numbers of `statistics`."""

CHANNEL_PAIRS = ((0, 1), (0, 2), (1, 2))
MAP_NUMBERS = 42
"""Numbers of a `ColourMap`."""


def _products(colours: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    return jnp.stack([colours[..., i] * colours[..., j] for i, j in CHANNEL_PAIRS], axis=-1)


def cell_moments(
    images: Float[Array, "b h w 3"], mask: Bool[Array, "b h w"] | None, stride: int
) -> Float[Array, "b h2 w2 13"]:
    """Of each square of `stride` pixels: the share that is no padding, and the means over the
    square of the colours, of their squares, products and cubes, with padding as zero."""
    b, h, w, _ = images.shape
    if mask is None:
        inside = jnp.ones((b, h, w, 1), images.dtype)
    else:
        inside = 1 - mask[..., None].astype(images.dtype)
    images = inside * images
    moments = jnp.concatenate([inside, images, images**2, _products(images), images**3], axis=-1)
    cells = moments.reshape(b, h // stride, stride, w // stride, stride, MOMENTS)
    return cells.mean((2, 4))


def statistics(
    moments: Float[Array, "b n 13"], padding: Bool[Array, "b n"] | None = None
) -> Float[Array, "b 12"]:
    """Means, standard deviations, correlations and skewness of the three channels, from the moments
    of all cells."""
    if padding is not None:
        moments = jnp.where(padding[..., None], 0, moments)
    total = moments.sum(1)
    mean, square, product, cube = jnp.split(total[:, 1:] / total[:, :1], 4, axis=-1)
    # A flat picture has no deviation; the constant, a fiftieth of ImageNet's, keeps it from zero.
    deviation = jnp.sqrt(jnp.maximum(square - mean**2, 0) + 4e-4)
    correlation = (product - _products(mean)) / _products(deviation)
    skewness = (cube - 3 * mean * square + 2 * mean**3) / deviation**3
    bounded = jnp.clip(skewness, -4, 4)
    return jnp.concatenate([mean, deviation, correlation, bounded], axis=-1)


class ColourMap(nnx.Module):
    """From the colour statistics of content and style to a quadratic map of the content's colours.

    It begins as the affine one that gives the content the style's means and deviations, channel by
    channel (Reinhard et al., "Color Transfer between Images", 2001, equations 10 and 11), and a
    small network of the same statistics learns how the teacher differs from that.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.hidden1 = nnx.Linear(2 * STATISTICS, 128, rngs=rngs)
        self.hidden2 = nnx.Linear(128, 128, rngs=rngs)
        self.output = nnx.Linear(128, 30, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self, content: Float[Array, "b 12"], style: Float[Array, "b 12"]
    ) -> Float[Array, "b 42"]:
        """The numbers that `apply_colour_map` takes, from `statistics`."""
        x = jnp.concatenate([content, style], axis=-1)
        x = self.output(nnx.gelu(self.hidden2(nnx.gelu(self.hidden1(x)))))
        # A nearly flat content would otherwise be stretched to noise.
        scale = jnp.clip(style[:, 3:6] / content[:, 3:6], 0.25, 4.0)
        offset = style[:, :3] - scale * content[:, :3]
        return jnp.concatenate([scale, offset, content[:, :6], x], axis=-1)


def apply_colour_map(
    numbers: Float[Array, "b 42"], colours: Float[Array, "b h w 3"]
) -> Float[Array, "b h w 3"]:
    """The map of a picture's colours that a `ColourMap` answered with.

    A scale and an offset of each channel, plus a quadratic polynomial of the colours in standard
    units, held within 4 deviations, beyond which squares would run away.
    """
    numbers = numbers[:, None, None].astype(colours.dtype)
    scale, offset, mean, deviation = (numbers[..., 3 * i : 3 * i + 3] for i in range(4))
    z = jnp.clip((colours - mean) / deviation, -4, 4)
    terms = jnp.concatenate([z, z**2 - 1, _products(z)], axis=-1)
    coefficients = numbers[:, 0, 0, 12:39].reshape(-1, 9, 3)
    polynomial = jnp.einsum("bhwt,btc->bhwc", terms, coefficients) + numbers[..., 39:]
    return scale * colours + offset + polynomial


def feature_statistics(
    features: Float[Array, "b h w c"], mask: Bool[Array, "b h2 w2"] | None
) -> Float[Array, "b 2*c"]:
    """Means and standard deviations of the channels over what is no padding.

    Args:
        mask: of the picture the features come from, True at padding; its sides are multiples of
            theirs.
    """
    x = features.astype(jnp.float32)
    if mask is None:
        inside = jnp.ones((*x.shape[:3], 1))
    else:
        steps = (mask.shape[1] // x.shape[1], mask.shape[2] // x.shape[2])
        inside = 1.0 - mask[:, :: steps[0], :: steps[1], None]
    total = inside.sum((1, 2))
    mean = (inside * x).sum((1, 2)) / total
    variance = (inside * (x - mean[:, None, None]) ** 2).sum((1, 2)) / total
    return jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], axis=-1)


class StyleCode(nnx.Module):
    """From the statistics of a style's features, and of the colours of both pictures, to a code.

    Statistics of features are what describes a style in Huang and Belongie, "Arbitrary Style
    Transfer in Real-Time with Adaptive Instance Normalization", ICCV 2017.
    """

    def __init__(self, in_dim: int, code_dim: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(in_dim, 128, rngs=rngs)
        self.output = nnx.Linear(128, code_dim, rngs=rngs)

    def __call__(self, statistics: Float[Array, "b s"]) -> Float[Array, "b c"]:
        """The code of every row."""
        return self.output(nnx.gelu(self.hidden(statistics)))


def apply_map(
    maps: Float[Array, "b h w 12"], colours: Float[Array, "b h w 3"]
) -> Float[Array, "b h w 3"]:
    """The affine map of each pixel, a matrix row by row and an offset, of the colour there."""
    # Written out, since XLA's CPU backend does not vectorise sums over so short an axis.
    red, green, blue = (colours[..., i, None] for i in range(3))
    return (
        maps[..., 0:9:3] * red + maps[..., 1:9:3] * green + maps[..., 2:9:3] * blue + maps[..., 9:]
    )
