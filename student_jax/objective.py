"""What the student minimises: one of the named losses, with the network its features come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float
from safetensors.numpy import load_file

from losses import L1, L2, L3, DistillationWeights, distillation_loss
from student_jax.convert import bundled_vgg16, vgg19_from_torch
from student_jax.models import VGG16, VGG19
from triplets import InputError

LOSSES: dict[str, DistillationWeights] = {"L1": L1, "L2": L2, "L3": L3}

FeatureNetwork = VGG16 | VGG19
LossFunction = Callable[
    [nnx.State, Float[Array, "b h w 3"], Float[Array, "b h w 3"]],
    tuple[Float[Array, ""], dict[str, Float[Array, ""]]],
]


def load_features(name: Literal["vgg16", "vgg19"], vgg19_weights: Path | None) -> FeatureNetwork:
    """The feature network of the Gram term: the bundled VGG16, or VGG19 from a safetensors file.

    Raises:
        InputError: VGG19 without a readable file of its weights.
    """
    if name == "vgg16":
        return bundled_vgg16()
    if vgg19_weights is None:
        raise InputError(
            "--features vgg19 needs --vgg19-weights FILE: model.safetensors of "
            "https://huggingface.co/timm/vgg19.tv_in1k, or use the bundled --features vgg16."
        )
    try:
        return vgg19_from_torch(load_file(vgg19_weights))
    except (OSError, ValueError) as error:
        raise InputError(f"--vgg19-weights {vgg19_weights}: {error}") from error


def make_objective(
    weights: DistillationWeights,
    features: FeatureNetwork | None,
    gram_reduction: Literal["sum", "mean"],
) -> tuple[LossFunction, nnx.State]:
    """The loss as a pure function of (feature parameters, prediction, target), and the parameters.

    The parameters travel as an argument because arrays that a jitted function closes over are
    compiled into the program. Without a Gram term no features are needed or computed.
    """
    if not weights.gram:
        return (
            lambda _, prediction, target: distillation_loss(prediction, target, None, None, weights)
        ), nnx.State({})
    graphdef, parameters = nnx.split(features)

    def loss(parameters, prediction, target):
        network = nnx.merge(graphdef, parameters)
        return distillation_loss(
            prediction,
            target,
            network(prediction),
            jax.lax.stop_gradient(network(target)),
            weights,
            gram_reduction,
        )

    return loss, parameters
