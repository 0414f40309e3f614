"""Ablations that help to decide: how many triplets, which pairs, which student, which loss.

Each trains some variants of one thing, measures them on the same triplets, which no training saw,
and draws a curve or shows their pictures.
"""

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx
from jaxtyping import Int

from experiments.pages import settings_table, write_report
from experiments.runs import TrainingRun, answer, ensure_all
from experiments.study import (
    MEASURED,
    ExampleSet,
    Values,
    command_line,
    machine,
    means,
    measure_baselines,
    measure_run,
    side,
    spread_cell,
)
from student_jax.compilation import enable_compilation_cache
from student_jax.evaluation.examples import spread
from student_jax.evaluation.judge import MEASURES, Judge
from student_jax.evaluation.report import cell, finite, heading, markdown_rows, write_figure
from student_jax.inference.stylist import Stylist
from student_jax.student import STUDENTS, StudentConfig, build_student, count_parameters
from student_jax.students import DEFAULT_STUDENT, MiniConfig
from student_jax.training.data import split_triplets
from student_jax.training.objective import terms
from student_jax.weights.folder import open_student
from triplets import ImageSet, InputError, TripletDataset, TripletWriter, uint8_from_float
from triplets.atomic import atomic_write

Varied = Literal["triplets", "styles", "size", "gram", "students", "terms", "painting"]
SHOWN = ("mse", "psnr", "ssim", "lpips", "style_gram", "style_histogram", "sharpness")
CURVES = ("mse", "lpips")
PAINTED = (
    "low_band_mse",
    "content_lpips",
    "style_gram",
    "style_gram_matched",
    "style_gram_luminance",
    "sameness",
    "sharpness",
)
"""What the ablations of painting show."""
PICTURED = 4
"""Rows of their figures."""
COST_SIZES = (512, 2048)
"""Sides in pixels of the pictures whose costs are compared."""
SHARD_SIZE = 256


@dataclass(frozen=True)
class AblationConfig:
    """Vary one thing, train and measure each variant, and draw the curve."""

    vary: Varied
    """triplets: fidelity by number of triplets; styles: many or few styles in as many triplets;
    size: fidelity by size of the student; gram: the two reductions of the Gram term, with L2;
    students: the convolutional student and the transformer of its size, with the loss paint; terms:
    paint without each of its terms; painting: paint beside L1, L2 and L3."""
    data: Path
    """Triplet dataset of "style-distil dump" to train on."""
    validation: Path | None = None
    """Triplet dataset to validate on; by default a part of the data."""
    test: Path | None = None
    """Triplet dataset to measure on, of pictures that are in neither; by default that of the
    validation."""
    points: tuple[float, ...] = ()
    """What to try in place of the defaults: numbers of triplets, numbers of styles, or factors on
    the widths of the mini student."""
    out: Path = Path("runs/studies")
    """Folder of the runs, which studies share; the same command continues what was interrupted."""
    report: Path = Path("runs/experiments")
    """Folder for VARY.json, VARY.png and VARY.md. If VARY.md is there, only its tables are
    replaced."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run for every variant and seed."""
    steps: int = 2000
    """Of each run."""
    flags: str = ""
    """Further flags of "style-distil train" for all runs: --flags="--batch-size 16"."""
    validation_fraction: float = 0.1
    """Share of the contents and of the styles that no variant sees, without --validation."""
    max_pairs: int = 64
    """Measure on at most this many triplets, evenly spread."""

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; expected one or more different ones.")
        if self.steps < 2 or self.max_pairs < 1 or not 0 < self.validation_fraction < 1:
            raise ValueError(
                "expected at least 2 steps, 1 of max_pairs, and a validation_fraction between 0 "
                "and 1."
            )
        whole = self.vary == "size" or all(float(point).is_integer() for point in self.points)
        if not whole or min(self.points, default=1) <= 0:
            raise ValueError(f"points are {self.points}; expected positive numbers of {self.vary}.")
        counted = self.vary in ("triplets", "styles", "size")
        if len(set(self.points)) < len(self.points) or (self.points and not counted):
            raise ValueError(
                f"points are {self.points}; expected different ones, none for {self.vary}."
            )


