"""Studies that help to decide: how many triplets, which pairs, how large a student, which Gram.

Each trains some variants of one thing, measures them on the same held-out triplets, and writes a
curve and a paragraph from the figures.
"""

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int

from experiments.runs import TrainingRun, ensure_all
from experiments.study import (
    MIN_SEEDS,
    ExampleSet,
    Values,
    baselines,
    command_line,
    judged,
    machine,
    means,
    side,
    spread_cell,
)
from student_jax.compilation import enable_compilation_cache
from student_jax.evaluation.evaluate import spread
from student_jax.evaluation.judge import MEASURES, Judge
from student_jax.evaluation.report import cell, heading, write_text
from student_jax.student import StudentConfig, build_student
from student_jax.students import MiniConfig
from student_jax.training.data import split_triplets
from triplets import ImageSet, InputError, TripletDataset, TripletWriter
from triplets.atomic import atomic_write

Study = Literal["triplets", "styles", "size", "gram"]
SHOWN = ("mse", "psnr", "ssim", "lpips", "style_gram", "style_histogram", "sharpness")
CURVES = ("mse", "lpips")
SHARD_SIZE = 256


@dataclass(frozen=True)
class AblationConfig:
    """Run one of the studies and write its curve and paragraph."""

    study: Study
    """triplets: fidelity by number of triplets; styles: many or few styles in as many triplets;
    size: fidelity by size of the student; gram: the two reductions of the Gram term, with L2."""
    data: Path
    """Triplet dataset of scripts/dump_teacher.py to train on."""
    validation: Path | None = None
    """Triplet dataset to validate on; by default a part of the training data is held out."""
    test: Path | None = None
    """Triplet dataset to measure on, of pictures that are in neither; by default that of the
    validation."""
    points: tuple[float | int, ...] = ()
    """What to try in place of the study's own: numbers of triplets, numbers of styles, or factors
    on the widths of the mini student."""
    out: Path = Path("runs/studies")
    """Folder of the runs, which studies share; the same command continues what was interrupted."""
    report: Path = Path("runs/experiments")
    """Folder for STUDY.md, STUDY.png and STUDY.json."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run for every variant and seed."""
    steps: int = 2000
    """Of each run."""
    flags: str = ""
    """Further flags of scripts/train_flax.py for all runs: --flags="--batch-size 16"."""
    held_out_fraction: float = 0.1
    """Share of the contents and of the styles that no variant sees, without --validation."""
    max_pairs: int = 64
    """Held-out triplets to measure on at most."""

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; expected one or more different ones")
        if self.steps < 2 or self.max_pairs < 1 or not 0 < self.held_out_fraction < 1:
            raise ValueError(
                "expected at least 2 steps, 1 of max_pairs, and a held_out_fraction between 0 and 1"
            )
        whole = self.study == "size" or all(float(point).is_integer() for point in self.points)
        if not whole or min(self.points, default=1) <= 0:
            raise ValueError(f"points are {self.points}; expected positive numbers of {self.study}")
        if len(set(self.points)) < len(self.points) or (self.points and self.study == "gram"):
            raise ValueError(f"points are {self.points}; expected different ones, none for gram")


@dataclass(frozen=True)
class Variant:
    """One point of a curve."""

    label: str
    x: float
    """Its place on the curve's axis."""
    loss: str = "L1"
    flags: tuple[str, ...] = ()
    """Further ones of scripts/train_flax.py."""
    rows: tuple[int, ...] | None = None
    """Triplets to train on; None for all that are not held out."""
    note: str = ""
    """What the label does not say."""

    @property
    def cell(self) -> str:
        """First cell of its row in the table."""
        return f"{self.label} ({self.note})" if self.note else self.label


@dataclass(frozen=True)
class Plan:
    """What a study varies, and what it asks."""

    question: str
    axis: str
    variants: Sequence[Variant]
    categorical: bool = False
    """Whether the axis names its variants instead of counting something."""
    column: str | None = None
    """Head of the variants' column in the table; None: the axis."""


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    by_variant: dict[str, list[Values]]
    """By label, one of every seed: by measure, by picture."""
    pairs: Sequence[tuple[str, str]]
    """Content and style of each picture."""
    teacher: dict[str, float]
    """The mean of each measure of the teacher's own pictures."""

    def seeds(self, variant: Variant, measure: str) -> list[float]:
        """The mean of every seed."""
        return [float(np.mean(run[measure])) for run in self.by_variant[variant.label]]

    def side(self, variant: Variant, other: Variant, measure: str) -> int:
        """On which side of another variant one surely lies; see `experiments.study.side`."""
        own, others = (
            np.array([run[measure] for run in self.by_variant[of.label]]) for of in (variant, other)
        )
        return side(own - others, self.pairs)


