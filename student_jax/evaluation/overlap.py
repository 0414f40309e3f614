"""Which pictures two datasets have in common, under whatever names."""

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image

from student_jax.training.data import Triplets

THUMBNAIL = 16
"""Side in pixels."""
TOLERANCE = 4
"""Grey levels by which thumbnails of one picture differ on average at most. Copies at other sizes
and qualities differ by less than 1, the two most similar of a thousand photos by 18."""


def seen_in_training(
    training: Triplets,
    train: Int[np.ndarray, " p"],
    other: Triplets,
    rows: Int[np.ndarray, " q"],
) -> list[str]:
    """Ids of the contents and styles of some triplets that are also in the training's.

    Args:
        training: what a student was trained on.
        train: its triplets, by index.
        other: triplets to measure on.
        rows: those of them, by index.
    """
    seen = []
    for column in (0, 1):
        known = np.stack(list(_thumbnails(training, train, column).values()))
        for name, thumbnail in _thumbnails(other, rows, column).items():
            if np.abs(known - thumbnail).mean(axis=(1, 2, 3)).min() <= TOLERANCE:
                seen.append(name)
    return seen


def _thumbnails(
    dataset: Triplets, indices: Int[np.ndarray, " p"], column: int
) -> dict[str, Float32[np.ndarray, "16 16 3"]]:
    """By id, the contents (column 0) or styles (1) of some triplets."""
    _, first = np.unique(dataset.pairs[indices, column], return_index=True)
    triplets = (dataset[int(index)] for index in indices[first])
    return {triplet[3 + column]: _thumbnail(triplet[column]) for triplet in triplets}


def _thumbnail(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "16 16 3"]:
    small = Image.fromarray(image).resize((THUMBNAIL,) * 2, Image.Resampling.BOX)
    return np.asarray(small, np.float32)