@dataclass(frozen=True)
class Variant:
    """One point of a curve."""

    label: str
    x: float
    """Its place on the curve's axis."""
    loss: str = "L1"
    flags: tuple[str, ...] = ()
    """Further ones of "style-distil train"."""
    student: str = "mini"
    """Preset of "style-distil train"."""
    rows: tuple[int, ...] | None = None
    """Triplets to train on; None for all that are not for validation."""
    note: str = ""
    """What the label does not say."""

    @property
    def title(self) -> str:
        """First cell of its row in the table."""
        return f"{self.label} ({self.note})" if self.note else self.label


@dataclass(frozen=True)
class Ablation:
    """What is varied, and the question behind it."""

    question: str
    axis: str
    variants: Sequence[Variant]
    categorical: bool = False
    """Whether the axis names its variants instead of counting something."""
    column: str | None = None
    """Head of the variants' column in the table; None: the axis."""
    painting: bool = False
    """Whether it is about painting: other measures, each variant compared with the first, and
    pictures in place of a curve."""

    @property
    def shown(self) -> Sequence[str]:
        """Measures in its table."""
        return PAINTED if self.painting else SHOWN

    @property
    def measured(self) -> Sequence[str]:
        """Measures that are taken."""
        return PAINTED if self.painting else MEASURED


@dataclass(frozen=True)
class AblationFigures:
    """What was measured."""

    by_variant: dict[str, list[Values]]
    """By label, one of every seed: by measure, by picture."""
    pairs: Sequence[tuple[str, str]]
    """Content and style of each picture."""
    teacher: dict[str, float]
    """The mean of each measure of the teacher's own pictures."""
    costs: dict[str, dict[str, dict]] | None = None
    """By label and side in pixels, what `student_jax.inference.cost` says of a variant's student;
    None where all variants cost the same."""

    def seeds(self, variant: Variant, measure: str) -> list[float]:
        """The mean of every seed."""
        return [float(np.mean(run[measure])) for run in self.by_variant[variant.label]]

    def side(self, variant: Variant, other: Variant, measure: str) -> int:
        """On which side of another variant one reliably lies; see `experiments.study.side`."""
        own, others = (
            np.array([run[measure] for run in self.by_variant[of.label]]) for of in (variant, other)
        )
        return side(own - others, self.pairs)


