"""Where to cut large pictures, and the sides to which all pictures are brought."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from student_jax.student import Tokens

MIN_TOKENS = 4
"""Tokens that each side of a picture has at least: smaller contents are mirrored around, smaller
styles enlarged."""


class Span(NamedTuple):
    """A tile along one axis: it covers [start, start + length), a core and a halo on both sides.

    Only the core, [core_start, core_stop), has seen all that it depends on.
    """

    start: int
    core_start: int
    core_stop: int


def bucket(side: int, stride: int) -> int:
    """The next of few sides at or above `side`: four per octave, all multiples of the stride.

    Pictures brought to such sides share compiled programs; at most a quarter of a side is added.
    """
    return max(MIN_TOKENS * stride, -(-side // _step(side, stride)) * _step(side, stride))


def nearest_bucket(side: int, stride: int) -> int:
    """The nearest of the sides of `bucket`."""
    return max(MIN_TOKENS * stride, round(side / _step(side, stride)) * _step(side, stride))


def _step(side: int, stride: int) -> int:
    # A multiple of the stride, also of one that is not a power of two.
    return stride * max(1, 2 ** max(0, (side - 1).bit_length() - 3) // stride)


def mirror_pad(
    images: Float32[np.ndarray, "*b h w 3"], height: int, width: int
) -> Float32[np.ndarray, "*b h2 w2 3"]:
    """Mirror pictures at their lower and right border until they have this size."""
    h, w = images.shape[-3:-1]
    extra = (*[(0, 0)] * (images.ndim - 3), (0, height - h), (0, width - w), (0, 0))
    return np.pad(images, extra, mode="symmetric")


def spans(length: int, tile: int, halo: int) -> list[Span]:
    """Equal tiles along an axis whose cores cover it once.

    The core of a tile lies at least `halo` from its ends, and reaches up to the ends of the axis.
    """
    if tile >= length:
        return [Span(0, 0, length)]
    result, core_start = [], 0
    while core_start < length:
        start = min(max(0, core_start - halo), length - tile)
        core_stop = length if start + tile == length else start + tile - halo
        result.append(Span(start, core_start, core_stop))
        core_start = core_stop
    return result


def ramp(length: int, tile: int, halo: int, span: Span) -> Float32[np.ndarray, " tile"]:
    """Weights of a tile that fade linearly over its overlap with its neighbours."""
    index = np.arange(min(tile, length), dtype=np.float32) + 0.5
    weights = np.ones_like(index)
    if span.core_start > 0:
        weights = np.minimum(weights, index / (2 * halo))
    if span.core_stop < length:
        weights = np.minimum(weights, index[::-1] / (2 * halo))
    return weights


def tile_slices(y: Span, x: Span, tile: tuple[int, int], stride: int = 1) -> tuple[slice, slice]:
    """Rows and columns of the whole that a tile covers.

    Args:
        tile: height and width of tiles in cells.
        stride: pixels per cell, for slices of pixels.
    """
    rows, columns = (
        slice(span.start * stride, (span.start + length) * stride)
        for span, length in zip((y, x), tile, strict=True)
    )
    return rows, columns


def core_slices(
    y: Span, x: Span, stride: int = 1
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of a tile's core: of the whole, and of the tile itself.

    Args:
        stride: pixels per cell, for slices of pixels.
    """

    def rows(span: Span, origin: int) -> slice:
        return slice((span.core_start - origin) * stride, (span.core_stop - origin) * stride)

    return (rows(y, 0), rows(x, 0)), (rows(y, y.start), rows(x, x.start))


def cut(tokens: Tokens, rows: slice, columns: slice) -> Tokens:
    """A part of every grid; what is of the whole picture stays."""
    return jax.tree.map(lambda x: x[:, rows, columns] if is_grid(x) else x, tokens)


def is_grid(leaf: Any) -> bool:
    """Whether a leaf of `student.Tokens` is a grid, [b h w c]."""
    return leaf.ndim == 4
