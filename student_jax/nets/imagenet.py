"""The normalisation that ImageNet networks expect of their input."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

# Of the channels of [b h w 3], in four axes so that nothing is broadcast unasked.
MEAN = np.array([[[[0.485, 0.456, 0.406]]]], np.float32)
STD = np.array([[[[0.229, 0.224, 0.225]]]], np.float32)


@jax.jit  # in name: see `convolution.reflect_sides`
def normalise(images: Float[ArrayLike, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Pixels in [0, 1] to zero mean and unit deviation over ImageNet."""
    return (jnp.asarray(images) - MEAN) / STD


def denormalise(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """The inverse of `normalise`."""
    return images * STD + MEAN
