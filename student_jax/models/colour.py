"""The global part of a style: one affine map of all colours of a content, and a code for the rest."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

MOMENTS = 7
"""Channels of `cell_moments`."""


def cell_moments(
    images: Float[Array, "b h w 3"], mask: Bool[Array, "b h w"] | None, stride: int
) -> Float[Array, "b h2 w2 7"]:
    """Of each square of `stride` pixels: the share that is no padding, and the means over the
    square of the colours and of their squares, with padding as zero."""
    b, h, w, _ = images.shape
    if mask is None:
        inside = jnp.ones((b, h, w, 1), images.dtype)
    else:
        inside = 1 - mask[..., None].astype(images.dtype)
    moments = jnp.concatenate([inside, inside * images, inside * images**2], axis=-1)
    cells = moments.reshape(b, h // stride, stride, w // stride, stride, MOMENTS)
    return cells.mean((2, 4))


def statistics(
    moments: Float[Array, "b n 7"], padding: Bool[Array, "b n"] | None = None
) -> Float[Array, "b 6"]:
    """Means and standard deviations of the three channels, from the moments of all cells."""
    if padding is not None:
        moments = jnp.where(padding[..., None], 0, moments)
    total = moments.sum(1)
    mean, square = total[:, 1:4] / total[:, :1], total[:, 4:] / total[:, :1]
    # A flat picture has no deviation; the constant, a fiftieth of ImageNet's, keeps it from zero.
    return jnp.concatenate([mean, jnp.sqrt(jnp.maximum(square - mean**2, 0) + 4e-4)], axis=-1)


class ColourMap(nnx.Module):
    """From the colour statistics of content and style to an affine map of the content's colours.

    It begins as the one that gives the content the style's means and deviations, channel by channel
    (Reinhard et al., "Color Transfer between Images", 2001, equations 10 and 11), and a small
    network of the same statistics learns how the teacher differs from that.
    """

    def __init__(self, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(12, 64, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(64, 12, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(
        self, content: Float[Array, "b 6"], style: Float[Array, "b 6"]
    ) -> Float[Array, "b 12"]:
        """A matrix [3 3], row by row, and an offset [3], from `statistics`."""
        change = self.output(nnx.gelu(self.hidden(jnp.concatenate([content, style], axis=-1))))
        # A nearly flat content would otherwise be stretched to noise.
        scale = jnp.clip(style[:, 3:] / content[:, 3:], 0.25, 4.0)
        matrix = scale[:, None] * jnp.eye(3) + change[:, :9].reshape(-1, 3, 3)
        moved = (matrix * content[:, None, :3]).sum(-1)
        offset = style[:, :3] + change[:, 9:] - moved
        return jnp.concatenate([matrix.reshape(-1, 9), offset], axis=-1)


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

    def __init__(self, in_dim: int, code_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(in_dim, 128, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(128, code_dim, dtype=dtype, rngs=rngs)

    def __call__(self, statistics: Float[Array, "b s"]) -> Float[Array, "b c"]:
        """The code of every row."""
        return self.output(nnx.gelu(self.hidden(statistics)))


def apply_map(
    maps: Float[Array, "b h w 12"], colours: Float[Array, "b h w 3"]
) -> Float[Array, "b h w 3"]:
    """The affine map of each pixel, a matrix row by row and an offset, of the colour there."""
    matrix = maps[..., :9].reshape(*maps.shape[:3], 3, 3)
    return (matrix * colours[..., None, :]).sum(-1) + maps[..., 9:]