def vary_triplets(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float] = ()
) -> Ablation:
    """Some numbers of triplets, by default an eighth, a quarter, half and all of them.

    Each holds the ones before.

    Raises:
        InputError: more than there are.
    """
    shuffled = np.random.default_rng(0).permutation(train)
    counts = sorted(map(int, points)) or [n for d in (8, 4, 2, 1) if (n := len(train) // d)]
    if counts[-1] > len(train):
        raise InputError(f"{dataset!r} has {len(train)} triplets to train on, not {counts[-1]}.")
    variants = [Variant(str(n), float(n), rows=tuple(map(int, shuffled[:n]))) for n in counts]
    return Ablation("How many triplets does a student need?", "triplets", variants)


def vary_styles(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float] = ()
) -> Ablation:
    """As many triplets each time, of some numbers of styles.

    By default of all, of half of them, and so on down to an eighth. The fewest styles set the
    number of triplets, so those with fewer triplets than there are styles in all are left out. For
    example, 4 styles of 5 triplets each:

        styles   triplets of these styles   taken
        1        5                          1 of the style, and 4 others: all of them
        2        10                         1 of each style, and 3 others
        4        20                         1 of each style, and 1 other

    Raises:
        InputError: the fewest styles have fewer triplets than there are of the most styles.
    """
    pairs = dataset.pairs[train]
    styles = np.random.default_rng(0).permutation(np.unique(pairs[:, 1]))
    given = sorted(map(int, points))
    counts = given or sorted({max(1, len(styles) // d) for d in (8, 4, 2, 1)})
    chosen = [np.flatnonzero(np.isin(pairs[:, 1], styles[:n])) for n in counts]
    while not given and len(counts) > 1 and len(chosen[0]) < counts[-1]:
        counts, chosen = counts[1:], chosen[1:]
    budget = len(chosen[0])
    if len(counts) < 2 or not counts[-1] <= min(budget, len(styles)):
        raise InputError(
            f"the training part of {dataset!r} has {len(pairs)} triplets of {len(styles)} styles, "
            f"{budget} of its first {counts[0]}; expected several numbers of styles, the fewest of "
            "them with a triplet for each of the most."
        )
    variants = []
    for count, of_styles in zip(counts, chosen, strict=True):
        rows = np.random.default_rng(0).permutation(of_styles)
        # One triplet of every style first, so that as many styles as promised are there.
        _, first = np.unique(pairs[rows, 1], return_index=True)
        ordered = np.concatenate([rows[first], np.delete(rows, first)])[:budget]
        variants.append(Variant(str(count), float(count), rows=tuple(map(int, train[ordered]))))
    question = f"Are many styles better than few, in {budget} triplets each time?"
    return Ablation(question, "distinct styles", variants)


def vary_size(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float] = ()
) -> Ablation:
    """The mini student, and students with multiples of its widths, by default half and twice."""
    mini = MiniConfig()
    # What heads, the position encoding and the tail's halvings divide.
    unit = math.lcm(4, mini.num_heads, mini.content_stride)
    variants = []
    for factor in sorted(points or (0.5, 1.0, 2.0)):
        widths = tuple(max(1, round(factor * w)) for w in mini.content_widths)
        fields = {
            "content_widths": widths,
            "style_widths": widths,
            "hidden_dim": unit * max(1, round(factor * mini.hidden_dim / unit)),
            "mlp_dim": max(1, round(factor * mini.mlp_dim)),
            "tail_dim": unit * max(1, round(factor * mini.tail_dim / unit)),
        }
        flags = []
        for field, value in fields.items() if factor != 1 else ():
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--model.{field.replace('_', '-')}", *map(str, values)]
        millions = parameters_of(replace(mini, **fields)) / 1e6
        note = f"{millions:.2f} M"
        variants.append(Variant(f"{factor:g} x mini", millions, flags=tuple(flags), note=note))
    question, column = "How large must a student be?", "widths (parameters)"
    return Ablation(question, "million parameters", variants, column=column)


def vary_gram(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float] = ()
) -> Ablation:
    """L2 with both reductions of the Gram term, beside L1."""
    variants = [
        Variant("L1", 0.0),
        Variant("L2 (mean)", 1.0, "L2", ("--gram-reduction", "mean")),
        Variant("L2 (sum)", 2.0, "L2"),
    ]
    question = "What does the reduction of the Gram term change?"
    return Ablation(question, "loss and reduction", variants, categorical=True)


def vary_students(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float] = ()
) -> Ablation:
    """The convolutional student and the transformer of about its size."""
    variants = []
    for x, (student, note) in enumerate((("modulated", "convolutional"), ("mini", "transformer"))):
        millions = parameters_of(STUDENTS[student].config()) / 1e6
        note = f"{note}, {millions:.2f} M"
        variants.append(Variant(student, float(x), "paint", student=student, note=note))
    question = "Is the transformer worth it?"
    return Ablation(question, "student", variants, categorical=True, painting=True)


def vary_terms(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float] = ()
) -> Ablation:
    """The loss paint, the same without each of its terms, and L1; with the default student."""
    without = [
        Variant(
            f"without {term.replace('_', ' ')}",
            float(x),
            "paint",
            ("--without", term),
            DEFAULT_STUDENT,
        )
        for x, term in enumerate(terms("paint"), start=1)
    ]
    variants = [
        Variant("paint", 0.0, "paint", student=DEFAULT_STUDENT),
        *without,
        Variant("L1", len(without) + 1.0, "L1", student=DEFAULT_STUDENT),
    ]
    question = "What does each term of the loss paint do?"
    return Ablation(question, "loss", variants, categorical=True, painting=True)


