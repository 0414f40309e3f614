"""A contact sheet of few contents and of very different styles, which averages cannot replace."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

from student_jax.evaluation.judge import Example
from student_jax.evaluation.measures.pixels import Picture, luma
from triplets import grid_sheet, resize_shorter_side, uint8_from_float

CONTENTS, STYLES = 6, 8
"""Of a whole sheet."""
CANDIDATES = 64
"""Styles to choose from; more are not looked at, so that the memory is bounded."""
CELL_SIDE = 256
"""Shorter side in pixels of a picture on the sheet, if it is larger."""


@dataclass
class Showcase:
    """Collects what a contact sheet needs from examples that are read one at a time."""

    _contents: dict[str, Picture] = field(default_factory=dict)
    _styles: dict[str, Picture] = field(default_factory=dict)

    def see(self, example: Example) -> None:
        """Keep the pictures of an example that has ids, as long as there is room."""
        content, style = example.ids
        if content and len(self._contents) < CONTENTS:
            self._contents.setdefault(content, example.content)
        if style and len(self._styles) < CANDIDATES:
            self._styles.setdefault(style, example.style)

    def sheet(
        self, stylise: Callable[[Picture, Picture], Picture]
    ) -> UInt8[np.ndarray, "h w 3"] | None:
        """Contents along the top, the most different styles down the left; None of one style."""
        if not self._contents or len(self._styles) < 2:
            return None
        candidates = list(self._styles.values())
        chosen = most_different([style_descriptor(style) for style in candidates], STYLES)
        styles = [candidates[i] for i in chosen]
        contents = list(self._contents.values())
        return grid_sheet(
            np.stack([_cell(content) for content in contents]),
            np.stack([_cell(style) for style in styles]),
            np.stack([[_cell(stylise(c, s)) for c in contents] for s in styles]),
        )


def style_descriptor(picture: Picture) -> Float[np.ndarray, "12"]:
    """What tells styles apart at a glance: colours, contrast at four scales, direction of strokes.

    Means and deviations of the channels; the logarithms of the luma's deviations in four bands,
    between Gaussian blurs of 0, 1, 2, 4 and 8 pixels; and how far its gradients are vertical
    rather than horizontal, and diagonal one way rather than the other, from -1 to 1.
    """
    y = luma(picture)
    blurred = [y, *(gaussian_filter(y, side) for side in (1, 2, 4, 8))]
    bands = [np.std(fine - coarse) for fine, coarse in itertools.pairwise(blurred)]
    down, right = np.gradient(blurred[1])
    energy = np.mean(down**2 + right**2) + 1e-9
    directions = [np.mean(down**2 - right**2) / energy, 2 * np.mean(down * right) / energy]
    return np.array(
        [
            *picture.mean((0, 1)),
            *picture.std((0, 1)),
            *np.log(np.array(bands) + 1e-3),
            *directions,
        ]
    )


def most_different(descriptors: Sequence[Float[np.ndarray, " d"]], count: int) -> list[int]:
    """Indices of up to `count` descriptors, each the farthest from those before it.

    Distances are in standard deviations of each number; the first is the farthest from the mean.
    """
    x = np.stack(descriptors)
    x = (x - x.mean(0)) / (x.std(0) + 1e-9)
    chosen = [int(np.argmax((x**2).sum(1)))]
    distance = ((x - x[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(count, len(x)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((x - x[chosen[-1]]) ** 2).sum(1))
    return chosen


def _cell(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    return resize_shorter_side(uint8_from_float(picture), CELL_SIDE)
