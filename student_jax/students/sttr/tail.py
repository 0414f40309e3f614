"""The tail: from content tokens back to pixels."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from student_jax.nets.convolution import ReflectConv, UpsampleConv
from student_jax.students.mini.colour import apply_map
from student_jax.students.sttr.config import STTRConfig


class ResBlock(nnx.Module):
    """Pre-activation bottleneck of half the width around an identity (He et al., 2016b).

    Args:
        reflect: beyond the border the 3 x 3 convolution sees the mirror image, not zeros.
    """

    def __init__(
        self, dim: int, batch_norm: bool, reflect: bool, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        def norm(dim):
            if not batch_norm:
                return None
            # PyTorch's momentum of 0.1 weighs the new statistics, Flax's the old ones.
            return nnx.BatchNorm(
                dim, momentum=0.9, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs
            )

        mid_dim = dim // 2
        self.norm1 = norm(dim)
        self.conv1 = nnx.Linear(dim, mid_dim, dtype=dtype, rngs=rngs)
        self.norm2 = norm(mid_dim)
        conv = ReflectConv if reflect else partial(nnx.Conv, kernel_size=(3, 3), padding=1)
        self.conv2 = conv(mid_dim, mid_dim, dtype=dtype, rngs=rngs)
        self.norm3 = norm(mid_dim)
        self.conv3 = nnx.Linear(mid_dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Transform the features; `train` takes batch norm's statistics from the batch."""

        def activate(norm, x):
            return nnx.leaky_relu(x if norm is None else norm(x, use_running_average=not train))

        y = self.conv1(activate(self.norm1, x))
        y = self.conv2(activate(self.norm2, y))
        y = self.conv3(activate(self.norm3, y))
        return x + y


class Tail(nnx.Module):
    """Residual blocks, each followed by an upsampling that halves the channels.

    With `config.content_skips` detail need not pass through the tokens: content features join after
    every upsampling but the last, and that one gives each pixel an affine map of the content's
    colour there, as in Gharbi et al., "Deep Bilateral Learning for Real-Time Image Enhancement",
    SIGGRAPH 2017. Edges stay where they are, and their contrast follows the style.

    With `config.style_code` a code of the style scales and shifts the channels before every block,
    as in Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.

    Args:
        skip_dims: channels of the content at strides 1 (its pixels), 2, 4, ... up to half the
            tokens' stride.
    """

    def __init__(
        self, config: STTRConfig, skip_dims: tuple[int, ...], *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.content_skips = config.content_skips
        num_stages = len(skip_dims)
        dims = [config.tail_dim // 2**r for r in range(num_stages)]
        dims.append(3 * 4 if config.content_skips else 3)
        self.blocks = nnx.List(
            ResBlock(
                dim, config.tail_batch_norm, reflect=config.content_skips, dtype=dtype, rngs=rngs
            )
            for dim in dims[:-1]
        )
        self.upsamplings = nnx.List()
        for r in range(num_stages):
            # Small last weights: the first prediction is what the biases say.
            gain = 1.0 if r < num_stages - 1 else 1e-4
            init = nnx.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
            self.upsamplings.append(
                UpsampleConv(dims[r], dims[r + 1], kernel_init=init, dtype=dtype, rngs=rngs)
            )
        self.modulations = nnx.List()
        if config.style_code:
            # Zeros: the code begins without effect.
            init = nnx.initializers.zeros
            for dim in dims[:-1]:
                self.modulations.append(
                    nnx.Linear(config.style_code, 2 * dim, kernel_init=init, dtype=dtype, rngs=rngs)
                )
        self.skips = nnx.List()
        if config.content_skips:
            # The identity: the first prediction is the content. Without, it is the mean colour.
            self.upsamplings[-1].bias[...] = jnp.append(jnp.eye(3), jnp.zeros(3))
            for skip_dim, dim in zip(reversed(skip_dims[1:]), dims[1:-1], strict=True):
                self.skips.append(nnx.Linear(skip_dim, dim, dtype=dtype, rngs=rngs))

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        content: tuple[Float[Array, "b _ _ _"], ...],
        code: Float[Array, "b c2"] | None,
        train: bool,
    ) -> Float[Array, "b h2 w2 3"]:
        """Features at the tokens' stride, the content as in `skip_dims`, and a code to pixels."""
        for r, (block, upsampling) in enumerate(zip(self.blocks, self.upsamplings, strict=True)):
            if code is not None:
                scale, shift = jnp.split(self.modulations[r](code)[:, None, None], 2, axis=-1)
                x = x * (1 + scale) + shift
            x = upsampling(block(x, train))
            if r < len(self.skips):
                x = x + self.skips[r](content[-1 - r])
        if not self.content_skips:
            return x
        return apply_map(x, content[0])
