"""The tail: from content tokens back to pixels."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from student_jax.config import STTRConfig
from student_jax.models.convolution import ReflectConv, UpsampleConv


class ResBlock(nnx.Module):
    """Pre-activation bottleneck of half the width around an identity (He et al., 2016b)."""

    def __init__(self, dim: int, batch_norm: bool, *, dtype: DTypeLike, rngs: nnx.Rngs):
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
        self.conv2 = nnx.Conv(mid_dim, mid_dim, (3, 3), padding=1, dtype=dtype, rngs=rngs)
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

    With `config.content_skips` the content itself joins after every upsampling, so that its detail
    need not pass through the tokens, and one more convolution makes the pixels.

    Args:
        skip_dims: channels of the content at strides 1 (its pixels), 2, 4, ... up to half the
            tokens' stride.
    """

    def __init__(
        self, config: STTRConfig, skip_dims: tuple[int, ...], *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        num_stages = len(skip_dims)
        dims = [config.tail_dim // 2**r for r in range(num_stages + 1)]
        if not config.content_skips:
            dims[-1] = 3
        # Small last weights: the first prediction is the mean that the model adds, mid-grey.
        small = nnx.initializers.variance_scaling(1e-2, "fan_in", "truncated_normal")
        self.blocks = nnx.List()
        self.upsamplings = nnx.List()
        self.skips = nnx.List()
        for r in range(num_stages):
            dim, out_dim = dims[r : r + 2]
            init = nnx.initializers.lecun_normal() if out_dim > 3 else small
            self.blocks.append(ResBlock(dim, config.tail_batch_norm, dtype=dtype, rngs=rngs))
            self.upsamplings.append(
                UpsampleConv(dim, out_dim, kernel_init=init, dtype=dtype, rngs=rngs)
            )
            if config.content_skips:
                self.skips.append(ReflectConv(skip_dims[-1 - r], out_dim, dtype=dtype, rngs=rngs))
        if config.content_skips:
            self.output = ReflectConv(dims[-1], 3, kernel_init=small, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: tuple[Float[Array, "b _ _ _"], ...],
        train: bool,
    ) -> Float[Array, "b h2 w2 3"]:
        """Features at the tokens' stride, and the content as in `skip_dims`, to pixels."""
        for r, (block, upsampling) in enumerate(zip(self.blocks, self.upsamplings, strict=True)):
            x = upsampling(block(x, train))
            if self.skips:
                x = x + self.skips[r](skips[-1 - r])
        return self.output(nnx.leaky_relu(x)) if self.skips else x
