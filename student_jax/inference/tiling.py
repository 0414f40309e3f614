"""Where to cut large pictures, and the sides to which all pictures are brought."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

MIN_TOKENS = 4
"""Tokens that each side of a picture has at least: smaller contents are mirrored around, smaller
styles enlarged."""


class Span(NamedTuple):
    """A tile along one axis: it reads [start, start + length) and answers for [low, high)."""

    start: int
    low: int
    high: int


def bucket(side: int, stride: int) -> int:
    """The next of few sides at or above `side`: four an octave, all multiples of the stride.

    Pictures brought to such sides share compiled programs; at most a quarter of a side is added.
    """
    return max(MIN_TOKENS * stride, -(-side // _step(side, stride)) * _step(side, stride))


def nearest_bucket(side: int, stride: int) -> int:
    """The nearest of the sides of `bucket`."""
    return max(MIN_TOKENS * stride, round(side / _step(side, stride)) * _step(side, stride))


def _step(side: int, stride: int) -> int:
    return max(stride, 2 ** max(0, (side - 1).bit_length() - 3))


def mirror_pad(
    images: Float32[np.ndarray, "*b h w 3"], height: int, width: int
) -> Float32[np.ndarray, "*b h2 w2 3"]:
    """Mirror pictures at their lower and right border until they have this size."""
    h, w = images.shape[-3:-1]
    extra = (*[(0, 0)] * (images.ndim - 3), (0, height - h), (0, width - w), (0, 0))
    return np.pad(images, extra, mode="symmetric")


def spans(length: int, tile: int, halo: int) -> list[Span]:
    """Equal tiles that cover an axis: together they answer for each place once.

    A tile answers for what lies at least `halo` from its ends, and up to the ends of the axis.
    """
    if tile >= length:
        return [Span(0, 0, length)]
    result, low = [], 0
    while low < length:
        start = min(max(0, low - halo), length - tile)
        high = length if start + tile == length else start + tile - halo
        result.append(Span(start, low, high))
        low = high
    return result


def ramp(length: int, tile: int, halo: int, span: Span) -> Float32[np.ndarray, " tile"]:
    """Weights of a tile that fade linearly over its overlap with its neighbours."""
    place = np.arange(min(tile, length), dtype=np.float32) + 0.5
    weights = np.ones_like(place)
    if span.low > 0:
        weights = np.minimum(weights, place / (2 * halo))
    if span.high < length:
        weights = np.minimum(weights, place[::-1] / (2 * halo))
    return weights
