"""A student, a teacher's dump or a folder of results by anyone, measured beside three baselines."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from student_jax.compilation import enable_compilation_cache
from student_jax.evaluation.baselines import BASELINES
from student_jax.evaluation.config import EvaluateConfig
from student_jax.evaluation.examples import ChosenExamples, choose_examples
from student_jax.evaluation.judge import Example, Judge, Judgement, Method, on_pictures
from student_jax.evaluation.measures.pixels import Picture
from student_jax.evaluation.report import html_page, json_text, markdown_table, notes, write_text
from student_jax.evaluation.results import results_method
from student_jax.evaluation.showcase import Showcase
from student_jax.inference.stylist import Stylist
from student_jax.training.checkpoint import load_config
from student_jax.weights.folder import open_student
from triplets import contact_sheet, uint8_from_float, write_image


@dataclass(frozen=True)
class MeasuredStudent:
    """What a report says of a student."""

    origin: str
    """Its training, or the name that was given."""
    checkpoint: str
    step: Literal["best", "latest"] | int | None
    """As it was asked for; None for a student that is not a training run's."""
    style_scale: int | None
    """Shorter side in pixels to which larger styles were reduced for it; None for its own."""

    @classmethod
    def of(cls, config: EvaluateConfig) -> "MeasuredStudent":
        """The student of --checkpoint."""
        origin, step = config.checkpoint, None
        if (Path(config.checkpoint) / "checkpoints").is_dir():
            run, step = load_config(Path(config.checkpoint)), config.step
            start = f'further from "{run["init_from"]}"' if run["init_from"] else "from scratch"
            origin = f"trained {start}, loss {run['loss']}, up to {run['steps']} steps"
        return cls(origin, config.checkpoint, step, config.style_scale)

    def __str__(self) -> str:
        step = "" if self.step is None else f", --step {self.step}"
        scale = "" if self.style_scale is None else f", --style-scale {self.style_scale}"
        return f"{self.origin}{step}{scale}"


def evaluate(config: EvaluateConfig) -> Judgement:
    """Print the table and write the report; see `EvaluateConfig`.

    Raises:
        InputError: a run, a dataset, weights or pictures that cannot be used.
    """
    enable_compilation_cache()
    chosen = choose_examples(config)
    for line in chosen.skipped:
        print(line, file=sys.stderr)
    methods: dict[str, Method] = {}
    student = stylist = None
    if config.checkpoint is not None:
        student = MeasuredStudent.of(config)
        model = open_student(config.checkpoint, config.step)
        stylist = Stylist(model, style_scale=config.style_scale)
        methods["student"] = on_pictures(stylist)
    if config.results is not None:
        methods["results"] = results_method(config, chosen.ids)
    methods |= {name: on_pictures(function) for name, function in BASELINES.items()}
    judge = Judge(
        vgg19_weights=config.vgg19_weights,
        fid_weights=config.fid_weights,
        structure=config.structure,
    )
    rows, captions, showcase = [], [], Showcase()

    def draw(example: Example, results: dict[str, Picture]) -> None:
        shown = {"content": example.content, "style": example.style}
        if example.teacher is not None:
            shown["teacher"] = example.teacher
        shown |= {name: image for name, image in results.items() if name not in BASELINES}
        captions[:] = shown
        if len(rows) < config.rows:
            rows.append([uint8_from_float(image) for image in shown.values()])
        showcase.see(example)
        bar.update()

    with tqdm(total=len(chosen.ids), unit="example", desc="evaluating") as bar:
        judgement = judge.of_methods(methods, chosen.examples, seen=draw)
    sheet = None if stylist is None else showcase.sheet(stylist)
    write_report(config.out, judgement, chosen, student, captions, rows, sheet)
    return judgement


def write_report(
    out: Path,
    judgement: Judgement,
    chosen: ChosenExamples,
    student: MeasuredStudent | None,
    captions: Sequence[str],
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
    sheet: UInt8[np.ndarray, "h2 w2 3"] | None,
) -> None:
    """Print the table and write comparison.png, table.md, measures.json, report.html and, if there
    is one, contact_sheet.png."""
    description = chosen.description
    if student is not None:
        description += f"; student: {student}"
    table = markdown_table(judgement, f"on {judgement.count} {description}")
    remarks = [*chosen.skipped, *notes(judgement)]
    print(table)
    for name, reason in judgement.missing.items():
        print(f"not measured: {name}, because {reason}.")
    write_text(out / "table.md", "\n".join([table, "", *(f"- {line}" for line in remarks)]))
    about = {
        "on": description,
        "student": None if student is None else asdict(student),
        "skipped": list(chosen.skipped),
    }
    write_text(out / "measures.json", json_text(judgement, **about))
    page = html_page(
        judgement,
        title="Evaluation",
        summary=f"Means over {judgement.count} {description}.",
        remarks=remarks,
        captions=captions,
        rows=rows,
        sheet=sheet,
    )
    write_text(out / "report.html", page)
    write_image(out / "comparison.png", contact_sheet(rows, captions))
    if sheet is not None:
        write_image(out / "contact_sheet.png", sheet)
