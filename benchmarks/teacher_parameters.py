"""Contact sheets that show what each parameter of StyleID does, for docs/teacher.md.

One sheet a pair of content and style with gamma across and temperature down, and one sheet with a
row a pair and the other parameters across.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from teacher_torch import Inversion, StyleID, StyleIDConfig
from teacher_torch.latent_diffusion import load_components
from teacher_torch.pixels import to_model_range, to_uint8
from triplets import contact_sheet, crop_and_resize, read_image
from triplets.atomic import atomic_write

GAMMAS = (0.0, 0.3, 0.75, 1.0)
TEMPERATURES = (0.5, 1.5, 3.0)


@dataclass(frozen=True)
class ParametersConfig:
    """Stylise a few pairs under many settings and write the sheets."""

    contents: tuple[Path, ...]
    """Content pictures."""
    styles: tuple[Path, ...]
    """Style pictures."""
    out: Path
    """Folder of the sheets."""
    model: str = "mini"
    """"mini", a diffusers folder or a hub id."""
    steps: int = 20
    """DDIM steps, but for the column that shows fewer."""
    size: int | None = None
    """Side in pixels at which pictures are stylised; by default the model's native size."""
    cell: int = 160
    """Side of a picture on the sheets, in pixels."""
    quality: int = 85
    """Of the JPEG files."""


class Sweep:
    """Stylises all pairs under any setting; pictures are inverted once a number of steps."""

    def __init__(self, config: ParametersConfig):
        self.components = load_components(config.model)
        size = config.size or self.components.native_size
        self.contents, self.styles = (
            np.stack([crop_and_resize(read_image(path), size) for path in paths])
            for paths in (config.contents, config.styles)
        )
        self.pairs = list(product(range(len(self.contents)), range(len(self.styles))))
        self._inversions: dict[tuple[int, str], tuple[Inversion, Inversion]] = {}

    def stylise(self, setting: StyleIDConfig) -> UInt8[np.ndarray, "p h w 3"]:
        """The pictures of `pairs`."""
        teacher = StyleID(*self.components, setting)
        key = (setting.num_steps, setting.convention)
        if key not in self._inversions:
            self._inversions[key] = tuple(
                teacher.invert(to_model_range(images)) for images in (self.contents, self.styles)
            )
        return to_uint8(teacher.stylise_pairs(*self._inversions[key], torch.tensor(self.pairs)))


def write_sheets(config: ParametersConfig) -> None:
    """Write gamma_temperature_CONTENT_STYLE.jpg for every pair, and parameters.jpg."""
    sweep = Sweep(config)
    config.out.mkdir(parents=True, exist_ok=True)
    paper = StyleIDConfig(num_steps=config.steps)

    grid = list(product(TEMPERATURES, GAMMAS))
    swept = [
        sweep.stylise(replace(paper, gamma=gamma, temperature=temperature))
        for temperature, gamma in tqdm(grid, desc="gamma and temperature")
    ]
    blank = np.full_like(sweep.contents[0], 255)
    captions = ["", *(f"gamma {gamma:g}" for gamma in GAMMAS)]
    for p, (content, style) in enumerate(sweep.pairs):
        firsts = [sweep.contents[content], sweep.styles[style]]
        firsts += [blank] * (len(TEMPERATURES) - len(firsts))
        cells = iter(swept)
        rows = [[first, *(next(cells)[p] for _ in GAMMAS)] for first in firsts]
        names = (config.contents[content].stem, config.styles[style].stem)
        save(config, f"gamma_temperature_{'_'.join(names)}.jpg", rows, captions)

    settings = {
        "no AdaIN": replace(paper, adain_init=False),
        "no injection": replace(paper, inject_attention=False),
        "layers 9-11": replace(paper, injection_layers=(9, 10, 11)),
        "port": replace(paper, convention="port", injection_layers=(7, 8, 9, 10, 11)),
        "5 steps": replace(paper, num_steps=5),
    }
    columns = {"paper": swept[grid.index((paper.temperature, paper.gamma))]}
    for name, setting in tqdm(settings.items(), desc="parameters"):
        columns[name] = sweep.stylise(setting)
    rows = [
        [sweep.contents[content], sweep.styles[style], *(c[p] for c in columns.values())]
        for p, (content, style) in enumerate(sweep.pairs)
    ]
    save(config, "parameters.jpg", rows, ["content", "style", *columns])


def save(config: ParametersConfig, name: str, rows: list[list], captions: list[str]) -> None:
    """Write a sheet of reduced pictures as JPEG."""
    side = (config.cell, config.cell)
    reduced = [
        [np.array(Image.fromarray(p).resize(side, Image.Resampling.LANCZOS)) for p in row]
        for row in rows
    ]
    sheet = Image.fromarray(contact_sheet(reduced, captions))
    with atomic_write(config.out / name) as file:
        sheet.save(file, "JPEG", quality=config.quality, optimize=True)


if __name__ == "__main__":
    write_sheets(tyro.cli(ParametersConfig, description=__doc__))
