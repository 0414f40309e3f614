"""Features of a prediction and of its target, layer by layer."""

from collections.abc import Iterator, Mapping

from jax.typing import ArrayLike
from jaxtyping import Float

Features = Mapping[str, Float[ArrayLike, "_ _ _ _"]]
"""[b h w c] by layer name."""

Pair = tuple[Float[ArrayLike, "b h w c"], Float[ArrayLike, "b h w c"]]


def paired(prediction: Features, target: Features) -> Iterator[Pair]:
    """The features of both at every layer.

    Raises:
        ValueError: when there are no features, or layers or shapes differ.
    """
    if not prediction or prediction.keys() != target.keys():
        raise ValueError(
            f"the prediction has features of {sorted(prediction)} and the target of "
            f"{sorted(target)}; expected the same layers, at least one."
        )
    for name, features in prediction.items():
        if features.shape != target[name].shape:
            raise ValueError(
                f"at {name} the prediction's features are {features.shape} and the target's "
                f"{target[name].shape}; expected the same shape."
            )
        yield features, target[name]
