"""Every teacher on the same pictures: what it paints, what it costs, what a student learns of it.

The talk of E. Silvestrov (see `compare_losses`) compared diffusion models before it chose one.
"""

import csv
import hashlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.ablations import subset
from experiments.pages import settings_table, write_report
from experiments.runs import TrainingRun, answer, ensure_all, ensure_dump
from experiments.study import ExampleSet, command_line, kept, machine
from student_jax.compilation import enable_compilation_cache
from student_jax.evaluation import baselines
from student_jax.evaluation.examples import spread, triplet_examples, validation_triplets
from student_jax.evaluation.judge import MEASURES, Example, Judge, Method, on_pictures
from student_jax.evaluation.report import cell, finite, heading, markdown_rows, write_figure
from student_jax.inference.stylist import Stylist
from student_jax.weights.folder import open_student
from triplets import (
    InputError,
    NativeCrops,
    TripletDataset,
    float_from_uint8,
    load_images,
    open_source,
)
from triplets.atomic import atomic_write
from triplets.bundled import SAMPLES

ALL_TEACHERS = (
    "styleid",
    "attention_distillation",
    "distillation alone: attention_distillation --preset paper",
    "inst",
    "zecon",
    "style_diffusion",
)
SHOWN = (
    "content_lpips",
    "style_gram",
    "style_gram_matched",
    "style_gram_luminance",
    "style_swd",
    "style_swd_patches",
    "sameness",
    "style_histogram",
    "saturation",
    "sharpness",
)
"""Measures of the teachers' pictures, which need no reference."""
DISTILLED = ("mse", "lpips", "style_gram_matched", "style_swd_patches", "sharpness")
"""Measures of the students."""
CONTROLS = ("content copied", "colour statistics transferred")
SMALL = 32
"""Side in pixels at which pictures are looked at to tell sets of them apart."""


