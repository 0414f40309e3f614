"""Using a student: pictures of any size in, stylised pictures of the same size out."""

from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32
from PIL import Image

from student_jax.checkpoint import load_student
from student_jax.models import STTR
from triplets import InputError

MIN_TOKENS = 4
"""Tokens that each side of a picture has at least: smaller contents are mirrored around, smaller
styles enlarged."""


class Stylist:
    """Stylises pictures with one student."""

    def __init__(self, model: STTR):
        self._graphdef, self._state = nnx.split(model)
        self._config = model.config
        self._predict = jax.jit(partial(_predict, self._graphdef))

    @classmethod
    def from_checkpoint(
        cls, workdir: str | Path, step: int | Literal["best", "latest"] = "best"
    ) -> "Stylist":
        """The student of a training run.

        Raises:
            InputError: not a workdir, or no such checkpoint.
        """
        return cls(load_student(Path(workdir), step))

    def __call__(
        self,
        content: Float[np.ndarray | jax.Array, "*b h w 3"],
        style: Float[np.ndarray | jax.Array, "*s h2 w2 3"],
        strength: float = 1.0,
    ) -> Float32[np.ndarray, "*b h w 3"]:
        """Stylise RGB pictures in [0, 1] of any size.

        Args:
            content: a picture, or a batch of one size.
            style: a picture for all contents, or a batch with one for each.
            strength: 0 returns the content, 1 the student's prediction, between them their blend.

        Raises:
            InputError: pixels or a strength outside [0, 1], or batches that do not fit together.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"strength is {strength}; expected 0 to 1.")
        content, style = (_checked(n, x) for n, x in (("content", content), ("style", style)))
        contents, styles = (x.reshape(-1, *x.shape[-3:]) for x in (content, style))
        if len(styles) not in (1, len(contents)):
            raise InputError(
                f"{len(styles)} styles for {len(contents)} contents; expected 1 or as many."
            )
        h, w = contents.shape[1:3]
        padded = np.stack([pad_to_multiple(x, self._config.content_stride) for x in contents])
        fitted = np.stack([resize_to_multiple(x, self._config.style_stride) for x in styles])
        fitted = np.broadcast_to(fitted, (len(contents), *fitted.shape[1:]))
        prediction = np.asarray(self._predict(self._state, padded, fitted))[:, :h, :w]
        return content + np.float32(strength) * (prediction.reshape(content.shape) - content)


def _checked(name: str, images: np.ndarray | jax.Array) -> Float32[np.ndarray, "*b h w 3"]:
    images = np.asarray(images, np.float32)
    if not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"the {name} has values from {images.min()} to {images.max()}; expected [0, 1]."
        )
    return images


def _predict(graphdef, state, content, style):
    return jnp.clip(nnx.merge(graphdef, state)(content, style), 0, 1)


def pad_to_multiple(
    image: Float32[np.ndarray, "h w 3"], multiple: int
) -> Float32[np.ndarray, "h2 w2 3"]:
    """Mirror a picture at its right and lower border until its sides are multiples."""
    sides = [multiple * max(MIN_TOKENS, -(-side // multiple)) for side in image.shape[:2]]
    extra = [(0, target - side) for target, side in zip(sides, image.shape[:2], strict=True)]
    return np.pad(image, [*extra, (0, 0)], mode="symmetric")


def resize_to_multiple(
    image: Float32[np.ndarray, "h w 3"], multiple: int
) -> Float32[np.ndarray, "h2 w2 3"]:
    """Resize a picture to the nearest sides that are multiples, so that all of it is seen."""
    h, w = (multiple * max(MIN_TOKENS, round(side / multiple)) for side in image.shape[:2])
    if (h, w) == image.shape[:2]:
        return image
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., c])).resize(
            (w, h), Image.Resampling.LANCZOS
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)