def vary_painting(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float] = ()
) -> Ablation:
    """The loss paint beside those of the talk, with the default student."""
    variants = [
        Variant(loss, float(x), loss, student=DEFAULT_STUDENT)
        for x, loss in enumerate(("paint", "L1", "L2", "L3"))
    ]
    question = "With which loss does a student paint?"
    return Ablation(question, "loss", variants, categorical=True, painting=True)


ABLATIONS: dict[Varied, Callable[..., Ablation]] = {
    "triplets": vary_triplets,
    "styles": vary_styles,
    "size": vary_size,
    "gram": vary_gram,
    "students": vary_students,
    "terms": vary_terms,
    "painting": vary_painting,
}


def parameters_of(config: StudentConfig) -> int:
    """Trained numbers of a student that is not built."""
    return count_parameters(nnx.eval_shape(lambda: build_student(config, rngs=nnx.Rngs(0))))


def ablate(config: AblationConfig) -> None:
    """Run the ablation, or what is left of it; see `AblationConfig`.

    Raises:
        InputError: data that do not suit it, a training that failed, or no matplotlib.
    """
    enable_compilation_cache()
    dataset = TripletDataset(config.data)
    split = split_triplets(dataset, 0.0 if config.validation else config.validation_fraction)
    ablation = ABLATIONS[config.vary](dataset, split.train, config.points)
    if not ablation.painting:
        _figure_class()  # before the trainings, which take long
    validation = config.validation
    if validation is None:
        validation = subset(dataset, spread(split.validation, config.max_pairs), config.out).root
    examples = ExampleSet.of(config.test or validation, config.max_pairs)
    about = examples.about(dataset, split.train)
    runs = {}
    for variant in ablation.variants:
        rows = split.train if variant.rows is None else np.array(variant.rows)
        data = config.data
        if len(rows) < len(dataset):
            data = subset(dataset, rows.tolist(), config.out).root
        runs[variant.label] = [
            TrainingRun(
                root=config.out,
                data=data,
                validation=validation,
                loss=variant.loss,
                seed=seed,
                steps=config.steps,
                preset=variant.student,
                flags=(*variant.flags, *shlex.split(config.flags)),
            )
            for seed in config.seeds
        ]
    # All variants of a seed before the next seed: a curve stands as early as can be.
    ensure_all(run for column in zip(*runs.values(), strict=True) for run in column)
    judge = Judge(structure=False)
    measured = ablation.measured
    students = {variant.label: variant.student for variant in ablation.variants}
    figures = AblationFigures(
        {
            label: [measure_run(run, judge, examples, measured) for run in of]
            for label, of in runs.items()
        },
        examples.pairs,
        measure_baselines(config.out, judge, examples, measured)["teacher"],
        measure_costs(students) if len(set(students.values())) > 1 else None,
    )
    config.report.mkdir(parents=True, exist_ok=True)
    if ablation.painting:
        picture = f"{config.vary}.jpg"
        first = {label: of[0] for label, of in runs.items()}
        draw_pictures(first, examples, config.report / picture)
    else:
        picture = f"{config.vary}.png"
        draw_curve(ablation, figures, config.report / picture)
    record = ablation_record(config, ablation, figures, about)
    title = ablation.question
    write_report(config.report, config.vary, title, record, tables, picture=picture)


