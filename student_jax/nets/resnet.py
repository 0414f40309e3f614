"""ResNet-50 up to a given layer (He et al., 2016; torchvision's v1.5), with frozen batch norm."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

BLOCKS = (3, 4, 6, 3)


class Frozen(nnx.BatchStat):
    """A constant of a pre-trained network: kept with the statistics, never trained."""


class FrozenBatchNorm(nnx.Module):
    """Batch norm whose statistics and affine map are constants; the identity until loaded."""

    def __init__(self, dim: int):
        self.scale = Frozen(jnp.ones(dim))
        self.bias = Frozen(jnp.zeros(dim))
        self.mean = Frozen(jnp.zeros(dim))
        self.var = Frozen(jnp.ones(dim))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalise every channel; the two constants of the map are formed in float32."""
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + 1e-5)
        shift = self.bias[...] - self.mean[...] * scale
        return x * scale.astype(x.dtype) + shift.astype(x.dtype)


class Stem(nnx.Module):
    """7 x 7 convolution with stride 2, batch norm and ReLU."""

    def __init__(self, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            3, 64, (7, 7), strides=2, padding=3, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.norm = FrozenBatchNorm(64)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h/2 w/2 64"]:
        """Normalised pictures to 64 channels at half their size."""
        return nnx.relu(self.norm(self.conv(images)))


class Bottleneck(nnx.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions around a shortcut."""

    def __init__(self, in_dim: int, out_dim: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        mid_dim = out_dim // 4
        self.stride = stride
        # A 1 x 1 convolution is a linear map of the channels, and much faster as one on a CPU.
        self.conv1 = nnx.Linear(in_dim, mid_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm1 = FrozenBatchNorm(mid_dim)
        self.conv2 = nnx.Conv(
            mid_dim, mid_dim, (3, 3), stride, padding=1, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.norm2 = FrozenBatchNorm(mid_dim)
        self.conv3 = nnx.Linear(mid_dim, out_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm3 = FrozenBatchNorm(out_dim)
        self.has_projection = in_dim != out_dim
        if self.has_projection:
            self.projection = nnx.Linear(in_dim, out_dim, use_bias=False, dtype=dtype, rngs=rngs)
            self.projection_norm = FrozenBatchNorm(out_dim)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Transform the features; height and width are divided by the stride."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.has_projection:
            x = self.projection_norm(self.projection(x[:, :: self.stride, :: self.stride]))
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    """The first layers of a ResNet-50, as a backbone.

    `stages[0]` is the stem and `stages[i]` is torchvision's `layer{i}`, a list of bottlenecks;
    `dims` are the channels of their outputs, at strides 2, 4, 8, ...

    Args:
        widths: output channels of layer1, layer2, ...; their number is the number of layers.
    """

    def __init__(self, widths: tuple[int, ...], *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.dims = (64, *widths)
        self.stages = nnx.List([Stem(dtype=dtype, rngs=rngs)])
        in_dim = 64
        for i, width in enumerate(widths):
            layer = nnx.List()
            for j in range(BLOCKS[i]):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(Bottleneck(in_dim, width, stride, dtype=dtype, rngs=rngs))
                in_dim = width
            self.stages.append(layer)

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        """ImageNet-normalised pictures to the features of every stage, finest first."""
        stem, *layers = self.stages
        features = [stem(images)]
        x = nnx.max_pool(features[0], (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for layer in layers:
            for block in layer:
                x = block(x)
            features.append(x)
        return tuple(features)
