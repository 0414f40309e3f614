"""Where to cut large pictures."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from student_jax.student import Tokens


class Span(NamedTuple):
    """A tile along one axis: it covers [start, start + length), a core and a halo on both sides.

    Only the core, [core_start, core_stop), has seen all that it depends on.
    """

    start: int
    core_start: int
    core_stop: int


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
