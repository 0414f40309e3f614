"""How alike the marks are that different styles leave on one content."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from losses.spectrum import LUMA

BLUR_DEVIATION = 4.0
"""Of the Gaussian, in pixels, whose blur holds what is no mark; as in the measure of sameness."""


def sameness_loss(
    prediction: Float[ArrayLike, "b h w 3"],
    other: Float[ArrayLike, "_ _ _ _"],
    content: Float[ArrayLike, "_ _ _ _"],
) -> Float[Array, ""]:
    """Squared correlation of the marks that two styles leave on one content, mean over pictures.

    Marks are the high band of the luma of picture minus content: what a Gaussian blur of
    `BLUR_DEVIATION` pixels takes away. Two styles that share a grain have 1; styles whose marks
    have nothing to do with one another have 0, and so has a picture without marks. Diversity was
    asked for in a loss by Li et al., "Diversified Texture Synthesis with Feed-Forward Networks",
    CVPR 2017; this one is the measure `sameness`, squared.

    Args:
        prediction, other: the content in two styles, in [0, 1].
        content: the pictures that both were made from.

    Raises:
        ValueError: when the shapes differ.
    """
    if not prediction.shape == other.shape == content.shape:
        raise ValueError(
            f"the pictures are {prediction.shape}, {other.shape} and {content.shape}; expected the "
            "same shape three times."
        )
    a, b = (_high_band((x - content) @ jnp.array(LUMA)) for x in (prediction, other))
    a, b = (x - x.mean((1, 2), keepdims=True) for x in (a, b))
    covariance, variances = (a * b).mean((1, 2)), (a**2).mean((1, 2)) * (b**2).mean((1, 2))
    # Marks of a hundredth of the range of brightness have a variance of 1e-4; weaker ones count
    # less.
    return jnp.mean(covariance**2 / (variances + 1e-10))


def _high_band(luma: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """What a Gaussian blur takes away; pictures are mirrored at their borders."""
    reach = int(3 * BLUR_DEVIATION)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * BLUR_DEVIATION**2))
    kernel = jnp.asarray(weights / weights.sum(), luma.dtype)
    padded = jnp.pad(luma, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")[..., None]
    dimensions = ("NHWC", "HWIO", "NHWC")
    blurred = padded
    for shape in ((-1, 1, 1, 1), (1, -1, 1, 1)):
        blurred = jax.lax.conv_general_dilated(
            blurred, kernel.reshape(shape), (1, 1), "VALID", dimension_numbers=dimensions
        )
    return luma - blurred[..., 0]
