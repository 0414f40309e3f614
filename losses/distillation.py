"""The distillation objectives: weighted sums of a pixel term and of terms of features."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from losses.features import Features, paired
from losses.gram import gram_matrix
from losses.moments import moments_loss
from losses.perceptual import perceptual_loss
from losses.pixel import LOW_BAND, low_band_loss, pixel_loss
from losses.sameness import sameness_loss
from losses.spectrum import WINDOW, spectrum_loss
from losses.texture import texture_loss

_OF_PIXELS = ("pixel", "low_band", "spectrum", "style_spectrum", "sameness")


STYLE_REDUCTION = 2
"""The spectrum of a style is compared after so many pixels a side became one: strokes count, the
grain of a photograph of a painting does not."""


@dataclasses.dataclass(frozen=True)
class DistillationWeights:
    """Weights of the terms of `distillation_loss`."""

    pixel: float
    gram: float
    perceptual: float = 0.0
    texture: float = 0.0
    relative_gram: float = 0.0
    style_gram: float = 0.0
    low_band: float = 0.0
    structure: float = 0.0
    style_moments: float = 0.0
    style_spectrum: float = 0.0
    spectrum: float = 0.0
    sameness: float = 0.0

    def __post_init__(self):
        weights = dataclasses.astuple(self)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"weights are {self}; expected none below 0 and one above.")

    @property
    def need_features(self) -> bool:
        """Whether a term looks at features."""
        fields = dataclasses.asdict(self).items()
        return any(weight for name, weight in fields if name not in _OF_PIXELS)

    @property
    def need_style_features(self) -> bool:
        """Whether a term looks at the style's features."""
        return bool(self.style_gram or self.style_moments)

    @property
    def smallest_side(self) -> int:
        """Side in pixels that pictures need for the terms that reduce them or cut them up."""
        if self.style_spectrum:
            return STYLE_REDUCTION * WINDOW
        return WINDOW if self.spectrum else LOW_BAND if self.low_band else 1


L1 = DistillationWeights(pixel=1.0, gram=0.0)
L2 = DistillationWeights(pixel=0.5, gram=0.5)
L3 = DistillationWeights(pixel=0.7, gram=0.3)
PERCEPTUAL = DistillationWeights(pixel=1.0, gram=0.0, perceptual=0.01)
"""A mean squared error alone rewards blur; here both terms are of like size at the end of a
training, when the pixel term is about 0.01 and the perceptual one about 1."""
TEXTURE = DistillationWeights(pixel=1.0, gram=0.0, texture=0.1, relative_gram=0.1, style_gram=0.06)
"""The pixel term places colours and edges, the texture term asks for the amount of texture there,
and the Gram terms for what it is made of in the teacher's picture and in the style: what cannot be
foretold of the one is, on average, between content and style."""
PAINT = DistillationWeights(
    pixel=0.0,
    gram=0.0,
    low_band=30.0,
    structure=0.3,
    texture=0.4,
    spectrum=0.15,
    style_gram=0.5,
    style_moments=1.0,
    style_spectrum=0.3,
    sameness=1.0,
)
"""Pixels are compared only where they can be foretold, in the low band, and the deepest features
keep the shapes. Everything finer is a matter of distributions. Those of the style hold strokes that
no small teacher draws as well; those of the teacher say how much of them, and where."""


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
        raise ValueError(f"the Gram reduction is {reduction!r}; expected 'sum' or 'mean'.")
    loss = jnp.zeros(())
    for prediction, target in paired(prediction_features, target_features):
        difference = gram_matrix(prediction) - gram_matrix(target)
        term = jnp.mean(jnp.sum(difference**2, axis=(1, 2)))
        loss += term if reduction == "sum" else term / prediction.shape[-1] ** 2
    return loss


def relative_gram_loss(
    prediction_features: Features, target_features: Features
) -> Float[Array, ""]:
    """Distance of two sets of features in their Gram matrices, relative to the target's.

    sum ||G(prediction) - G(target)||^2 / sum ||G(target)||^2 over the batch, summed over the
    layers: all layers count alike, where in `gram_loss` the deeper ones decide. The sums are taken
    before the quotient, because quotients of single pictures are least for too weak a texture.

    Args and errors as there.
    """
    loss = jnp.zeros(())
    for prediction, target in paired(prediction_features, target_features):
        expected = gram_matrix(target)
        difference = gram_matrix(prediction) - expected
        loss += jnp.sum(difference**2) / (jnp.sum(expected**2) + 1e-6)
    return loss


