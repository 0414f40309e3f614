"""The distillation objectives L1, L2 and L3: weighted sums of a pixel and a Gram term."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from losses.gram import gram_matrix
from losses.pixel import pixel_loss

Features = Mapping[str, Float[Array, "_ _ _ _"]]


@dataclasses.dataclass(frozen=True)
class DistillationWeights:
    """Weights of the two terms of `distillation_loss`."""

    pixel: float
    gram: float

    def __post_init__(self):
        if min(self.pixel, self.gram) < 0 or max(self.pixel, self.gram) == 0:
            raise ValueError(f"weights are {self}; expected none below 0 and one above")


L1 = DistillationWeights(pixel=1.0, gram=0.0)
L2 = DistillationWeights(pixel=0.5, gram=0.5)
L3 = DistillationWeights(pixel=0.7, gram=0.3)


def gram_loss(
    prediction_features: Features,
    target_features: Features,
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Array, ""]:
    """Distance of two sets of features in their Gram matrices, wherever in the picture they are.

    The squared Frobenius norm of the difference of the `gram_matrix`es, averaged over the batch and
    summed over the layers.

    Args:
        prediction_features, target_features: features [b h w c] by layer name.
        reduction: "sum" as above; "mean" divides the term of a layer by c^2, for comparison with
            programs that take the mean squared error of Gram matrices.

    Raises:
        ValueError: when there are no features, or layers, shapes or the reduction do not fit.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"the Gram reduction is {reduction!r}; expected 'sum' or 'mean'")
    if not prediction_features or prediction_features.keys() != target_features.keys():
        raise ValueError(
            f"the prediction has features of {sorted(prediction_features)} and the target of "
            f"{sorted(target_features)}; expected the same layers, at least one"
        )
    loss = jnp.zeros(())
    for name, features in prediction_features.items():
        target = target_features[name]
        if features.shape != target.shape:
            raise ValueError(
                f"at {name} the prediction's features are {features.shape} and the target's "
                f"{target.shape}; expected the same shape"
            )
        difference = gram_matrix(features) - gram_matrix(target)
        term = jnp.mean(jnp.sum(difference**2, axis=(1, 2)))
        loss += term if reduction == "sum" else term / features.shape[-1] ** 2
    return loss


def distillation_loss(
    prediction: Float[Array, "b h w c"],
    target: Float[Array, "_ _ _ _"],
    prediction_features: Features | None,
    target_features: Features | None,
    weights: DistillationWeights,
    gram_reduction: Literal["sum", "mean"] = "sum",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """How far a student's prediction is from its teacher's picture.

    weights.pixel * `pixel_loss` + weights.gram * `gram_loss`: L1 is the pixel term alone, L2 weighs
    both alike, L3 is 0.7 of the first and 0.3 of the second.

    Args:
        prediction, target: pictures in [0, 1] (a prediction may leave that range).
        prediction_features, target_features: their features by layer name, usually VGG19's relu1_1,
            relu2_1, relu3_1 and relu4_1; not read, and may be None, when weights.gram is 0.
        weights: L1, L2, L3 or others.
        gram_reduction: as in `gram_loss`.

    Returns:
        The loss, and the unweighted terms "pixel" and, unless weights.gram is 0, "gram".

    Raises:
        ValueError: when shapes or layers of prediction and target differ, or features are missing.
    """
    terms = {"pixel": pixel_loss(prediction, target)}
    loss = weights.pixel * terms["pixel"]
    if weights.gram:
        terms["gram"] = gram_loss(prediction_features or {}, target_features or {}, gram_reduction)
        loss += weights.gram * terms["gram"]
    return loss, terms
