"""A light backbone to train from scratch."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from student_jax.nets.convolution import LinearOfCells, ReflectConv


class LightStage(nnx.Module):
    """A linear map of every 2 x 2 patch, which halves the picture, then a residual block.

    There is no normalisation: styles differ in the means and deviations of the channels over a
    picture.
    """

    def __init__(self, in_dim: int, out_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal()
        self.merge = LinearOfCells(in_dim, out_dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.conv1, self.conv2 = (
            ReflectConv(out_dim, out_dim, kernel_init=init, dtype=dtype, rngs=rngs)
            for _ in range(2)
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c2"]:
        """Transform the features at half their height and width."""
        x = nnx.relu(self.merge(x))
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
