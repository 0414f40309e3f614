"""The mini student's tail: from content tokens back to pixels."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from student_jax.nets.convolution import ReflectConv, UpsampleConv
from student_jax.students.mini.colour import apply_map
from student_jax.students.mini.config import MiniConfig


class ResBlock(nnx.Module):
    """Pre-activation bottleneck of half the width around an identity (He et al., 2016b)."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv1 = nnx.Linear(dim, dim // 2, dtype=dtype, rngs=rngs)
        self.conv2 = ReflectConv(dim // 2, dim // 2, dtype=dtype, rngs=rngs)
        self.conv3 = nnx.Linear(dim // 2, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Transform the features."""
        y = self.conv1(nnx.leaky_relu(x))
        y = self.conv2(nnx.leaky_relu(y))
        return x + self.conv3(nnx.leaky_relu(y))


class Tail(nnx.Module):
    """Residual blocks, each followed by an upsampling that halves the channels.

    Detail need not pass through the tokens: content features join after every upsampling but the
    last, and that one gives each pixel an affine map of the content's colour there, as in Gharbi
    et al., "Deep Bilateral Learning for Real-Time Image Enhancement", SIGGRAPH 2017. Edges stay
    where they are, and their contrast follows the style.

    A code of the style scales and shifts the channels before every block, as in Perez et al.,
    "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.

    Args:
        skip_dims: channels of the content's features at strides 2, 4, ... up to half the tokens'
            stride.
    """

    def __init__(
        self, config: MiniConfig, skip_dims: tuple[int, ...], *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        num_stages = len(skip_dims) + 1
        dims = [config.tail_dim // 2**r for r in range(num_stages)]
        self.blocks = nnx.List(ResBlock(dim, dtype=dtype, rngs=rngs) for dim in dims)
        self.upsamplings = nnx.List()
        for r, (dim, out_dim) in enumerate(zip(dims, [*dims[1:], 3 * 4], strict=True)):
            # Small last weights: the first prediction is what the biases say.
            gain = 1.0 if r < num_stages - 1 else 1e-4
            init = nnx.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
            self.upsamplings.append(
                UpsampleConv(dim, out_dim, kernel_init=init, dtype=dtype, rngs=rngs)
            )
        # The identity: the first prediction is the content.
        self.upsamplings[-1].bias[...] = jnp.append(jnp.eye(3), jnp.zeros(3))
        # Zeros: the code begins without effect.
        zeros = nnx.initializers.zeros
        self.modulations = nnx.List(
            nnx.Linear(config.style_code, 2 * dim, kernel_init=zeros, dtype=dtype, rngs=rngs)
            for dim in dims
        )
        self.skips = nnx.List(
            nnx.Linear(skip_dim, dim, dtype=dtype, rngs=rngs)
            for skip_dim, dim in zip(reversed(skip_dims), dims[1:], strict=True)
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: tuple[Float[Array, "b _ _ _"], ...],
        colours: Float[Array, "b h2 w2 3"],
        code: Float[Array, "b c2"],
    ) -> Float[Array, "b h2 w2 3"]:
        """Features at the tokens' stride to pixels.

        Args:
            skips: the content's features, finest first.
            colours: the content's pixels, that every pixel's affine map acts on.
            code: of the style.
        """
        for r, (block, upsampling) in enumerate(zip(self.blocks, self.upsamplings, strict=True)):
            scale, shift = jnp.split(self.modulations[r](code)[:, None, None], 2, axis=-1)
            x = upsampling(block(x * (1 + scale) + shift))
            if r < len(self.skips):
                x = x + self.skips[r](skips[-1 - r])
        return apply_map(x, colours)
