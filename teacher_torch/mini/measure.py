"""How well a latent diffusion model keeps pictures: its autoencoder, and inversion and back.

    python -m teacher_torch.mini.measure --photos FOLDER --paintings FOLDER --out FOLDER

What a teacher makes of pairs is measured on a dump of them: `style-distil evaluate --data DUMP`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float, UInt8
from torch import Tensor

from teacher_torch.devices import open_device
from teacher_torch.latent_diffusion import Components, load_components
from teacher_torch.pixels import to_model_range, to_uint8
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.teacher import StyleID
from triplets import InputError, crop_and_resize, read_image, test_files
from triplets.atomic import atomic_write, make_folder


@dataclass(frozen=True)
class MeasureConfig:
    """Measure a model on the test split of two folders, which its pre-training does not see."""

    photos: Path
    """Folder of photos."""
    paintings: Path
    """Folder of paintings."""
    out: Path
    """Folder for measures.json and measures.md."""
    model: str = "mini"
    """Weights: "mini", a diffusers folder or a hub id."""
    steps: int = 50
    """DDIM steps of the inversion and of the way back."""
    autoencoder_limit: int = 200
    """Photos, and paintings, at most for the autoencoder's figures."""
    inversion_limit: int = 8
    """Photos, and paintings, at most for the inversion's figures."""
    device: str | None = None
    """By default the best that is there."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the networks."""

    def __post_init__(self):
        for name in ("autoencoder_limit", "inversion_limit"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        reconstruction(self.steps)  # refuses a number of steps that the method cannot do


def reconstruction(steps: int) -> StyleIDConfig:
    """StyleID without style: sampling undoes the inversion."""
    return StyleIDConfig(steps, adain_init=False, inject_attention=False)


def psnr(
    a: UInt8[np.ndarray, "b h w 3"], b: UInt8[np.ndarray, "b h w 3"]
) -> Float[np.ndarray, " b"]:
    """Peak signal-to-noise ratio of each picture in dB."""
    squared = np.square(a.astype(np.float64) - b)
    return -10 * np.log10(squared.mean((1, 2, 3)) / 255**2)


def load_test_pictures(folder: Path, size: int, limit: int) -> UInt8[np.ndarray, "b size size 3"]:
    """The first `limit` held-out pictures of a folder, in an order that is as good as random.

    Raises:
        InputError: there are none, or one that cannot be read.
    """
    files = test_files(folder)[:limit]
    return np.stack([crop_and_resize(read_image(file), size) for file in files])


def measure(components: Components, config: MeasureConfig) -> dict[str, float]:
    """Mean PSNR of pictures that were encoded and decoded, and inverted and sampled, by name."""
    teacher = StyleID(*components, reconstruction(config.steps))

    def encode_and_decode(images: Tensor) -> Tensor:
        return teacher.decode(teacher.encode(images))

    def invert_and_sample(images: Tensor) -> Tensor:
        inversion = teacher.invert(images)
        return teacher.stylise(inversion, inversion)

    figures = {}
    for name, way, limit in (
        ("autoencoder", encode_and_decode, config.autoencoder_limit),
        ("inversion and back", invert_and_sample, config.inversion_limit),
    ):
        for kind, folder in (("photos", config.photos), ("paintings", config.paintings)):
            images = load_test_pictures(folder, components.native_size, limit)
            result = psnr(images, in_chunks(way, images))
            figures[f"{name} PSNR, {kind} (dB)"] = float(result.mean())
    return figures


def in_chunks(
    function: Callable[[Tensor], Tensor], images: UInt8[np.ndarray, "b h w 3"]
) -> UInt8[np.ndarray, "b h w 3"]:
    """`function` on at most 8 pictures at a time, float [b 3 h w] in [-1, 1]."""
    chunks = np.array_split(images, -(-len(images) // 8))
    return np.concatenate([to_uint8(function(to_model_range(chunk))) for chunk in chunks])


def measure_model(config: MeasureConfig) -> None:
    """Print the figures of a model and write them to `config.out`.

    Raises:
        InputError: a model, a device or a folder that cannot be used.
    """
    components = load_components(
        config.model, open_device(config.device), getattr(torch, config.dtype)
    )
    figures = measure(components, config)
    rows = [f"| {name} | {value:.1f} |" for name, value in figures.items()]
    table = "\n".join(["| measure | value |", "| --- | ---: |", *rows])
    make_folder(config.out)
    for name, text in (("measures.json", json.dumps(figures, indent=2)), ("measures.md", table)):
        with atomic_write(config.out / name) as file:
            file.write(f"{text}\n".encode())
    print(table)


if __name__ == "__main__":
    try:
        measure_model(tyro.cli(MeasureConfig))
    except InputError as error:
        sys.exit(f"error: {error}")
