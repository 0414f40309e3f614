"""How a style acts on features: scales and shifts, filters of its own, and noise."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from student_jax.nets.attention import attention
from student_jax.nets.convolution import ReflectConv, reflect_sides

NOISE_SIDES = (61, 67)
"""The noise is the sum of two tables that repeat after so many tokens, and so repeats as a whole
only after 4,087. With one table the same strokes came again in a flat sky."""

NOISE_MAPS = 4
"""Maps of noise, of which every style takes a mixture of its own: with one map alone the strokes of
all styles would begin in the same places."""

KEY_WIDTH = 64
"""Channels by which cells of content and style are compared."""


@jax.jit  # in name: see `reflect_sides`
def instance_norm(
    x: Float[Array, "b h w c"], hidden: Bool[Array, "b h w"] | None = None
) -> Float[Array, "b h w c"]:
    """Each channel of each picture with mean 0 and deviation 1, hidden positions not counted.

    Ulyanov et al., "Improved Texture Networks", CVPR 2017, equation 6, computed in float32.
    """
    y = x.astype(jnp.float32)
    seen = None if hidden is None else ~hidden[..., None]
    mean = y.mean((1, 2), where=seen, keepdims=True)
    variance = ((y - mean) ** 2).mean((1, 2), where=seen, keepdims=True)
    return ((y - mean) * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)


@jax.jit
def instance_norm_of_cells(
    x: Float[Array, "b h w c"], hidden: Bool[Array, "b h w"] | None = None
) -> Float[Array, "b h w c"]:
    """`instance_norm` of the positions that are in cells (`to_cells`)."""
    b, h, w, c = x.shape
    positions = x.reshape(b, h, 4 * w, c // 4)
    hidden = None if hidden is None else hidden.repeat(4, axis=2)
    return instance_norm(positions, hidden).reshape(x.shape)


def noise_cells(height: int, width: int) -> Float32[Array, "1 {height} {width} c"]:
    """White noise for a grid of tokens, 2 x 2 positions of `NOISE_MAPS` each: always the same for
    a position."""
    rng = np.random.default_rng(0)
    channels = 4 * NOISE_MAPS
    noise = jnp.zeros((1, height, width, channels), jnp.float32)
    for side in NOISE_SIDES:
        table = rng.standard_normal((side, side, channels), np.float32) / len(NOISE_SIDES) ** 0.5
        # In operations that also a graph of any height and width has (`export.jaxpr_to_onnx`).
        down, across = ((n + side - 1) // side for n in (height, width))
        tiles = jnp.broadcast_to(
            jnp.asarray(table, jnp.float32)[None, :, None], (down, side, across, side, channels)
        )
        repeated = tiles.reshape(1, down * side, across * side, channels)
        noise = noise + repeated[:, :height, :width]
    return noise


class Modulation(nnx.Module):
    """Scales and shifts the channels, of every position in a cell alike, by the style's code, after
    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018."""

    def __init__(self, code_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        self.map = nnx.Linear(code_dim, 2 * dim, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], code: Float[Array, "b d"]
    ) -> Float[Array, "b h w c"]:
        """Transform the features."""
        scale, shift = (_for_all_positions(y, x) for y in self.scale_and_shift(code))
        return x * scale + shift

    def scale_and_shift(
        self, code: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b 1 1 c"], Float[Array, "b 1 1 c"]]:
        """What the features are multiplied by, and what is added then."""
        scale, shift = jnp.split(self.map(code)[:, None, None], 2, axis=-1)
        return 1 + scale, shift


def _for_all_positions(
    y: Float[Array, "b 1 1 c"], x: Float[Array, "b h w c2"]
) -> Float[Array, "b 1 1 c2"]:
    """One number for each channel, as often as there are positions in a cell of x."""
    return jnp.concatenate([y] * (x.shape[-1] // y.shape[-1]), axis=-1)


class StyleFilter(nnx.Module):
    """Adds to every channel what a 3 x 3 filter, computed from the style's code, makes of it.

    Filters from the style are how Wang et al., "MicroAST: Towards Super-Fast Ultra-Resolution
    Arbitrary Style Transfer", AAAI 2023, section 3.3, transfer strokes.
    """

    def __init__(self, code_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(0.02, "fan_in", "truncated_normal")
        self.map = nnx.Linear(code_dim, 9 * dim, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], code: Float[Array, "b d"]
    ) -> Float[Array, "b h w c"]:
        """Transform the features, reflected at the borders."""
        return style_filter(x, self.map(code))


@jax.jit  # in name: see `reflect_sides`
def style_filter(
    x: Float[Array, "b h w c"], kernels: Float[Array, "b 9*c"]
) -> Float[Array, "b h w c"]:
    """What `StyleFilter` computes."""
    b, h, w, c = x.shape
    kernels = kernels.reshape(b, 3, 3, 1, 1, c)
    padded = reflect_sides(x)
    for row in range(3):
        for column in range(3):
            x = x + kernels[:, row, column] * padded[:, row : row + h, column : column + w]
    return x


class NoiseGain(nnx.Module):
    """Mixes maps of noise for all channels, in amounts computed from the style's code.

    Flat parts of a content hold nothing that strokes could start from. After Karras et al., "A
    Style-Based Generator Architecture for Generative Adversarial Networks", CVPR 2019, section 2.
    """

    def __init__(self, code_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        self.map = nnx.Linear(code_dim, NOISE_MAPS * dim, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        noise: Float[Array, "_ h w k"],
        code: Float[Array, "b d"],
        scale: Float[Array, "b 1 1 c"],
    ) -> Float[Array, "b h w c"]:
        """The noise to add, each channel times its scale."""
        (b, _, _, c), (_, h, w, _) = scale.shape, noise.shape
        gains = self.map(code).reshape(b, NOISE_MAPS, c) * scale[:, 0]
        noise = jnp.broadcast_to(noise.astype(gains.dtype), (b, h, w, NOISE_MAPS))
        return (noise.reshape(b, h * w, NOISE_MAPS) @ gains).reshape(b, h, w, c)


class ModulatedBlock(nnx.Module):
    """A residual block whose two convolutions see normalised features, modulated by the style."""

    def __init__(self, dim: int, code_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.modulation1 = Modulation(code_dim, dim, **options)
        self.modulation2 = Modulation(code_dim, dim, **options)
        self.noise = NoiseGain(code_dim, dim, **options)
        self.filter = StyleFilter(code_dim, dim, **options)
        init = nnx.initializers.he_normal()
        self.conv1 = ReflectConv(dim, dim, kernel_init=init, **options)
        self.conv2 = ReflectConv(dim, dim, **options)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise: Float[Array, "_ h w k"],
        code: Float[Array, "b d"],
        hidden: Bool[Array, "b h w"] | None,
    ) -> Float[Array, "b h w c"]:
        """Transform the features."""
        # The noise is modulated too: scaled with its gains, which are few.
        scale, shift = self.modulation1.scale_and_shift(code)
        y = instance_norm(x, hidden) * scale + shift + self.noise(noise, code, scale)
        y = self.conv1(nnx.leaky_relu(y, 0.2))
        y = self.filter(y, code)
        y = self.modulation2(instance_norm(y, hidden), code)
        return x + self.conv2(nnx.leaky_relu(y, 0.2))


class StyleSwap(nnx.Module):
    """Mixes features of the style into those of the content, where the two look alike.

    softmax(cosine of queries and keys times a sharpness) values, for each cell of 2 x 2 positions:
    strokes of the painting itself rather than what a code remembers of them. After Chen and
    Schmidt, "Fast Patch-based Style Transfer of Arbitrary Style", 2016, section 3.1, with soft
    choices. The features of both come normalised from one encoder, so they need no projection but
    the one that compares them.
    """

    def __init__(self, code_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.compare = nnx.Linear(4 * dim, KEY_WIDTH, use_bias=False, dtype=dtype, rngs=rngs)
        self.sharpness = nnx.Param(jnp.full((), 3.0))
        self.score_bytes: float | None = None  # see `attention`
        init = nnx.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        self.gate = nnx.Linear(code_dim, dim, kernel_init=init, dtype=dtype, rngs=rngs)

    def keys(self, cells: Float[Array, "b n c"]) -> Float[Array, "b n k"]:
        """What is compared: unit vectors."""
        x = self.compare(cells).astype(jnp.float32)
        return (x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-6)).astype(cells.dtype)

    def swapped(
        self,
        cells: Float[Array, "b h w c"],
        keys: Float[Array, "b n k"],
        values: Float[Array, "b n c"],
    ) -> Float[Array, "b h w c"]:
        """For every cell of the content, the mean of the style's that are most like it."""
        b, h, w, c = cells.shape
        query = self.keys(cells.reshape(b, h * w, c))
        # `attention` divides by the root of the width.
        query = query * (jnp.exp(self.sharpness[...]) * KEY_WIDTH**0.5).astype(query.dtype)
        query, key, value = (x[:, :, None] for x in (query, keys, values))  # one head
        mixed = attention(query, key, value, score_bytes=self.score_bytes)
        return mixed.reshape(b, h, w, c)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        swapped: Float[Array, "b h w c"],
        code: Float[Array, "b d"],
    ) -> Float[Array, "b h w c"]:
        """Features of the content and of the style, each channel in shares computed from the
        style's code."""
        share = _for_all_positions(nnx.sigmoid(self.gate(code))[:, None, None], x)
        return x + share * (swapped - x)
