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


LOW_BAND = 8
"""Side in pixels of the squares that `low_band_loss` averages."""


def low_band_loss(
    prediction: Float[ArrayLike, "b h w c"], target: Float[ArrayLike, "_ _ _ _"]
) -> Float[Array, ""]:
    """Mean squared error of the pictures reduced `LOW_BAND` times by averaging.

    It places colours and large shapes. A pixel error also asks for every stroke at its place, which
    no one can foretell, and is least without strokes.

    Args:
        prediction, target: pictures in [0, 1] of at least `LOW_BAND` pixels a side; what is left
            at the far borders does not count.

    Raises:
        ValueError: when the shapes differ, or the pictures are smaller.
    """
    if min(prediction.shape[1:3]) < LOW_BAND:
        raise ValueError(
            f"the prediction is {prediction.shape}; expected at least {LOW_BAND} pixels a side."
        )
    return pixel_loss(reduced(prediction, LOW_BAND), reduced(target, LOW_BAND))


def reduced(images: Float[ArrayLike, "b h w c"], times: int) -> Float[Array, "b h2 w2 c"]:
    """Means of squares of `times` pixels a side; what is left at the far borders does not count."""
    b, h, w, c = images.shape
    rows, columns = h // times, w // times
    x = jnp.asarray(images)[:, : rows * times, : columns * times]
    return x.reshape(b, rows, times, columns, times, c).mean((2, 4))