def subset(dataset: TripletDataset, rows: Sequence[int], folder: Path) -> TripletDataset:
    """A dataset of some of the triplets, with only their contents and styles.

    It is written once, in a folder of its own below `folder` that is named by a hash of them.
    """
    key = hashlib.sha256(json.dumps([dataset.fingerprint, *map(int, rows)]).encode()).hexdigest()
    pairs = dataset.pairs[list(rows)]
    used = [np.unique(column, return_inverse=True) for column in pairs.T]
    size = tuple(dataset.manifest["image_size"])
    contents, styles = (
        ImageSet(images[kept], [ids[i] for i in kept], [size] * len(kept))
        for images, ids, (kept, _) in zip(
            (dataset.contents, dataset.styles),
            (dataset.content_ids, dataset.style_ids),
            used,
            strict=True,
        )
    )
    writer = TripletWriter(
        folder / f"data-{key[:12]}",
        contents=contents,
        styles=styles,
        pairs=np.stack([indices for _, indices in used], axis=1),
        shard_size=SHARD_SIZE,
        provenance=dataset.manifest.get("provenance", {}),
    )
    for shard in writer.missing_shards():
        chosen = rows[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE]
        writer.write_shard(shard, np.stack([dataset[row].stylised for row in chosen]))
    return TripletDataset(writer.root)


def measure_costs(students: Mapping[str, str]) -> dict[str, dict[str, dict]]:
    """What a picture costs some students, by label and side in pixels."""
    program = "student_jax.inference.cost"
    return {
        label: {
            str(size): answer(program, student, str(size), "count")
            | answer(program, student, str(size), "run")
            for size in COST_SIZES
        }
        for label, student in students.items()
    }


def draw_pictures(runs: Mapping[str, TrainingRun], examples: ExampleSet, path: Path) -> None:
    """Write a figure of what some students make of a few pairs, evenly spread, beside the teacher.

    The pairs have different styles as far as there are so many.
    """
    stylists = {
        label: Stylist(open_student(str(run.workdir), "latest")) for label, run in runs.items()
    }
    _, first = np.unique([style for _, style in examples.pairs], return_index=True)
    rows = set(spread(np.sort(first), PICTURED))
    pictures = []
    for row, example in enumerate(examples.examples()):
        if row in rows:
            results = (stylist(example.content, example.style) for stylist in stylists.values())
            shown = (example.content, example.style, example.teacher, *results)
            pictures.append([uint8_from_float(picture) for picture in shown])
    write_figure(path, pictures, ("content", "style", "teacher", *runs))


