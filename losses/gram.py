"""Gram matrices of features: which channels are active together, wherever that is."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def gram_matrix(features: Float[ArrayLike, "b h w c"]) -> Float[Array, "b c c"]:
    """F^T F / (h w c) for every picture by itself, where F is its features as an [h w, c] matrix.

    Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, equation 3,
    divided by the number of entries of F, so that the size of the picture does not matter.
    """
    _, h, w, c = features.shape
    # Sums over all pixels need float32, whatever the features were computed in.
    return jnp.einsum("bhwc,bhwd->bcd", features, features, preferred_element_type=jnp.float32) / (
        h * w * c
    )
