"""Which rows a mixture takes from each of several sets of rows."""

import numpy as np
from jaxtyping import Float32

GOLDEN_RATIO = (5**0.5 - 1) / 2


def places(count: int) -> Float32[np.ndarray, " n"]:
    """A place in [0, 1) for each row: the fractions of multiples of the golden ratio.

    A row is taken from the set in whose share of [0, 1) its place falls. Any run of rows is spread
    evenly over [0, 1), so that the shares hold in every part of the sets.
    """
    return (np.arange(count) * GOLDEN_RATIO % 1).astype(np.float32)