class Entry(NamedTuple):
    """A teacher of the comparison."""

    label: str
    flags: tuple[str, ...]
    """Of "style-distil dump"."""

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Of "[LABEL: ]NAME [FLAGS]"."""
        label, separator, words = text.rpartition(": ")
        name, *flags = shlex.split(words) or [""]
        if not name or name.startswith("-") or (separator and not label):
            raise ValueError(
                f'teacher "{text}": expected a name, flags after it, and perhaps a label before '
                'it, as in "quick: inst --training-steps 8".'
            )
        return cls(label or name, ("--teacher", name, *flags))


@dataclass(frozen=True)
class TeachersConfig:
    """Stylise the same pictures with several teachers, measure and time them, draw the figure."""

    content: str = str(SAMPLES / "content")
    """Folder of content pictures, or tfds:NAME:SPLIT; by default the bundled samples."""
    style: str = str(SAMPLES / "style")
    """Folder of style pictures, or tfds:NAME:SPLIT; by default the bundled samples."""
    contents: int | None = None
    """Take this many contents, evenly spread; by default all."""
    styles: int | None = None
    """Take this many styles, evenly spread; by default all."""
    teachers: tuple[str, ...] = ALL_TEACHERS
    """Each a name with flags of "style-distil dump" after it and perhaps a label before it, in
    quotes: "quick: inst --training-steps 8". A --model there counts for this teacher alone."""
    model: str = "mini"
    """Weights of all teachers that name no others."""
    size: int | None = None
    """Side of the square pictures in pixels; by default the models' native size."""
    style_crop: int | None = None
    """Show all teachers a square of each style, of this side at the picture's own resolution; by
    default the whole style."""
    flags: str = ""
    """Further flags of "style-distil dump" for all teachers: --flags="--device cuda"."""
    distil_steps: int = 0
    """Train the mini student for this many steps on each teacher's triplets; 0 trains none."""
    validation_fraction: float = 0.4
    """Share of the contents and of the styles that students do not see and are measured on."""
    train_flags: str = ""
    """Further flags of "style-distil train" for all students."""
    rows: int = 6
    """Pairs in the figure, evenly spread."""
    out: Path = Path("runs/studies")
    """Folder of dumps, times and runs; the same command continues what was interrupted."""
    report: Path = Path("runs/experiments")
    """Folder for teachers.json, teachers.jpg and teachers.md. If teachers.md is there, only its
    tables are replaced."""

    def __post_init__(self):
        labels = [entry.label for entry in self.entries()]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(
                f"teachers are {', '.join(labels) or 'none'}; expected different ones: write a "
                'label before a name that comes twice, as in "quick: inst --training-steps 8".'
            )
        for name in ("contents", "styles", "rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        if self.distil_steps < 0 or self.distil_steps == 1:
            raise ValueError(f"distil_steps is {self.distil_steps}; expected 0, or 2 and more.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}; expected more than 0 and less "
                "than 1."
            )

    def entries(self) -> list[Entry]:
        """The teachers."""
        return [Entry.parse(text) for text in self.teachers]


@dataclass(frozen=True)
class Teaching:
    """What there is of one teacher."""

    entry: Entry
    dataset: TripletDataset
    times: Mapping[str, object]
    """As `teacher_torch.timing` prints them."""


def compare_teachers(config: TeachersConfig) -> None:
    """Run the experiment, or what is left of it; see `TeachersConfig`.

    Raises:
        InputError: pictures or a teacher that cannot be used, or a training that failed.
    """
    enable_compilation_cache()
    common = choose_pictures(config)
    commands = {entry: dump_flags(config, entry, common) for entry in config.entries()}
    # All teachers are timed before the first dump, which takes long: what is wrong shows early.
    times = {entry: measure_times(config, flags) for entry, flags in commands.items()}
    check_sizes(times)
    teachings = []
    for entry, flags in commands.items():
        print(f"teacher {len(teachings) + 1} of {len(commands)}: {entry.label}", flush=True)
        dataset = ensure_dump(_folder(config, flags), flags)
        teachings.append(Teaching(entry, dataset, times[entry]))

    judge = Judge(structure=False)
    measures = measure_teachers(config, judge, teachings)
    students = distil(config, judge, teachings) if config.distil_steps else {}
    config.report.mkdir(parents=True, exist_ok=True)
    draw_figure(config, teachings)
    write_report(
        config.report,
        "teachers",
        "Teachers compared",
        teachers_record(config, teachings, measures, students),
        tables,
        picture="teachers.jpg",
    )


def choose_pictures(config: TeachersConfig) -> list[str]:
    """The flags of a dump that name the pictures and their pairs, which are written to a CSV file.

    Raises:
        InputError: a source that cannot be used.
    """
    crops = None if config.style_crop is None else NativeCrops(config.style_crop)
    chosen, digest = [], hashlib.sha256()
    for spec, count, of in (
        (config.content, config.contents, None),
        (config.style, config.styles, crops),
    ):
        images, _ = load_images(open_source(spec), SMALL, crops=of)
        rows = np.arange(len(images))
        rows = spread(rows, len(rows) if count is None else count)
        digest.update(images.images[rows].tobytes())
        chosen.append([images.ids[row] for row in rows])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["content", "style"])
    writer.writerows((content, style) for content in chosen[0] for style in chosen[1])
    digest.update(text.getvalue().encode())
    path = config.out / f"pairs-{digest.hexdigest()[:12]}.csv"
    config.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
    cut = [] if crops is None else ["--style-crop", str(config.style_crop)]
    return ["--content", config.content, "--style", config.style, "--pairs", str(path), *cut]


def dump_flags(config: TeachersConfig, entry: Entry, common: Sequence[str]) -> list[str]:
    """All flags of a teacher's dump but the folder."""
    size = [] if config.size is None else ["--size", str(config.size)]
    # Of a flag that comes twice, the last one counts.
    return [*common, "--model", config.model, *size, *shlex.split(config.flags), *entry.flags]


