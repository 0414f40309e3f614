"""How much texture there is, of each kind and place by place."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from losses.features import Features, paired

WINDOW = 8
"""Side, in positions of a layer, of the squares in which deviations are taken."""


def texture_loss(prediction_features: Features, target_features: Features) -> Float[Array, ""]:
    """Squared distance of the deviations of features in small windows, relative to the target.

    For each layer, sum (s - t)^2 / sum t^2, where s and t are the standard deviations of every
    channel in every window of the prediction and of the target; summed over the layers. A
    prediction without texture adds 1 for a layer. Deviations over the whole picture are the style
    of Huang and Belongie, "Arbitrary Style Transfer in Real-Time with Adaptive Instance
    Normalization", ICCV 2017, equation 13; windows say where it belongs.

    Where texture cannot be foretold, pixel errors and distances of features at a position are least
    for an average of all that is likely, which is smooth. This one asks for as much of it as the
    target has there, whatever its phase.

    Args:
        prediction_features, target_features: features [b h w c] by layer name, at least one of
            them `WINDOW` high and wide; smaller ones do not count.

    Raises:
        ValueError: when there are no features, or layers or shapes differ, or all are too small.
    """
    terms = []
    for prediction, target in paired(prediction_features, target_features):
        if min(target.shape[1:3]) < WINDOW:
            continue
        expected = _deviations(target)
        difference = _deviations(prediction) - expected
        terms.append(jnp.sum(difference**2) / (jnp.sum(expected**2) + 1e-6))
    if not terms:
        raise ValueError(f"all features are smaller than {WINDOW} x {WINDOW}: use larger pictures.")
    return sum(terms)


def _deviations(features: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Standard deviations in whole windows; what is left at the far borders does not count."""
    b, h, w, c = features.shape
    rows, columns = h // WINDOW, w // WINDOW
    x = jnp.asarray(features, jnp.float32)[:, : rows * WINDOW, : columns * WINDOW]
    x = x.reshape(b, rows, WINDOW, columns, WINDOW, c)
    variance = jnp.mean((x - x.mean((2, 4), keepdims=True)) ** 2, axis=(2, 4))
    # The constant keeps the gradient finite where a channel is flat.
    return jnp.sqrt(variance + 1e-6)
