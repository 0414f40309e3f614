"""The global part of a style: one map of all colours of a content, and a code for the rest.

It costs next to nothing, so it is always computed in float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from student_jax.nets.statistics import STATISTICS, ColourStatistics, products

TERMS = 9
"""Of a quadratic polynomial of three channels, the constant apart."""


class QuadraticMap(NamedTuple):
    """A map of all colours of each picture; see `apply_colour_map`."""

    scale: Float[Array, "b 3"]
    offset: Float[Array, "b 3"]
    mean: Float[Array, "b 3"]
    """Of the content, as its deviation: what colours are measured by before they are squared."""
    deviation: Float[Array, "b 3"]
    coefficients: Float[Array, "b 9 3"]
    """Of z_i, z_i^2 - 1 and z_i z_j, in standard units z of the content."""
    constant: Float[Array, "b 3"]


class ColourMap(nnx.Module):
    """From the colour statistics of content and style to a quadratic map of the content's colours.

    It begins as the affine one that gives the content the style's means and deviations, channel by
    channel (Reinhard et al., "Color Transfer between Images", 2001, equations 10 and 11), and a
    small network of the same statistics learns how the teacher differs from that.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.hidden1 = nnx.Linear(2 * STATISTICS, 128, rngs=rngs)
        self.hidden2 = nnx.Linear(128, 128, rngs=rngs)
        self.output = nnx.Linear(128, 3 * (TERMS + 1), kernel_init=zeros, rngs=rngs)

    def __call__(self, content: ColourStatistics, style: ColourStatistics) -> QuadraticMap:
        """The map of each row."""
        x = jnp.concatenate([*content, *style], axis=-1)
        x = self.output(nnx.gelu(self.hidden2(nnx.gelu(self.hidden1(x)))))
        polynomial = x.reshape(-1, TERMS + 1, 3)
        # A nearly flat content would otherwise be stretched to noise.
        scale = jnp.clip(style.deviation / content.deviation, 0.25, 4.0)
        return QuadraticMap(
            scale,
            offset=style.mean - scale * content.mean,
            mean=content.mean,
            deviation=content.deviation,
            coefficients=polynomial[:, :TERMS],
            constant=polynomial[:, TERMS],
        )


def apply_colour_map(
    colour_map: QuadraticMap, colours: Float[Array, "b h w 3"]
) -> Float[Array, "b h w 3"]:
    """The colours of each picture by its map.

    A scale and an offset of each channel, plus a quadratic polynomial of the colours in standard
    units, held within 4 deviations, beyond which squares would run away.
    """
    scale, offset, mean, deviation, coefficients, constant = (
        x.astype(colours.dtype) for x in colour_map
    )

    def everywhere(x: Float[Array, "b 3"]) -> Float[Array, "b 1 1 3"]:
        return x[:, None, None]

    z = jnp.clip((colours - everywhere(mean)) / everywhere(deviation), -4, 4)
    terms = jnp.concatenate([z, z**2 - 1, products(z)], axis=-1)
    polynomial = jnp.einsum("bhwt,btc->bhwc", terms, coefficients) + everywhere(constant)
    return everywhere(scale) * colours + everywhere(offset) + polynomial


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
