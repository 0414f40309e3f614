"""How far a mean over some pictures can be trusted for others."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

DRAWS = 10_000
BLOCK = 500
"""Draws at a time, which bounds the memory."""


def interval(
    values: Float[np.ndarray, "pictures *measures"], pairs: Sequence[tuple[str, str]]
) -> Float[np.ndarray, "2 *measures"]:
    """Ends of the 95 % interval of a mean over pictures, for other contents and styles like these.

    Pictures that share a content or a style are alike, so both are drawn with replacement, and a
    picture counts as often as both of its own were (Owen, "The pigeonhole bootstrap", Annals of
    Applied Statistics, 2007). The draws are always the same.

    Args:
        values: of each picture, one or several.
        pairs: its content and its style.
    """
    rng = np.random.default_rng(0)
    drawn = []
    for column in zip(*pairs, strict=True):
        names, rows = np.unique(column, return_inverse=True)
        drawn.append((rng.multinomial(len(names), [1 / len(names)] * len(names), DRAWS), rows))
    means = []
    for start in range(0, DRAWS, BLOCK):
        contents, styles = (counts[start : start + BLOCK, rows] for counts, rows in drawn)
        weights = (contents * styles).astype(float)
        weights = weights[weights.any(axis=1)]  # a draw may miss every pair of a sparse list
        weights /= weights.sum(axis=1, keepdims=True)
        means.append(np.tensordot(weights, values, axes=1))
    return np.quantile(np.concatenate(means), (0.025, 0.975), axis=0)