def measure_times(config: TeachersConfig, flags: Sequence[str]) -> dict:
    """What `teacher_torch.timing` measures of a teacher on this machine; it is kept.

    Raises:
        InputError: it ended with an error, which it has printed.
    """

    def take() -> dict:
        print(f"timing {shlex.join(flags)}", flush=True)
        words = ["teacher_torch.timing", *flags, "--out", str(_folder(config, flags))]
        return answer(*words)

    return kept(config.out / f"times-{_hash([*flags, machine()])}.json", take)


def check_sizes(times: Mapping[Entry, Mapping[str, object]]) -> None:
    """Refuse teachers whose models make pictures of different sizes."""
    sizes = {entry.label: of["size"] for entry, of in times.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{label} {size} px" for label, size in sizes.items())
        raise InputError(f"the teachers make pictures of different sizes ({listed}): give --size.")


def measure_teachers(
    config: TeachersConfig, judge: Judge, teachings: Sequence[Teaching]
) -> dict[str, dict[str, float]]:
    """The mean of each measure of every teacher and of the controls; kept in the study's folder."""
    methods: dict[str, Method] = {
        teaching.entry.label: _pictures_of(teaching.dataset) for teaching in teachings
    }
    methods |= {name: on_pictures(baselines.BASELINES[name]) for name in CONTROLS}
    dataset = teachings[0].dataset
    examples = ExampleSet([(of.dataset, range(len(of.dataset))) for of in teachings])

    def take() -> dict[str, dict[str, float]]:
        print(f"measuring {len(methods)} methods on {len(dataset)} pairs", flush=True)
        pairs = (
            replace(example, teacher=None)
            for example in triplet_examples([(dataset, range(len(dataset)))])
        )
        return judge.of_methods(methods, pairs, only=SHOWN).measures

    key = _hash([examples.key, *methods, *SHOWN])
    return kept(config.out / f"teachers-{key}.json", take)


def distil(
    config: TeachersConfig, judge: Judge, teachings: Sequence[Teaching]
) -> dict[str, dict[str, dict[str, float]]]:
    """Train the same student on each teacher's triplets.

    Returns:
        By teacher, the measures of "student" and "teacher" on triplets whose content and style
        the student has not seen.

    Raises:
        InputError: too few pictures, or a training that failed.
    """
    runs = {}
    for teaching in teachings:
        # Without the pictures that no pair has.
        data = subset(teaching.dataset, range(len(teaching.dataset)), config.out).root
        runs[teaching.entry.label] = TrainingRun(
            root=config.out,
            data=data,
            loss="L1",
            seed=0,
            steps=config.distil_steps,
            flags=(
                "--validation-fraction",
                str(config.validation_fraction),
                *shlex.split(config.train_flags),
            ),
        )
    ensure_all(runs.values())
    measures = {}
    for label, run in runs.items():
        examples = ExampleSet(validation_triplets(run.workdir, 64))

        def take(run: TrainingRun = run, examples: ExampleSet = examples) -> dict:
            stylist = Stylist(open_student(str(run.workdir), "latest"))
            methods = {"student": on_pictures(stylist)}
            taken = judge.of_methods(methods, examples.examples(), only=DISTILLED).measures
            return {"pairs": {"count": len(examples)}} | {k: finite(of) for k, of in taken.items()}

        key = _hash([examples.key, *DISTILLED])
        measures[label] = kept(run.workdir / f"distilled-{key}.json", take)
    return measures


def draw_figure(config: TeachersConfig, teachings: Sequence[Teaching]) -> None:
    """Pairs down; content, style and every teacher across: teachers.jpg."""
    datasets = [teaching.dataset for teaching in teachings]
    first, *others = datasets
    found = [_rows_by_ids(dataset) for dataset in others]
    rows = []
    # By content, so that each is seen in several styles.
    order = sorted(range(len(first)), key=lambda row: tuple(first.pairs[row]))
    for row in spread(np.array(order), config.rows):
        triplet = first[row]
        ids = (triplet.content_id, triplet.style_id)
        pictures = [other[of[ids]].stylised for other, of in zip(others, found, strict=True)]
        rows.append([*triplet[:3], *pictures])
    captions = ("content", "style", *(teaching.entry.label for teaching in teachings))
    write_figure(config.report / "teachers.jpg", rows, captions)


def teachers_record(
    config: TeachersConfig,
    teachings: Sequence[Teaching],
    measures: Mapping[str, Mapping[str, float]],
    students: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict:
    """All that is reported, as JSON."""
    first = teachings[0].dataset
    contents, styles = (len(set(column)) for column in first.pairs.T.tolist())
    return {
        "settings": {
            "command": command_line("teachers", config),
            "machine": machine(),
            "model": Path(config.model).name,
            "size (px)": list(first.manifest["image_size"]),
            "pictures": f"{len(first)} pairs of {contents} contents and {styles} styles",
        },
        "teachers": [
            {
                "label": teaching.entry.label,
                "flags": shlex.join(teaching.entry.flags),
                "method": teaching.dataset.manifest["settings"].get("method"),
                "times": teaching.times,
            }
            for teaching in teachings
        ],
        "measures": {name: finite(of) for name, of in measures.items()},
        "students": {
            "steps": config.distil_steps,
            "measures": students,
        },
    }


def tables(record: dict) -> dict[str, str]:
    """The tables of the page, from what teachers.json holds."""
    return {
        "settings": settings_table(record["settings"]),
        "teachers": _teachers_table(record["teachers"]),
        "measures": markdown_rows(
            ["", *map(heading, SHOWN)],
            [
                [label, *(cell(m, of.get(m)) for m in SHOWN)]
                for label, of in record["measures"].items()
            ],
        ),
        "costs": _costs_table(record["teachers"]),
        "students": _students_table(record["students"]),
    }


def _teachers_table(teachers: Sequence[Mapping]) -> str:
    rows = [
        [of["label"], of["method"] or of["flags"].split()[1], f"`{of['flags']}`"] for of in teachers
    ]
    return markdown_rows(["", "what it may be called", "asked for by"], rows)


def _costs_table(teachers: Sequence[Mapping]) -> str:
    """Of a style and of a pair that are made alone."""
    head = [""]
    for what in ("style", "pair"):
        head += [f"UNet rows per {what}", f"seconds per {what}", f"peak memory per {what} (GB)"]
    rows = []
    for of in teachers:
        cells = [of["label"]]
        for what in ("style", "pair"):
            piece = of["times"][what]
            peak = piece["peak_bytes"]
            cells += [
                str(piece["rows"]),
                f"{piece['seconds']:.1f}",
                "–" if peak is None else f"{peak / 1e9:.2f}",
            ]
        rows.append(cells)
    return markdown_rows(head, rows)


def _students_table(students: Mapping) -> str:
    """What students of the same training made of each teacher, and the teacher's own figures."""
    if not students["measures"]:
        return "No students were trained."
    fidelity, texture = ("mse", "lpips"), DISTILLED[2:]
    head = [f"{students['steps']} steps on"]
    head += [f"{MEASURES[m].title} to the teacher" for m in fidelity]
    head += [f"{MEASURES[m].title}, student (teacher)" for m in texture]
    rows = []
    for label, of in students["measures"].items():
        student, teacher = of["student"], of["teacher"]
        rows.append(
            [
                label,
                *(cell(m, student[m]) for m in fidelity),
                *(f"{cell(m, student[m])} ({cell(m, teacher[m])})" for m in texture),
            ]
        )
    return markdown_rows(head, rows)


def _pictures_of(dataset: TripletDataset) -> Method:
    """The stylised pictures of a dataset, by the ids of content and style."""
    rows = _rows_by_ids(dataset)

    def picture(example: Example) -> np.ndarray:
        return float_from_uint8(dataset[rows[example.ids]].stylised)

    return picture


def _rows_by_ids(dataset: TripletDataset) -> dict[tuple[str, str], int]:
    return {
        (dataset.content_ids[content], dataset.style_ids[style]): row
        for row, (content, style) in enumerate(dataset.pairs.tolist())
    }


def _folder(config: TeachersConfig, flags: Sequence[str]) -> Path:
    return config.out / f"teacher-{_hash(flags)}"


def _hash(words: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:12]
