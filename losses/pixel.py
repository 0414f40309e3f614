"""Distances between pictures, pixel by pixel."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def pixel_loss(
    prediction: Float[ArrayLike, "b h w c"], target: Float[ArrayLike, "_ _ _ _"]
) -> Float[Array, ""]:
    """Mean squared error over all pixels, channels and pictures.

    For pictures in [0, 1], so that 1 is the distance of black from white.

    Raises:
        ValueError: when the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"the prediction is {prediction.shape} and the target {target.shape}; "
            "expected the same shape."
        )
    return jnp.mean((prediction - target) ** 2)
