"""How well students paint: texture apart from colour, at 512 px, measured at 256 px.

    python benchmarks/painting.py --content photos/ --style paintings/ --checkpoints mini modulated

Every student stylises the same pairs of central squares of `--size` pixels, as its user would;
results, contents and styles are then reduced to `--measured` pixels, at which the small features of
VGG16 see strokes. The first `--contents` photos meet all paintings. Figures are means; "of the
content" divides a distance by that of the unchanged content. Writes table.md and a sheet for each
student; with several `--stroke-sizes` also strokes.jpg, two contents in two styles by each.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from student_jax.evaluation.baselines import BASELINES
from student_jax.evaluation.judge import Example, Judge
from student_jax.evaluation.report import markdown_rows
from student_jax.evaluation.showcase import Showcase
from student_jax.inference.stylist import Stylist
from student_jax.weights.folder import open_student
from triplets import (
    contact_sheet,
    float_from_uint8,
    load_images,
    open_source,
    uint8_from_float,
    write_image,
)
from triplets.atomic import atomic_write

SHOWN = {
    "content_lpips": "LPIPS to the content",
    "style_gram": "Gram",
    "style_gram_matched": "Gram, colours matched",
    "style_gram_luminance": "Gram, luminance",
    "style_swd_patches": "SWD, patches",
    "sameness": "sameness",
    "sharpness": "sharpness",
}
RELATIVE = ("style_gram", "style_gram_matched", "style_gram_luminance", "style_swd_patches")


@dataclass(frozen=True)
class Config:
    """Measure students on held-out pictures."""

    content: str
    """Folder of photos, or tfds:NAME:SPLIT."""
    style: str
    """Folder of paintings, or tfds:NAME:SPLIT."""
    checkpoints: tuple[str, ...]
    """Students, as for `style-distil stylize --checkpoint`."""
    out: Path = Path("runs/painting")
    """Folder for the table and the sheets."""
    contents: int = 6
    """How many photos."""
    styles: int = 8
    """How many paintings."""
    size: int = 512
    """Side of the squares that are stylised, in pixels."""
    measured: int = 256
    """Side to which they are reduced before anything is measured."""
    stroke_sizes: tuple[float, ...] = (1.0,)
    """Each student is measured with each of them."""


def main(config: Config) -> None:
    """Print the table and write it with the sheets."""
    contents, styles = (
        load_images(open_source(spec), config.size, limit=limit)[0]
        for spec, limit in ((config.content, config.contents), (config.style, config.styles))
    )
    whole = {
        ids: tuple(map(float_from_uint8, pictures))
        for ids, pictures in (
            ((a, b), (c, s))
            for a, c in zip(contents.ids, contents.images, strict=True)
            for b, s in zip(styles.ids, styles.images, strict=True)
        )
    }

    def reduced(picture: np.ndarray) -> np.ndarray:
        small = Image.fromarray(uint8_from_float(picture))
        side = (config.measured, config.measured)
        return float_from_uint8(np.asarray(small.resize(side, Image.Resampling.BOX)))

    def method(function):
        return lambda example: reduced(function(*whole[example.ids]))

    stylists = {
        name if size == 1 else f"{name}, strokes x {size:g}": Stylist(
            open_student(name), stroke_size=size
        )
        for name in config.checkpoints
        for size in config.stroke_sizes
    }
    methods = {name: method(function) for name, function in (stylists | BASELINES).items()}
    examples = (Example(*map(reduced, pictures), None, ids) for ids, pictures in whole.items())
    judgement = Judge(structure=False).of_methods(methods, examples, only=SHOWN)

    content = judgement.measures["content copied"]
    rows = []
    for name, values in judgement.measures.items():
        cells = [f"{values[m]:.3f}" if m in values else "–" for m in SHOWN]
        cells += [f"{values[m] / content[m]:.2f}" for m in RELATIVE]
        rows.append([name, *cells])
    head = [f"{len(whole)} pairs at {config.size} px, measured at {config.measured} px"]
    head += [*SHOWN.values(), *(f"{SHOWN[m]}, of the content" for m in RELATIVE)]
    table = markdown_rows(head, rows)
    print(table)
    config.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(config.out / "table.md") as file:
        file.write((table + "\n").encode())
    for name, stylist in stylists.items():
        showcase = Showcase()
        for ids, pictures in whole.items():
            showcase.see(Example(*pictures, None, ids))
        if (sheet := showcase.sheet(stylist)) is not None:
            write_image(config.out / f"{Path(name).name}.png", sheet)
    if len(config.stroke_sizes) > 1:
        shown = [whole[a, b] for a, b in zip(contents.ids[:2], styles.ids[:2], strict=False)]
        rows = [
            [
                uint8_from_float(reduced(x))
                for x in (*pictures, *(stylist(*pictures) for stylist in stylists.values()))
            ]
            for pictures in shown
        ]
        sheet = contact_sheet(rows, ("content", "style", *stylists))
        write_image(config.out / "strokes.jpg", sheet)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
