"""The sides to which pictures are brought."""

import numpy as np
from jaxtyping import Float32

MIN_TOKENS = 4
"""Tokens that each side of a picture has at least: smaller contents are mirrored around, smaller
styles enlarged."""


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


def fitted_style(height: int, width: int, *, scale: float, stride: int) -> tuple[int, int]:
    """Height and width to which a style is resized.

    Args:
        scale: larger styles are reduced to this shorter side in pixels.
        stride: pixels that a token of the style spans.
    """
    shrink = min(1.0, scale / min(height, width))
    h, w = (max(1, round(side * shrink)) for side in (height, width))
    # A frieze is squeezed: beyond four to one, nearly all of its tokens would be of no use.
    h, w = min(h, 4 * w), min(w, 4 * h)
    return nearest_bucket(h, stride), nearest_bucket(w, stride)


def mirror_pad(
    images: Float32[np.ndarray, "*b h w 3"], height: int, width: int
) -> Float32[np.ndarray, "*b h2 w2 3"]:
    """Mirror pictures at their lower and right border until they have this size."""
    h, w = images.shape[-3:-1]
    if (h, w) == (height, width):
        return images
    extra = (*[(0, 0)] * (images.ndim - 3), (0, height - h), (0, width - w), (0, 0))
    return np.pad(images, extra, mode="symmetric")