def plan_triplets(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float | int] = ()
) -> Plan:
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
    return Plan("How many triplets does a student need?", "triplets", variants)


def plan_styles(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float | int] = ()
) -> Plan:
    """As many triplets each time, of some numbers of styles.

    By default of all, of half of them, and so on down to an eighth where those have as many
    triplets as there are styles.

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
    return Plan(question, "distinct styles", variants)


def plan_size(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float | int] = ()
) -> Plan:
    """The mini student, and students with multiples of its widths, by default half and twice."""
    mini = MiniConfig()
    # What heads, the position encoding and the tail's halvings divide.
    unit = math.lcm(4, mini.num_heads, mini.content_stride)
    variants = []
    for factor in sorted(points or (0.5, 1, 2)):
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
        millions = count_parameters(replace(mini, **fields)) / 1e6
        note = f"{millions:.2f} M"
        variants.append(Variant(f"{factor:g} x mini", millions, flags=tuple(flags), note=note))
    question, column = "How large must a student be?", "widths (parameters)"
    return Plan(question, "million parameters", variants, column=column)


def plan_gram(
    dataset: TripletDataset, train: Int[np.ndarray, " p"], points: Sequence[float | int] = ()
) -> Plan:
    """L2 with both reductions of the Gram term, beside L1."""
    variants = [
        Variant("L1", 0.0),
        Variant("L2 (mean)", 1.0, "L2", ("--gram-reduction", "mean")),
        Variant("L2 (sum)", 2.0, "L2"),
    ]
    question = "What does the reduction of the Gram term change?"
    return Plan(question, "loss and reduction", variants, categorical=True)


PLANS: dict[Study, Callable[..., Plan]] = {
    "triplets": plan_triplets,
    "styles": plan_styles,
    "size": plan_size,
    "gram": plan_gram,
}


def count_parameters(config: StudentConfig) -> int:
    """Trained numbers of a student."""
    model = nnx.eval_shape(lambda: build_student(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def ablate(config: AblationConfig) -> None:
    """Run the study, or what is left of it; see `AblationConfig`.

    Raises:
        InputError: data that do not suit the study, a training that failed, or no matplotlib.
    """
    enable_compilation_cache()
    _figure_class()  # before the trainings, which take long
    dataset = TripletDataset(config.data)
    split = split_triplets(dataset, 0.0 if config.validation else config.held_out_fraction)
    plan = PLANS[config.study](dataset, split.train, config.points)
    validation = config.validation
    if validation is None:
        validation = subset(dataset, spread(split.held_out, config.max_pairs), config.out).root
    examples = ExampleSet.of(config.test or validation, config.max_pairs)
    described = examples.described(dataset, split.train)
    runs = {}
    for variant in plan.variants:
        rows = split.train if variant.rows is None else np.array(variant.rows)
        data = config.data
        if len(rows) < len(dataset):
            data = subset(dataset, rows.tolist(), config.out).root
        runs[variant.label] = [
            TrainingRun(
                *(config.out, data, validation, variant.loss, seed, config.steps),
                flags=(*variant.flags, *shlex.split(config.flags)),
            )
            for seed in config.seeds
        ]
    # All variants of a seed before the next seed: a curve stands as early as can be.
    ensure_all(run for column in zip(*runs.values(), strict=True) for run in column)
    judge = Judge(structure=False)
    figures = Figures(
        {label: [judged(run, judge, examples) for run in of] for label, of in runs.items()},
        examples.pairs,
        baselines(config.out, judge, examples)["teacher"],
    )
    config.report.mkdir(parents=True, exist_ok=True)
    plain = {label: list(map(means, of)) for label, of in figures.by_variant.items()}
    write_text(config.report / f"{config.study}.json", json.dumps(plain, indent=2))
    draw_curve(plan, figures, config.report / f"{config.study}.png")
    text = report_text(config, plan, figures, described)
    write_text(config.report / f"{config.study}.md", text)
    print(text)


def subset(dataset: TripletDataset, rows: Sequence[int], folder: Path) -> TripletDataset:
    """A dataset of some of the triplets, with only their contents and styles.

    It is written once, in a folder of its own below `folder` that is named by a hash of them.
    """
    of = hashlib.sha256(json.dumps([dataset.fingerprint, *map(int, rows)]).encode()).hexdigest()
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
        folder / f"data-{of[:12]}",
        contents=contents,
        styles=styles,
        pairs=np.stack([places for _, places in used], axis=1),
        shard_size=SHARD_SIZE,
        provenance=dataset.manifest.get("provenance", {}),
    )
    for shard in writer.missing_shards():
        chosen = rows[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE]
        writer.write_shard(shard, np.stack([dataset[row].stylised for row in chosen]))
    return TripletDataset(writer.root)


def draw_curve(plan: Plan, figures: Figures, path: Path) -> None:
    """Every seed as a point, one panel a measure; a line, or of categories a bar, is the mean.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = _figure_class()(figsize=(4.2 * len(CURVES), 3.2), layout="constrained")
    x = [variant.x for variant in plan.variants]
    for axes, measure in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        values = [figures.seeds(variant, measure) for variant in plan.variants]
        for place, of_variant in zip(x, values, strict=True):
            axes.plot([place] * len(of_variant), of_variant, "o", color="C0", alpha=0.4)
        means = [np.mean(of_variant) for of_variant in values]
        if plan.categorical:
            axes.plot(x, means, "_", color="C0", markersize=40)
            axes.margins(x=0.25)
            axes.set_xticks(x, [variant.label for variant in plan.variants])
        else:
            axes.plot(x, means, "-", color="C0")
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [_tick(place) for place in x])
        axes.minorticks_off()
        axes.set_xlabel(plan.axis)
        axes.set_ylabel(f"{MEASURES[measure].title} to the teacher")
        axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _figure_class() -> type:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            'drawing curves needs matplotlib: pip install "style-distil[evaluation]"'
        ) from error
    return Figure


