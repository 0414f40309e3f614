"""Distance of pictures as a recognition network sees them."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from losses.features import Features, paired


def perceptual_loss(prediction_features: Features, target_features: Features) -> Float[Array, ""]:
    """Squared distance of the directions of two sets of features, pixel by pixel.

    At each position the channels are scaled to unit length; the squared distance of the two unit
    vectors is averaged over positions and pictures and summed over the layers (Zhang et al., "The
    Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, equation 1,
    without learnt weights). A layer of features after a ReLU adds 0 to 2.

    Unlike a pixel error it grows when texture is blurred away. Unlike a Gram term it says where the
    texture belongs.

    Args:
        prediction_features, target_features: features [b h w c] by layer name.

    Raises:
        ValueError: when there are no features, or layers or shapes differ.
    """
    loss = jnp.zeros(())
    for prediction, target in paired(prediction_features, target_features):
        difference = _unit_length(prediction) - _unit_length(target)
        loss += jnp.mean(jnp.sum(difference**2, axis=-1))
    return loss


def _unit_length(features: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h w c"]:
    features = jnp.asarray(features, jnp.float32)
    # The constant keeps the gradient finite where no channel is active.
    return features * jax.lax.rsqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-6)
