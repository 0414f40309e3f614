"""The pictures of the README and the model cards: teacher and bundled student on a dump's pairs.

python benchmarks/contact_sheets.py --data DUMP --out docs --checkpoint modulated --rows \
    chelsea:eugene_boudin coffee:camille_pissarro eilean_donan:colin_campbell rocket:hieronymus

drew the README's comparison.jpg; DUMP is of four sample photos and four held-out paintings, by
`style-distil dump --teacher attention_distillation --style-crop 256 --learning-rate 0.08 --decay
--content-weight 0.25`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from student_jax import Stylist
from triplets import TripletDataset, contact_sheet, grid_sheet, uint8_from_float


@dataclass(frozen=True)
class Config:
    """Draw comparison.jpg, mini_teacher.jpg and mini_student.jpg."""

    data: Path
    """A dump of all pairs of some pictures."""
    out: Path
    """Folder of the three pictures."""
    checkpoint: str = "mini"
    """The student."""
    rows: tuple[str, ...] = (
        "eilean_donan_castle:van_gogh_cafe_terrace_at_night",
        "chelsea:van_gogh_harvest",
        "coffee:van_gogh_langlois_bridge",
    )
    """Pairs for comparison.jpg, CONTENT:STYLE, each how the picture's name begins."""


def main(config: Config) -> None:
    """Draw the three sheets."""
    dataset = TripletDataset(config.data)
    stylist = Stylist.from_pretrained(config.checkpoint)
    pairs = {(t.content_id, t.style_id): t for t in (dataset[i] for i in range(len(dataset)))}
    students = {
        key: uint8_from_float(stylist(triplet.content, triplet.style))
        for key, triplet in pairs.items()
    }
    contents, styles = dataset.content_ids, dataset.style_ids
    content_of = np.stack([pairs[c, styles[0]].content for c in contents])
    style_of = np.stack([pairs[contents[0], s].style for s in styles])
    teacher = np.stack([[pairs[c, s].stylised for c in contents] for s in styles])
    student = np.stack([[students[c, s] for c in contents] for s in styles])
    rows = []
    for row in config.rows:
        content, style = row.split(":")
        [key] = (k for k in pairs if k[0].startswith(content) and k[1].startswith(style))
        rows.append([pairs[key].content, pairs[key].style, pairs[key].stylised, students[key]])
    for name, sheet in (
        ("comparison", contact_sheet(rows, ("content", "style", "teacher", "student"))),
        ("mini_teacher", grid_sheet(content_of, style_of, teacher)),
        ("mini_student", grid_sheet(content_of, style_of, student)),
    ):
        picture = Image.fromarray(sheet)
        if picture.height > 1200:
            picture = picture.reduce(2)
        picture.save(config.out / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