def _tick(x: float) -> str:
    return f"{x:.0f}" if x.is_integer() else f"{x:.3g}"


def report_text(config: AblationConfig, plan: Plan, figures: Figures, described: str) -> str:
    """A paragraph, the curve and the table, in Markdown; all statements follow from the figures.

    Args:
        config: of the study.
        plan: what was varied.
        figures: what was measured.
        described: the triplets that it was measured on.
    """
    lines = [
        f"# {plan.question}",
        "",
        paragraph(plan, figures),
        "",
        f"![Curve]({config.study}.png)",
        "",
        f"| {plan.column or plan.axis} | {' | '.join(map(heading, SHOWN))} |",
        f"| --- |{' ---: |' * len(SHOWN)}",
    ]
    for variant in plan.variants:
        cells = [spread_cell(m, figures.seeds(variant, m)) for m in SHOWN]
        lines.append(f"| {variant.cell} | {' | '.join(cells)} |")
    lines.append(f"| teacher | {' | '.join(cell(m, figures.teacher[m]) for m in SHOWN)} |")
    seeds = "of one seed"
    if len(config.seeds) > 1:
        seeds = f"± standard deviation over {len(config.seeds)} seeds"
    lines += [
        "",
        f"Mean {seeds}, on {described}; {config.steps} steps each of the training's preset "
        f"`mini`. Machine: {machine()}.",
        "",
        "```",
        f"python scripts/ablations.py {command_line(config)}",
        "```",
    ]
    return "\n".join(lines)


def paragraph(plan: Plan, figures: Figures) -> str:
    """What each step from a variant to the next does to the errors, as far as it is sure."""
    sentences = []
    for measure in CURVES:
        steps = []
        for before, after in itertools.pairwise(plan.variants):
            old, new = (figures.seeds(v, measure) for v in (before, after))
            change = f"{100 * (np.mean(new) / np.mean(old) - 1):+.1f} %"
            sure = figures.side(after, before, measure)
            verb = {1: "worse", -1: "better", 0: "no sure difference"}[sure]
            lower = sum(b < a for a, b in zip(old, new, strict=True))
            steps.append(
                f"{after.label} against {before.label}: {verb} ({change}; lower in {lower} of "
                f"{len(old)} seeds)"
            )
        sentences.append(f"{MEASURES[measure].title} to the teacher, {'; '.join(steps)}.")
    best = min(plan.variants, key=lambda variant: np.mean(figures.seeds(variant, "mse")))
    others = [v.label for v in plan.variants if v != best and not figures.side(v, best, "mse")]
    least = f"The least mean squared error is that of {best.label}"
    unsure = f", not surely below that of {', '.join(others)}" if others else ""
    sentences.append(f"{least}{unsure}.")
    sentences.append(
        f"To be sure, {MIN_SEEDS} seeds or more must all lie on one side, and so must the 95 % "
        "interval over the pictures."
    )
    return " ".join(sentences)
