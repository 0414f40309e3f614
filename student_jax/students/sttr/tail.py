"""STTR's tail: from content tokens back to pixels."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from student_jax.nets.convolution import UpsampleConv
from student_jax.students.sttr.config import STTRConfig


class ResBlock(nnx.Module):
    """Pre-activation bottleneck of half the width around an identity (He et al., 2016b)."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def norm(dim):
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
            return nnx.leaky_relu(norm(x, use_running_average=not train))

        y = self.conv1(activate(self.norm1, x))
        y = self.conv2(activate(self.norm2, y))
        y = self.conv3(activate(self.norm3, y))
        return x + y


class Tail(nnx.Module):
    """Residual blocks, each followed by an upsampling that halves the channels; the last gives
    ImageNet-normalised colours."""

    def __init__(self, config: STTRConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        num_stages = config.content_stride.bit_length() - 1
        dims = [config.tail_dim // 2**r for r in range(num_stages)]
        self.blocks = nnx.List(ResBlock(dim, dtype=dtype, rngs=rngs) for dim in dims)
        self.upsamplings = nnx.List()
        for dim, out_dim in zip(dims, [*dims[1:], 3], strict=True):
            # Small last weights: the first prediction is what the biases say, the mean colour.
            gain = 1e-4 if out_dim == 3 else 1.0
            init = nnx.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
            self.upsamplings.append(
                UpsampleConv(dim, out_dim, kernel_init=init, dtype=dtype, rngs=rngs)
            )

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 3"]:
        """Features at the tokens' stride to pixels."""
        for block, upsampling in zip(self.blocks, self.upsamplings, strict=True):
            x = upsampling(block(x, train))
        return x
