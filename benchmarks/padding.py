"""What padding to a shared size changes in a picture, by distance from the padded border.

    python benchmarks/padding.py

A content is padded with its mirror image to the next size that many contents share, and its result
is compared with that of the same pixels unpadded: mean absolute differences in grey levels.
"effect" is how far the unpadded result lies from the content.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import tyro

from student_jax.inference.stylist import Stylist
from student_jax.weights.folder import open_student
from triplets import float_from_uint8, read_image
from triplets.bundled import SAMPLES

BANDS = ((0, 16), (16, 32), (32, 64), (64, None))
"""Pixels from the nearer of the lower and the right border."""


@dataclass(frozen=True)
class Config:
    """What to measure."""

    checkpoint: str = "mini"
    style: str = "van_gogh_harvest"
    """Sample painting; its middle of 256 x 256 px."""
    height: int = 272
    """Of the middle of every photograph, in pixels."""
    width: int = 336


def main(config: Config) -> None:
    """Measure all sample photographs, and print a table."""
    student = open_student(config.checkpoint)
    stylist = Stylist(student, style_scale=math.inf)
    style = _picture("style", config.style, 256, 256)
    print("| picture | effect | 16 px next to the border | next 16 px | next 32 px | elsewhere |")
    print("| --- | --- | --- | --- | --- | --- |")
    y, x = np.indices((config.height, config.width))
    distance = np.minimum(config.height - 1 - y, config.width - 1 - x)
    for path in sorted((SAMPLES / "content").glob("*.jpg")):
        content = _picture("content", path.stem, config.height, config.width)
        alone = np.asarray(student(jnp.array(content[None]), jnp.array(style[None]))[0]).clip(0, 1)
        difference = np.abs(stylist(content, style) - alone).mean(axis=2)
        bands = [
            difference[(distance >= low) & (distance < (high or np.inf))].mean()
            for low, high in BANDS
        ]
        cells = [np.abs(alone - content).mean(), *bands]
        print(f"| {path.stem} | {' | '.join(f'{255 * cell:.2f}' for cell in cells)} |", flush=True)


def _picture(kind: str, name: str, height: int, width: int) -> np.ndarray:
    image = float_from_uint8(read_image(SAMPLES / kind / f"{name}.jpg"))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
