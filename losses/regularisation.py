"""Penalties on a picture by itself."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def total_variation_loss(images: Float[ArrayLike, "b h w c"]) -> Float[Array, ""]:
    """Mean squared difference of vertical neighbours plus that of horizontal neighbours.

    The squared form of Rudin et al., "Nonlinear Total Variation Based Noise Removal Algorithms",
    1992, as style transfer commonly uses it; pictures of at least 2 x 2 pixels.
    """
    vertical = images[:, 1:] - images[:, :-1]
    horizontal = images[:, :, 1:] - images[:, :, :-1]
    return jnp.mean(vertical**2) + jnp.mean(horizontal**2)
