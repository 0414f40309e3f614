"""Weights by recipe: parameters that any program can make again from their names and shapes."""

import json
import math
import zlib
from collections.abc import Mapping

import numpy as np


def recipe_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of a PyTorch state_dict, seeded by its name and scaled by its role."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    n = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_mean"):
        return 0.1 * n
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(n)
    if len(shape) >= 2:
        return n * np.float32(1 / math.sqrt(math.prod(shape[1:])))
    return 0.02 * n if name.endswith("bias") else 1 + 0.1 * n


def recipe_weights(fixture: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All arrays listed in a fixture's `keys`, a JSON of names and shapes."""
    shapes = json.loads(str(fixture["keys"]))
    return {name: recipe_weight(name, tuple(shape)) for name, shape in shapes.items()}
