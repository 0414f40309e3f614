"""Sine position encoding of a grid of tokens."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float


def position_encoding(padding: Bool[Array, "b h w"], dim: int) -> Float[Array, "b h w {dim}"]:
    """Sines and cosines of each cell's normalised row and column.

    Rows and columns are counted from 1, over the cells that are not padding, and scaled to end at
    2 pi, so the encoding of a picture's corner does not depend on its size. Half of the channels
    encode y, the other half x; channel i of a half is a sine (even i) or cosine (odd i) at
    frequency 10000^(-2 floor(i / 2) / (dim / 2)) (Carion et al., DETR, 2020, after Vaswani et al.,
    2017, section 3.5).

    Args:
        padding: True at cells that pad a smaller picture; shape and batch of the result.
        dim: number of channels, a multiple of 4.
    """
    frequencies = 10000.0 ** (-jnp.arange(0, dim // 2, 2) / (dim // 2))
    valid = ~padding

    def encode(axis):
        count = jnp.cumsum(valid, axis=axis, dtype=jnp.float32)
        last = jax.lax.slice_in_dim(count, count.shape[axis] - 1, None, axis=axis)
        position = 2 * jnp.pi * count / (last + 1e-6)
        angle = position[..., None] * frequencies
        return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*valid.shape, -1)

    return jnp.concatenate([encode(axis=1), encode(axis=2)], axis=-1)


def cells(mask: Bool[ArrayLike, "b h w"], stride: int) -> Bool[Array, "b h2 w2"]:
    """The cells of a grid that are padding, from a mask of pixels (True = padding).

    A cell is padding when its first pixel is: nearest-neighbour resizing.
    """
    return jnp.asarray(mask)[:, ::stride, ::stride]


def grid_positions(
    grid: Float[Array, "b h w c"], hidden: Bool[Array, "b h w"] | None = None
) -> Float[Array, "_ h w c"]:
    """The position encodings of a grid of tokens, of one row for all where nothing is hidden."""
    if hidden is None:
        hidden = jnp.zeros((1, *grid.shape[1:3]), bool)
    return position_encoding(hidden, grid.shape[-1]).astype(grid.dtype)