def distillation_loss(
    prediction: Float[ArrayLike, "b h w c"],
    target: Float[ArrayLike, "_ _ _ _"],
    prediction_features: Features | None,
    target_features: Features | None,
    weights: DistillationWeights,
    gram_reduction: Literal["sum", "mean"] = "sum",
    style_features: Features | None = None,
    style: Float[ArrayLike, "b h2 w2 c"] | None = None,
    content: Float[ArrayLike, "b h w c"] | None = None,
    other: Float[ArrayLike, "b h w c"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """How far a student's prediction is from its teacher's picture.

    A weighted sum of the terms below. L1 is the pixel term alone, L2 weighs pixel and Gram
    term alike, L3 is 0.7 of the first and 0.3 of the second; PERCEPTUAL has the pixel and the
    perceptual term, TEXTURE the pixel term and three of features, PAINT no pixel term.

    | term | what |
    | --- | --- |
    | pixel, low_band | `pixel_loss`, `low_band_loss` |
    | gram, perceptual, texture | `gram_loss`, `perceptual_loss`, `texture_loss` to the target |
    | structure | `perceptual_loss` to the target of the two deepest layers of features |
    | relative_gram, style_gram | `relative_gram_loss` to the target, to the style |
    | style_moments | `moments_loss` to the style |
    | spectrum, style_spectrum | `spectrum_loss` to the target, to the style of both reduced twice |
    | sameness | `sameness_loss` of the prediction and the same content in another style |

    Args:
        prediction, target: pictures in [0, 1] (a prediction may leave that range).
        prediction_features, target_features: their features by layer name, usually VGG19's relu1_1,
            relu2_1, relu3_1 and relu4_1; not read, and may be None, unless weights.need_features.
        weights: L1, L2, L3, PERCEPTUAL, TEXTURE, PAINT or others.
        gram_reduction: as in `gram_loss`.
        style_features: those of the style pictures; not read unless weights.need_style_features.
        style: the style pictures, in [0, 1]; not read unless weights.style_spectrum.
        content, other: the content pictures, and predictions of them in other styles; not read
            unless weights.sameness.

    Returns:
        The loss, and the unweighted terms by the names in `DistillationWeights`; but for "pixel",
        those of weight 0 are absent.

    Raises:
        ValueError: when shapes or layers of prediction and target differ, or features are missing.
    """
    sides = (prediction_features or {}, target_features or {})
    terms = {"pixel": pixel_loss(prediction, target)}
    if weights.gram:
        terms["gram"] = gram_loss(*sides, gram_reduction)
    if weights.perceptual:
        terms["perceptual"] = perceptual_loss(*sides)
    if weights.texture:
        terms["texture"] = texture_loss(*sides)
    if weights.relative_gram:
        terms["relative_gram"] = relative_gram_loss(*sides)
    if weights.style_gram:
        terms["style_gram"] = relative_gram_loss(sides[0], style_features or {})
    if weights.low_band:
        terms["low_band"] = low_band_loss(prediction, target)
    if weights.structure:
        terms["structure"] = perceptual_loss(*map(_deepest, sides))
    if weights.style_moments:
        terms["style_moments"] = moments_loss(sides[0], style_features or {})
    if weights.style_spectrum:
        if style is None:
            raise ValueError("weights.style_spectrum needs the style pictures.")
        terms["style_spectrum"] = spectrum_loss(prediction, style, STYLE_REDUCTION)
    if weights.spectrum:
        terms["spectrum"] = spectrum_loss(prediction, target)
    if weights.sameness:
        if content is None or other is None:
            raise ValueError("weights.sameness needs the contents, and them in other styles.")
        terms["sameness"] = sameness_loss(prediction, other, content)
    return sum(getattr(weights, name) * term for name, term in terms.items()), terms


def _deepest(features: Features) -> Features:
    """The two deepest layers, which see shapes rather than strokes."""
    return dict(list(features.items())[-2:])