def draw_curve(ablation: Ablation, figures: AblationFigures, path: Path) -> None:
    """Draw every seed as a point and the means as a line, one panel per measure.

    Means of categories are bars, since no line joins them.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = _figure_class()(figsize=(4.2 * len(CURVES), 3.2), layout="constrained")
    x = [variant.x for variant in ablation.variants]
    for axes, measure in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        values = [figures.seeds(variant, measure) for variant in ablation.variants]
        for variant, seeds in zip(ablation.variants, values, strict=True):
            axes.plot([variant.x] * len(seeds), seeds, "o", color="C0", alpha=0.4)
        average = [np.mean(seeds) for seeds in values]
        if ablation.categorical:
            axes.plot(x, average, "_", color="C0", markersize=40)
            axes.margins(x=0.25)
            axes.set_xticks(x, [variant.label for variant in ablation.variants])
        else:
            axes.plot(x, average, "-", color="C0")
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [_tick(value) for value in x])
        axes.minorticks_off()
        axes.set_xlabel(ablation.axis)
        axes.set_ylabel(f"{MEASURES[measure].title} to the teacher")
        axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _figure_class() -> type:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            'drawing curves needs matplotlib: pip install "style-distil[evaluation]".'
        ) from error
    return Figure


def _tick(x: float) -> str:
    return f"{x:.0f}" if x.is_integer() else f"{x:.3g}"


def ablation_record(
    config: AblationConfig, ablation: Ablation, figures: AblationFigures, about: dict[str, object]
) -> dict:
    """All that is reported, as JSON.

    Args:
        config: of the ablation.
        ablation: what was varied.
        figures: what was measured.
        about: the triplets that it was measured on.
    """
    record = {
        "settings": {
            "command": command_line("ablations", config),
            "machine": machine(),
            "steps": config.steps,
            "seeds": list(config.seeds),
        },
        "measured on": about,
        "column": ablation.column or ablation.axis,
        "measures": list(ablation.shown),
        "variants": [
            {
                "label": variant.label,
                "title": variant.title,
                "seeds": [finite(means(run)) for run in figures.by_variant[variant.label]],
            }
            for variant in ablation.variants
        ],
        "teacher": finite(figures.teacher),
    }
    if ablation.painting:
        return record | {"costs": figures.costs}
    least = min(ablation.variants, key=lambda variant: np.mean(figures.seeds(variant, "mse")))
    for variant, written in zip(ablation.variants, record["variants"], strict=True):
        written["reliably above the lowest MSE"] = figures.side(variant, least, "mse") > 0
    steps = [
        _between(before, after, measure, figures)
        for measure in CURVES
        for before, after in itertools.pairwise(ablation.variants)
    ]
    return record | {"steps between variants": steps}


def _between(
    before: Variant, after: Variant, measure: str, figures: AblationFigures
) -> dict[str, object]:
    """What the step from a variant to the next does to an error, as far as it is reliable."""
    old, new = (figures.seeds(variant, measure) for variant in (before, after))
    return {
        "measure": measure,
        "from": before.label,
        "to": after.label,
        "change": float(np.mean(new) / np.mean(old) - 1),
        "seeds": len(old),
        "seeds lower": sum(b < a for a, b in zip(old, new, strict=True)),
        "verdict": {1: "worse", -1: "better", 0: "unclear"}[figures.side(after, before, measure)],
    }


def tables(record: dict) -> dict[str, str]:
    """The tables of a page, from what its JSON holds."""
    written = {
        "settings": settings_table(record["settings"] | _measured_on(record["measured on"])),
        "measures": _measures_table(record),
    }
    if steps := record.get("steps between variants"):
        written["steps"] = _steps_table(steps)
    if costs := record.get("costs"):
        written["costs"] = _costs_table(costs)
    return written


def _measured_on(about: dict) -> dict[str, str]:
    pictures = f"{about['contents']} contents and {about['styles']} styles"
    return {
        "measured on": f"{about['triplets']} triplets of {pictures}",
        "also in the training": ", ".join(about["seen in training"]) or "none of them",
    }


def _measures_table(record: dict) -> str:
    """Variants and teacher down, measures across, with the spread over the seeds."""
    shown, last = record.get("measures", SHOWN), "reliably above the lowest MSE"
    judged = last in record["variants"][0]
    rows = []
    for variant in record["variants"]:
        cells = [spread_cell(m, [seed.get(m) for seed in variant["seeds"]]) for m in shown]
        verdict = ["yes" if variant[last] else "no"] if judged else []
        rows.append([variant["title"], *cells, *verdict])
    rows.append(["teacher", *(cell(m, record["teacher"].get(m)) for m in shown)])
    if judged:
        rows[-1].append("–")
    return markdown_rows(
        [record["column"], *map(heading, shown), *([last] if judged else [])], rows
    )


def _cost_cells(cost: dict) -> list[str]:
    peak = cost["peak_bytes"]  # None where the system does not tell
    memory = "–" if peak is None else f"{peak / 1e9:.2f}"
    return [f"{cost['flops'] / 1e9:.0f}", f"{cost['seconds']:.2f}", memory]


def _costs_table(costs: dict) -> str:
    """Students down, arithmetic, time and memory of a picture across."""
    sizes = list(next(iter(costs.values())))
    head = [f"{what}, {size} px" for size in sizes for what in ("GFLOP", "s", "peak memory (GB)")]
    rows = [
        [
            label,
            *(text for size in sizes for text in _cost_cells(of[size])),
        ]
        for label, of in costs.items()
    ]
    return markdown_rows(["a picture by", *head], rows)


def _steps_table(steps: Sequence[dict]) -> str:
    head = ["", "change", "seeds with less", "verdict"]
    rows = [
        [
            f"{MEASURES[step['measure']].title}, {step['from']} to {step['to']}",
            f"{100 * step['change']:+.1f} %",
            f"{step['seeds lower']} of {step['seeds']}",
            f"**{step['verdict']}**",
        ]
        for step in steps
    ]
    return markdown_rows(head, rows)
