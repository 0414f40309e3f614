"""Validation in training: how far the student is from the teacher on other triplets."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from student_jax.training.checkpoint import BEST_METRIC
from student_jax.training.sharding import shard_whole_batch
from student_jax.training.train_state import TrainState
from triplets import InputError, contact_sheet, uint8_from_float

SAMPLES = 6
"""Rows of the picture that a validation draws."""


def validate(
    predict_fn: Callable[[TrainState, Array, Array], Array],
    state: TrainState,
    triplets: Sequence[dict],
    *,
    batch_size: int,
    multiple: int,
    mesh: Mesh,
) -> tuple[dict[str, float], UInt8[np.ndarray, "h w 3"]]:
    """Mean squared error to the teacher, and a picture of the first few triplets.

    The picture has a row for each: content, style, teacher, student.

    Args:
        triplets: elements of a `TripletSource`; whole pictures are compared.
        batch_size: triplets at once, over all devices.
        multiple: sides are cut to multiples of it.

    Raises:
        InputError: pictures of several sizes.
    """

    def whole(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        h, w = (side - side % multiple for side in image.shape[:2])
        return image[:h, :w]

    errors, rows = [], []
    batch_size = -(-min(batch_size, len(triplets)) // mesh.size) * mesh.size
    for start in range(0, len(triplets), batch_size):
        count = min(batch_size, len(triplets) - start)
        # Filled up with the last triplet, so that each batch has one shape.
        chunk = [triplets[start + min(i, count - 1)] for i in range(batch_size)]
        try:
            content, style, target = (
                np.stack([whole(triplet[name]) for triplet in chunk])
                for name in ("content", "style", "stylised")
            )
        except ValueError as error:
            records = f"{chunk[0]['record']} to {chunk[-1]['record']}"
            raise InputError(
                f"the validation triplets {records} differ in size; expected one size."
            ) from error
        placed = shard_whole_batch({"content": content, "style": style}, mesh)
        prediction = np.asarray(predict_fn(state, placed["content"], placed["style"]))[:count]
        difference = prediction - target[:count] / np.float32(255)
        errors.extend(np.mean(difference**2, axis=(1, 2, 3)).tolist())
        for i in range(min(count, SAMPLES - len(rows))):
            rows.append([content[i], style[i], target[i], uint8_from_float(prediction[i])])
    mse = float(np.mean(errors))
    return {BEST_METRIC: mse, "psnr": -10 * math.log10(mse)}, contact_sheet(
        rows, ("content", "style", "teacher", "student")
    )
