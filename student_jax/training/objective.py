"""What the student minimises: one of the named losses, with the network its features come from."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from losses import L1, L2, L3, PAINT, PERCEPTUAL, TEXTURE, DistillationWeights, distillation_loss
from student_jax.nets.vgg import VGG16, VGG19
from student_jax.nets.vgg_weights import bundled_vgg16, vgg19_from_torch
from student_jax.weights.published import find_weights, read_weights
from triplets import InputError

LOSSES: dict[str, DistillationWeights] = {
    "L1": L1,
    "L2": L2,
    "L3": L3,
    "perceptual": PERCEPTUAL,
    "texture": TEXTURE,
    "paint": PAINT,
}


def terms(loss: str) -> list[str]:
    """The names of a loss's terms."""
    return [name for name, weight in dataclasses.asdict(LOSSES[loss]).items() if weight]


def weights_of(loss: str, without: Sequence[str] = ()) -> DistillationWeights:
    """The weights of a named loss, some of its terms left out.

    Raises:
        InputError: there is no such term, or none would be left.
    """
    of = terms(loss)
    if not set(without) < set(of):
        raise InputError(
            f"--without {' '.join(without)}: {loss} consists of {', '.join(of)}; expected some of "
            "them, but not all."
        )
    return dataclasses.replace(LOSSES[loss], **dict.fromkeys(without, 0.0))


FeatureNetwork = VGG16 | VGG19


class Pictures(NamedTuple):
    """What a loss looks at, all in [0, 1]."""

    prediction: Float[Array, "b h w 3"]
    target: Float[Array, "b h w 3"]
    content: Float[Array, "b h w 3"]
    style: Float[Array, "b h w 3"]
    other: Float[Array, "b h w 3"] | None = None
    """Predictions of the contents in other styles, where a term compares styles."""


LossFunction = Callable[
    [nnx.State, Pictures, Key[Array, ""]],
    tuple[Float[Array, ""], dict[str, Float[Array, ""]]],
]


def load_features(name: Literal["vgg16", "vgg19"], vgg19_weights: str) -> FeatureNetwork:
    """The network whose features a loss compares: the bundled VGG16, or published VGG19 weights.

    Args:
        vgg19_weights: see `TrainConfig`.

    Raises:
        InputError: VGG19 without usable weights.
    """
    if name == "vgg16":
        return bundled_vgg16()
    try:
        return vgg19_from_torch(read_weights(find_weights(vgg19_weights)))
    except ValueError as error:
        reason = str(error).removesuffix(".")
        raise InputError(f"--vgg19-weights {vgg19_weights}: {reason}.") from error


def make_objective(
    weights: DistillationWeights,
    features: FeatureNetwork | None,
    gram_reduction: Literal["sum", "mean"],
    features_crop: int | None = None,
) -> tuple[LossFunction, nnx.State]:
    """The loss as a pure function of (feature parameters, pictures, key).

    Returns:
        The function and the feature parameters. They travel as an argument because arrays that a
        jitted function closes over are compiled into the program.

    Args:
        features: not needed and not computed when no term of `weights` looks at features.
        features_crop: side of the square, drawn with the key, of which features are compared; by
            default whole pictures. Features cost several times what a small student does.
    """
    if not weights.need_features:

        def pixel_objective(_, pictures, key):
            prediction, target, content, style, other = pictures
            return distillation_loss(
                prediction,
                target,
                None,
                None,
                weights,
                style=style,
                content=content,
                other=other,
            )

        return pixel_objective, nnx.State({})
    graphdef, parameters = nnx.split(features)

    def objective(parameters, pictures, key):
        prediction, target, content, style, other = pictures
        network = nnx.merge(graphdef, parameters)

        def part(images):
            return images if features_crop is None else _square(images, features_crop, key)

        return distillation_loss(
            prediction,
            target,
            network(part(prediction)),
            jax.lax.stop_gradient(network(part(target))),
            weights,
            gram_reduction,
            jax.lax.stop_gradient(network(part(style))) if weights.need_style_features else None,
            style,
            content,
            other,
        )

    return objective, parameters


def _square(
    images: Float[Array, "b h w 3"], side: int, key: Key[Array, ""]
) -> Float[Array, "b h2 w2 3"]:
    """The same square of all pictures, or as much of it as they are large."""
    b, h, w, _ = images.shape
    size = (min(side, h), min(side, w))
    top, left = jax.random.randint(key, (2,), 0, jnp.array([h - size[0] + 1, w - size[1] + 1]))
    return jax.lax.dynamic_slice(images, (0, top, left, 0), (b, *size, 3))
