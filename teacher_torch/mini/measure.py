"""Figures and a contact sheet of a teacher on the test split of two folders."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from teacher_torch.devices import open_device
from teacher_torch.latent_diffusion import Components, load_components
from teacher_torch.mini.perceptual import LPIPS, VGG16, relative_gram_distance
from teacher_torch.pixels import to_model_range, to_uint8
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.teacher import Inversion, StyleID
from triplets import crop_and_resize, grid_sheet, read_image, test_files, write_image
from triplets.atomic import atomic_write, make_folder


@dataclass(frozen=True)
class MeasureConfig:
    """Measure a teacher on the test split of two folders, which its pre-training does not see."""

    photos: Path
    """Folder of photos."""
    paintings: Path
    """Folder of paintings."""
    out: Path
    """Folder for measures.json, measures.md and contact_sheet.png."""
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
    ablations: bool = False
    """Also measure gamma 0.3, the parts of StyleID switched off, and 5, 10 and 20 steps."""
    device: str | None = None
    """By default the best that is there."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the networks."""

    def __post_init__(self):
        for name in ("pairs_side", "autoencoder_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        settings(self)  # refuses what the method cannot do


def psnr(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def unit_range(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """uint8 pixels -> float32 in [0, 1], channels first."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def load_held_out(folder: Path, size: int, limit: int) -> UInt8[np.ndarray, "b size size 3"]:
    """The first `limit` pictures of a folder's test split, in an order that is as good as random.

    Raises:
        InputError: there are none, or one that cannot be read.
    """
    files = test_files(folder)[:limit]
    return np.stack([crop_and_resize(read_image(file), size) for file in files])


@dataclass(frozen=True)
class Judge:
    """Distances of stylised pictures to their contents and styles, on fixed networks."""

    photos: UInt8[np.ndarray, "p h w 3"]
    paintings: UInt8[np.ndarray, "q h w 3"]
    vgg: VGG16 = field(default_factory=VGG16)
    lpips: LPIPS = field(default_factory=LPIPS)

    def gram_distance(self, pictures: UInt8[np.ndarray, "q p h w 3"]) -> float:
        """Mean relative Gram distance of [painting, photo] pictures to their painting."""
        distances = []
        for row, painting in zip(pictures, self.paintings, strict=True):
            style = self.vgg(unit_range(painting[None]))
            distances += [
                relative_gram_distance(self.vgg(unit_range(picture[None])), style).item()
                for picture in row
            ]
        return float(np.mean(distances))

    def content_distance(self, pictures: UInt8[np.ndarray, "q p h w 3"]) -> float:
        """Mean LPIPS-alex of [painting, photo] pictures to their photo."""
        photos = unit_range(self.photos)
        return torch.cat([self.lpips(photos, unit_range(row)) for row in pictures]).mean().item()


@dataclass(frozen=True)
class Outcome:
    """What a setting of StyleID does to the test pairs."""

    setting: str
    gram_below_content: float
    """By how many percent the Gram distance to the style is below that of the content itself."""
    lpips_to_content: float
    seconds_per_pair: float
    """Stylisation alone, inversions and measuring not included."""


def settings(config: MeasureConfig) -> dict[str, StyleIDConfig]:
    """The settings to measure by name, the first being the one that `config` asks for."""
    preset = StyleIDConfig.paper() if config.preset == "paper" else StyleIDConfig.port()
    preset = replace(preset, num_steps=config.steps)
    result = {f"{config.preset}, {config.steps} steps": preset}
    if config.ablations:
        result |= {
            "gamma 0.3": replace(preset, gamma=0.3),
            "injection off": replace(preset, inject_attention=False),
            "AdaIN off": replace(preset, adain_init=False),
            "both off": replace(preset, inject_attention=False, adain_init=False),
        }
        fewer = [steps for steps in (20, 10, 5) if steps < config.steps]
        result |= {f"{steps} steps": replace(preset, num_steps=steps) for steps in fewer}
    return result


def in_chunks(
    function: Callable[[Tensor], Tensor], images: UInt8[np.ndarray, "b h w 3"]
) -> UInt8[np.ndarray, "b h w 3"]:
    """`function` on float [8 3 h w] in [-1, 1] at a time."""
    chunks = np.array_split(images, -(-len(images) // 8))
    return np.concatenate([to_uint8(function(to_model_range(chunk))) for chunk in chunks])


@torch.inference_mode()
def measure(
    components: Components, config: MeasureConfig
) -> tuple[dict[str, float], list[Outcome]]:
    """Figures of the autoencoder and the inversion by name, and of each setting of StyleID.

    Writes the contact sheet of all pairs under the first setting to `config.out`.
    """
    size = components.native_size
    photos, paintings = (
        load_held_out(folder, size, config.autoencoder_limit)
        for folder in (config.photos, config.paintings)
    )
    make_folder(config.out)
    figures: dict[str, float] = {}
    teacher = StyleID(*components, StyleIDConfig())
    lpips = LPIPS()
    for name, images in (("photos", photos), ("paintings", paintings)):
        decoded = in_chunks(lambda chunk: teacher.decode(teacher.encode(chunk)), images)
        target, result = unit_range(images), unit_range(decoded)
        distances = [lpips(a, b) for a, b in zip(target.split(8), result.split(8), strict=True)]
        figures[f"autoencoder PSNR, {name} (dB)"] = psnr(target, result).mean().item()
        figures[f"autoencoder LPIPS, {name}"] = torch.cat(distances).mean().item()

    judge = Judge(photos[: config.pairs_side], paintings[: config.pairs_side])
    unchanged = np.stack([judge.photos] * len(judge.paintings))
    figures["Gram distance to the style, content"] = judge.gram_distance(unchanged)

    outcomes: list[Outcome] = []
    inversions: dict[int, tuple[Inversion, Inversion]] = {}
    bar = tqdm(settings(config).items(), desc="stylising", unit="setting")
    for name, setting in bar:
        teacher = StyleID(*components, setting)
        if setting.num_steps not in inversions:
            inversions[setting.num_steps] = tuple(
                teacher.invert(to_model_range(images)) for images in (judge.photos, judge.paintings)
            )
        content, style = inversions[setting.num_steps]
        start = time.perf_counter()
        pairs = np.indices((len(judge.paintings), len(judge.photos))).reshape(2, -1)[::-1].T
        pictures = to_uint8(teacher.stylise_pairs(content, style, torch.from_numpy(pairs.copy())))
        stylised = pictures.reshape(len(judge.paintings), len(judge.photos), *pictures.shape[1:])
        seconds = (time.perf_counter() - start) / (stylised.shape[0] * stylised.shape[1])
        below = 1 - judge.gram_distance(stylised) / figures["Gram distance to the style, content"]
        distance = judge.content_distance(stylised)
        outcomes.append(Outcome(name, 100 * below, distance, seconds))
        if len(outcomes) == 1:
            sheet = grid_sheet(judge.photos, judge.paintings, stylised)
            write_image(config.out / "contact_sheet.png", sheet)

    plain = StyleIDConfig(config.steps, adain_init=False, inject_attention=False)
    reconstruct = StyleID(*components, plain)
    for name, images, inversion in zip(
        ("photos", "paintings"),
        (judge.photos, judge.paintings),
        inversions[config.steps],
        strict=True,
    ):
        back = unit_range(to_uint8(reconstruct.stylise(inversion, inversion)))
        distance = psnr(unit_range(images), back).mean().item()
        figures[f"inversion and back PSNR, {name} (dB)"] = distance
    return figures, outcomes


def measure_teacher(config: MeasureConfig) -> None:
    """Print the figures of a teacher and write them, with the contact sheet, to `config.out`.

    Raises:
        InputError: a teacher, a device or a folder that cannot be used.
    """
    components = load_components(
        config.teacher, open_device(config.device), getattr(torch, config.dtype)
    )
    figures, outcomes = measure(components, config)
    record = {"figures": figures, "settings": [asdict(outcome) for outcome in outcomes]}
    table = [
        "| measure | value |",
        "| --- | ---: |",
        *(f"| {name} | {value:.3f} |" for name, value in figures.items()),
        "",
        "| setting | Gram distance below the content's | LPIPS to the content | s per pair |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {o.setting} | {o.gram_below_content:.1f} % | {o.lpips_to_content:.3f} | "
            f"{o.seconds_per_pair:.2f} |"
            for o in outcomes
        ),
    ]
    for name, text in (
        ("measures.json", json.dumps(record, indent=2)),
        ("measures.md", "\n".join(table)),
    ):
        with atomic_write(config.out / name) as file:
            file.write(f"{text}\n".encode())
    print("\n".join(table))
