"""Figures and a contact sheet of a teacher on held-out pictures."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from teacher_torch.components import Components, load_components
from teacher_torch.config import StyleIDConfig
from teacher_torch.dump import best_device, to_model_range, to_uint8
from teacher_torch.perceptual import LPIPS, VGG16, relative_gram_distance
from teacher_torch.pretrain import held_out_files
from teacher_torch.styleid import StyleID
from triplets import crop_and_resize, grid_sheet, read_image, write_image
from triplets.atomic import atomic_write


@dataclass(frozen=True)
class MeasureConfig:
    """Measure a teacher on the held-out tenth of two folders, as its pre-training splits them."""

    photos: Path
    """Folder of photos."""
    paintings: Path
    """Folder of paintings."""
    out: Path
    """Folder for measures.json and contact_sheet.png."""
    teacher: str = "mini"
    """"mini", a diffusers folder or a hub id."""
    steps: int = 50
    """DDIM steps of inversion and stylisation."""
    preset: Literal["paper", "port"] = "paper"
    """Which of StyleID's official programs to follow."""
    pairs_side: int = 8
    """Stylise this many photos with this many paintings."""
    autoencoder_limit: int = 200
    """Photos, and paintings, at most for the autoencoder's figures."""
    device: str | None = None
    """By default the best that is there."""


def psnr(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def unit_range(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """uint8 pixels -> float32 in [0, 1], channels first."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def load_held_out(folder: Path, size: int, limit: int) -> UInt8[np.ndarray, "b size size 3"]:
    """The first `limit` held-out pictures of a folder, in an order that is as good as random."""
    files = held_out_files(folder)[:limit]
    return np.stack([crop_and_resize(read_image(file), size) for file in files])


@torch.inference_mode()
def measure(components: Components, config: MeasureConfig) -> dict[str, float]:
    """Figures by name; writes the contact sheet of all pairs to `config.out`."""
    size = components.native_size
    photos, paintings = (
        load_held_out(folder, size, config.autoencoder_limit)
        for folder in (config.photos, config.paintings)
    )
    vgg, lpips = VGG16(), LPIPS()
    preset = StyleIDConfig.paper() if config.preset == "paper" else StyleIDConfig.port()
    preset = replace(preset, num_steps=config.steps)
    plain = replace(preset, adain_init=False, inject_attention=False)
    reconstruct, teacher = StyleID(*components, plain), StyleID(*components, preset)

    figures: dict[str, float] = {}
    for name, images in (("photos", photos), ("paintings", paintings)):
        decoded = np.concatenate(
            [
                to_uint8(teacher.decode(teacher.encode(to_model_range(chunk))))
                for chunk in np.array_split(images, -(-len(images) // 8))
            ]
        )
        target, result = unit_range(images), unit_range(decoded)
        distances = [lpips(a, b) for a, b in zip(target.split(8), result.split(8), strict=True)]
        figures[f"autoencoder PSNR, {name} (dB)"] = psnr(target, result).mean().item()
        figures[f"autoencoder LPIPS, {name}"] = torch.cat(distances).mean().item()

    side = config.pairs_side
    photos, paintings = photos[:side], paintings[:side]
    content, style = (teacher.invert(to_model_range(images)) for images in (photos, paintings))
    for name, images, inversion in (("photos", photos, content), ("paintings", paintings, style)):
        back = unit_range(to_uint8(reconstruct.stylise(inversion, inversion)))
        distance = psnr(unit_range(images), back).mean().item()
        figures[f"inversion and back PSNR, {name} (dB)"] = distance

    style_features = [vgg(unit_range(image[None])) for image in paintings]
    rows, unchanged, stylised_distance, content_lpips = [], [], [], []
    for j in range(side):
        stylised = to_uint8(teacher.stylise(content, style[j]))
        rows.append(stylised)
        for i in range(side):
            for images, distances in ((photos, unchanged), (stylised, stylised_distance)):
                features = vgg(unit_range(images[i : i + 1]))
                distances.append(relative_gram_distance(features, style_features[j]).item())
        content_lpips.append(lpips(unit_range(photos), unit_range(stylised)))
    figures["Gram distance to the style, unchanged content"] = float(np.mean(unchanged))
    figures["Gram distance to the style, stylised"] = float(np.mean(stylised_distance))
    figures["Gram distance, stylised below unchanged (%)"] = 100 * (
        1 - float(np.mean(stylised_distance)) / float(np.mean(unchanged))
    )
    figures["LPIPS to the content, stylised"] = torch.cat(content_lpips).mean().item()
    sheet = grid_sheet(photos, paintings, np.stack(rows))
    write_image(config.out / "contact_sheet.png", sheet)
    return figures


def measure_teacher(config: MeasureConfig) -> None:
    """Print the figures of a teacher and write them, with the contact sheet, to `config.out`."""
    components = load_components(config.teacher, config.device or best_device())
    config.out.mkdir(parents=True, exist_ok=True)
    figures = measure(components, config)
    with atomic_write(config.out / "measures.json") as file:
        file.write(json.dumps(figures, indent=2).encode())
    for name, value in figures.items():
        print(f"{name:50} {value:8.3f}")
