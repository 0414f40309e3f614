"""Distances of pictures in how much luminance varies at each frequency and in each direction."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from losses.pixel import reduced

WINDOW = 16
"""Side in pixels of the squares whose spectra are averaged: a stroke is seldom longer in the crops
of a training."""
FLOOR = 1e-3
"""Added to powers, of which white noise has 1: finer detail than eyes see does not count."""
LUMA = (0.299, 0.587, 0.114)


def spectrum_loss(
    prediction: Float[ArrayLike, "b h w 3"],
    target: Float[ArrayLike, "b h2 w2 3"],
    reduction: int = 1,
) -> Float[Array, ""]:
    """Mean squared difference of the logarithms of two pictures' mean power spectra.

    The spectra are those of the luma in units of its deviation, in squares of `WINDOW` pixels under
    a Hann window that overlap by half (Welch, 1967), averaged over the picture. Strokes show in
    them as size, contrast and direction. All frequencies count alike, so that a fine hatching which
    a Gram distance hardly sees counts as much as a missing outline; constant light does not.

    Args:
        prediction, target: pictures in [0, 1] with sides of `WINDOW` pixels or more once reduced.
        reduction: compare the pictures reduced so many times by averaging, so that strokes may be
            longer and what is finer does not count.

    Raises:
        ValueError: for smaller pictures.
    """
    for name, x in (("prediction", prediction), ("target", target)):
        if min(x.shape[1:3]) < WINDOW * reduction:
            least = WINDOW * reduction
            raise ValueError(f"the {name} is {x.shape}; expected at least {least} pixels a side.")
    difference = _log_spectrum(prediction, reduction) - _log_spectrum(target, reduction)
    return jnp.mean(difference**2)


def _log_spectrum(images: Float[ArrayLike, "b h w 3"], reduction: int) -> Float[Array, "b f"]:
    luma = reduced(images, reduction).astype(jnp.float32) @ jnp.array(LUMA)
    luma = luma - luma.mean((1, 2), keepdims=True)
    luma = luma / jnp.sqrt((luma**2).mean((1, 2), keepdims=True) + 1e-6)

    _, h, w = luma.shape
    hop = WINDOW // 2
    luma = luma[:, : h // hop * hop, : w // hop * hop]
    # Halves of neighbouring squares side by side: half a square a cell, then two cells a square.
    b, h, w = luma.shape
    cells = luma.reshape(b, h // hop, hop, w // hop, hop).swapaxes(2, 3)
    pairs = jnp.concatenate([cells[:, :-1], cells[:, 1:]], axis=3)
    squares = jnp.concatenate([pairs[:, :, :-1], pairs[:, :, 1:]], axis=4)

    hann = np.hanning(WINDOW + 1)[:-1]
    window = np.outer(hann, hann)[None, None, None]
    window = (window / np.sqrt((window**2).sum())).astype(np.float32)
    spectrum = jnp.fft.rfft2(squares * window)
    # The gradient of an absolute value is undefined at 0.
    power = spectrum.real**2 + spectrum.imag**2
    # What the window leaks of constant light is in the first frequencies.
    mean = power.mean((1, 2)).reshape(b, -1)
    return jnp.log(mean[:, 1:] + FLOOR)
