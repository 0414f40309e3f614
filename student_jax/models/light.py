"""A light backbone to train from scratch."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LightStage(nnx.Module):
    """A convolution that halves the picture, then a residual block.

    There is no normalisation: the means and deviations of the channels over a picture are what
    tells one style's colours from another's.
    """

    def __init__(self, in_dim: int, out_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def conv(in_dim, stride):
            return nnx.Conv(
                in_dim,
                out_dim,
                (3, 3),
                stride,
                padding=1,
                kernel_init=nnx.initializers.he_normal(),
                dtype=dtype,
                rngs=rngs,
            )

        self.down = conv(in_dim, stride=2)
        self.conv1 = conv(out_dim, stride=1)
        self.conv2 = conv(out_dim, stride=1)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c2"]:
        """Transform the features at half their height and width."""
        x = nnx.relu(self.down(x))
        return nnx.relu(x + self.conv2(nnx.relu(self.conv1(x))))


class LightBackbone(nnx.Module):
    """Stages that each halve the picture; `dims` are the channels of their outputs.

    Args:
        widths: `dims`.
    """

    def __init__(self, widths: tuple[int, ...], *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.dims = widths
        self.stages = nnx.List(
            LightStage(in_dim, out_dim, dtype=dtype, rngs=rngs)
            for in_dim, out_dim in zip((3, *widths), widths, strict=False)
        )

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        """ImageNet-normalised pictures to the features of every stage, finest first."""
        features = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        return tuple(features)
