"""How large the strokes of a result are."""

from typing import Literal

from triplets import InputError

MIN_STROKE, MAX_STROKE = 0.25, 8.0
"""Limits of `stroke_size`: smaller ones cost the square of what they divide."""

STROKE_SIDE = 512
"""Shorter side in pixels of a picture whose strokes "picture" leaves as they are."""


def check_stroke_size(stroke_size: float | Literal["picture"]) -> None:
    """Refuse a size that is out of its range.

    Raises:
        InputError: says what is expected.
    """
    if stroke_size != "picture" and not MIN_STROKE <= stroke_size <= MAX_STROKE:
        raise InputError(
            f'stroke_size is {stroke_size}; expected {MIN_STROKE} to {MAX_STROKE}, or "picture".'
        )


def working_size(
    height: int, width: int, stroke_size: float | Literal["picture"]
) -> tuple[int, int]:
    """Height and width at which contents of this size are stylised."""
    if stroke_size == "picture":
        stroke_size = min(max(min(height, width) / STROKE_SIDE, MIN_STROKE), MAX_STROKE)
    return max(1, round(height / stroke_size)), max(1, round(width / stroke_size))
