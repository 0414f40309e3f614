"""How a style acts on features: scales and shifts, filters of its own, and noise."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from student_jax.nets.convolution import ReflectConv, reflect_sides

NOISE_SIDE = 64
"""The noise repeats after so many tokens."""


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


def noise_cells(height: int, width: int) -> Float32[Array, "1 {height} {width} 4"]:
    """White noise for a grid of tokens, 2 x 2 positions each: always the same for a position."""
    table = np.random.default_rng(0).standard_normal((NOISE_SIDE, NOISE_SIDE, 4), np.float32)
    # In operations that also a graph of any height and width has (`export.jaxpr_to_onnx`).
    down, across = ((side + NOISE_SIDE - 1) // NOISE_SIDE for side in (height, width))
    tiles = jnp.broadcast_to(table[None, :, None], (down, NOISE_SIDE, across, NOISE_SIDE, 4))
    repeated = tiles.reshape(1, down * NOISE_SIDE, across * NOISE_SIDE, 4)
    return repeated[:, :height, :width]


class Modulation(nnx.Module):
    """Scales and shifts the channels by the style's code, after Perez et al., "FiLM: Visual
    Reasoning with a General Conditioning Layer", AAAI 2018."""

    def __init__(self, code_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        self.map = nnx.Linear(code_dim, 2 * dim, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], code: Float[Array, "b d"]
    ) -> Float[Array, "b h w c"]:
        """Transform the features."""
        scale, shift = jnp.split(self.map(code)[:, None, None], 2, axis=-1)
        return x * (1 + scale) + shift


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
        b, h, w, c = x.shape
        kernels = self.map(code).reshape(b, 3, 3, 1, 1, c)
        padded = reflect_sides(x)
        for row in range(3):
            for column in range(3):
                x = x + kernels[:, row, column] * padded[:, row : row + h, column : column + w]
        return x


class NoiseGain(nnx.Module):
    """Adds one map of noise to all channels, in amounts computed from the style's code.

    Flat parts of a content hold nothing that strokes could start from. After Karras et al., "A
    Style-Based Generator Architecture for Generative Adversarial Networks", CVPR 2019, section 2.
    """

    def __init__(self, code_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        self.map = nnx.Linear(code_dim, dim, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise: Float[Array, "_ h w 1"],
        code: Float[Array, "b d"],
    ) -> Float[Array, "b h w c"]:
        """Add the noise."""
        return x + self.map(code)[:, None, None] * noise.astype(x.dtype)


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
        noise: Float[Array, "_ h w 1"],
        code: Float[Array, "b d"],
        hidden: Bool[Array, "b h w"] | None,
    ) -> Float[Array, "b h w c"]:
        """Transform the features."""
        y = self.noise(instance_norm(x, hidden), noise, code)
        y = self.conv1(nnx.leaky_relu(self.modulation1(y, code), 0.2))
        y = self.filter(y, code)
        y = self.modulation2(instance_norm(y, hidden), code)
        return x + self.conv2(nnx.leaky_relu(y, 0.2))
