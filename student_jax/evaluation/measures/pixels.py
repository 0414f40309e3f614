"""Measures of pictures that need no network: float [h w 3] in [0, 1] in, one number out."""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from student_jax.nets.colour import LUMA

Picture = Float[np.ndarray, "h w 3"]
AnyPicture = Float[np.ndarray, "_ _ 3"]


def mean_squared_error(a: Picture, b: Picture) -> float:
    """Mean squared difference of all values: 1 is the distance of black from white."""
    return float(np.mean((a.astype(np.float64) - b) ** 2))


def psnr(a: Picture, b: Picture) -> float:
    """Peak signal-to-noise ratio in dB, -10 log10 of the mean squared error; inf when equal."""
    error = mean_squared_error(a, b)
    return float(-10 * np.log10(error)) if error else float("inf")


def ssim(a: Picture, b: Picture) -> float:
    """Structural similarity (Wang et al., 2004, eq. 13), the mean over pixels and channels.

    With the paper's Gaussian window of 11 x 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03;
    places where the window leaves the picture are not counted. 1 for equal pictures.

    Raises:
        ValueError: a side below 11 pixels.
    """
    if min(a.shape[:2]) < 11:
        raise ValueError(f"pictures of {a.shape[1]} x {a.shape[0]} px; SSIM needs 11 px a side.")
    a, b = a.astype(np.float64), b.astype(np.float64)

    def local_mean(x: np.ndarray) -> np.ndarray:
        # A radius of 5 pixels makes the window's 11.
        blurred = gaussian_filter(x, (1.5, 1.5, 0), radius=(5, 5, 0))
        return blurred[5:-5, 5:-5]

    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a) - mean_a**2 + local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (variances + c2)
    return float(similarity.mean())


def luma(image: Picture) -> Float[np.ndarray, "h w"]:
    """Lightness of each pixel as television encodes it: 0 black, 1 white."""
    return image @ LUMA


def brightness(image: Picture) -> float:
    """Mean luma: 0 black, 1 white."""
    return float(luma(image).mean())


def saturation(image: Picture) -> float:
    """Mean saturation of the HSV model, (max - min) / max of a pixel's channels; 0 for greys."""
    high, low = image.max(axis=-1), image.min(axis=-1)
    return float(np.divide(high - low, high, out=np.zeros_like(high), where=high > 0).mean())


def sharpness(image: Picture) -> float:
    """Mean magnitude of the luma's gradient, in grey levels (0 to 1) per pixel.

    By differences to the next pixel below and to the right. Blur lowers it, noise raises it: read
    it beside the teacher's.
    """
    y = luma(image)
    down, right = y[1:, :-1] - y[:-1, :-1], y[:-1, 1:] - y[:-1, :-1]
    return float(np.hypot(down, right).mean())


def histogram_distance(a: AnyPicture, b: AnyPicture) -> float:
    """How far the values of each channel must move to turn one histogram into the other.

    The earth mover's distance (Rubner et al., 2000) of the channels' histograms of 256 levels, in
    grey levels (0 to 1), the mean over the channels. Sizes may differ.
    """
    distances = []
    for x, y in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), strict=True):
        counts = (
            np.bincount(np.rint(255 * c).astype(int).ravel(), minlength=256) / c.size
            for c in (x, y)
        )
        shares = np.subtract(*(np.cumsum(c) for c in counts))
        # In one dimension the distance is the area between the cumulative histograms.
        distances.append(np.abs(shares).sum() / 255)
    return float(np.mean(distances))
