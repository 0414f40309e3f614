"""What any style transfer must beat: copies of the inputs, and colour statistics alone."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32


def copy_content(
    content: Float32[np.ndarray, "h w 3"], style: Float32[np.ndarray, "h2 w2 3"]
) -> Float32[np.ndarray, "h w 3"]:
    """The content as it is: all of the content, none of the style."""
    return content


def copy_style(
    content: Float32[np.ndarray, "h w 3"], style: Float32[np.ndarray, "h w 3"]
) -> Float32[np.ndarray, "h w 3"]:
    """The style as it is: all of the style, none of the content."""
    return style


def colour_transfer(
    content: Float32[np.ndarray, "h w 3"], style: Float32[np.ndarray, "h2 w2 3"]
) -> Float32[np.ndarray, "h w 3"]:
    """The content with the style's mean colour and colour covariance, clipped to [0, 1].

    The linear Monge-Kantorovich map (Pitie and Kokaram, CVMP 2007, eq. 13): of all linear maps
    that match both statistics, the one that changes colours least.
    """
    x, y = content.reshape(-1, 3).astype(np.float64), style.reshape(-1, 3).astype(np.float64)
    # A grey picture has a singular covariance; a thousandth of a grey level makes it regular.
    a, b = (np.cov(pixels.T) + 1e-8 * np.eye(3) for pixels in (x, y))
    root = _symmetric_power(a, 0.5)
    inverse = _symmetric_power(a, -0.5)
    mapping = inverse @ _symmetric_power(root @ b @ root, 0.5) @ inverse
    moved = (x - x.mean(0)) @ mapping + y.mean(0)
    return moved.clip(0, 1).astype(np.float32).reshape(content.shape)


def _symmetric_power(matrix: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-12) ** power) @ vectors.T


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "colour statistics transferred": colour_transfer,
    "content copied": copy_content,
    "style copied": copy_style,
}
