"""The study's experiment: L1, L2 and L3 from the same start, on the same triplets and seeds."""

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from experiments.runs import TrainingRun, ensure_all, ensure_dump
from experiments.study import (
    MEASURED,
    MIN_SEEDS,
    ExampleSet,
    Values,
    baselines,
    command_line,
    judged,
    machine,
    mean_and_spread,
    means,
    side,
    spread_cell,
)
from student_jax.compilation import enable_compilation_cache
from student_jax.evaluation.evaluate import held_out_triplets
from student_jax.evaluation.gold_set import GoldSet
from student_jax.evaluation.judge import MEASURES, Judge
from student_jax.evaluation.measures.intervals import interval
from student_jax.evaluation.report import cell, finite, heading, write_figure, write_text
from student_jax.inference.stylist import Stylist
from student_jax.training import objective
from student_jax.training.checkpoint import load_config
from student_jax.training.data import split_triplets
from student_jax.weights.folder import open_student
from triplets import (
    InputError,
    TripletDataset,
    float_from_uint8,
    uint8_from_float,
)

LOSSES = ("L1", "L2", "L3")
HELD_OUT, GOLD = "held-out triplets", "gold set"


@dataclass(frozen=True)
class Claim:
    """Something that the study found by eye: a measure of one loss lies below L1's, or above it."""

    finding: str
    loss: str
    measure: str
    relation: Literal["below", "above"]

    of_one_loss: bool = False
    """The study says it of this loss alone, so the other one is shown beside it."""

    @property
    def sign(self) -> int:
        """Of the claimed difference from L1."""
        return 1 if self.relation == "above" else -1


CLAIMS = (
    *(Claim(f"L1 is better than {loss}", loss, "mse", "above") for loss in ("L2", "L3")),
    *(Claim(f"L1 is better than {loss}", loss, "ssim", "below") for loss in ("L2", "L3")),
    *(Claim(f"L1 is better than {loss}", loss, "lpips", "above") for loss in ("L2", "L3")),
    Claim("L2 is less saturated than L1", "L2", "saturation", "below", of_one_loss=True),
    Claim("L3 is darker than L1", "L3", "brightness", "below", of_one_loss=True),
)


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    by_loss: dict[str, list[dict[str, Values]]]
    """By loss, seed by seed: by set, by measure, by picture."""
    pairs: dict[str, list[tuple[str, str]]]
    """By set: content and style of each picture."""
    others: dict[str, dict[str, dict[str, float]]]
    """By set, teacher and baselines: the mean of each measure."""

    @property
    def num_seeds(self) -> int:
        """Runs of each loss."""
        return len(self.by_loss["L1"])

    def differences(
        self, loss: str, measure: str, of: str
    ) -> Float[np.ndarray, "num_seeds num_pictures"]:
        """By how much a loss lies above L1."""
        own, first = (
            np.array([run[of][measure] for run in self.by_loss[name]]) for name in (loss, "L1")
        )
        return own - first


@dataclass(frozen=True)
class CompareConfig:
    """Train a student with each loss and several seeds, measure them all, write the report."""

    data: Path
    """Triplet dataset of scripts/dump_teacher.py to train on."""
    validation: Path | None = None
    """Triplet dataset to validate on; by default the training holds a part of its data out."""
    test: Path | None = None
    """Triplet dataset to measure on, of pictures that are in neither; by default what the training
    validates on."""
    out: Path = Path("runs/studies")
    """Folder of the runs, which studies share; the same command continues what was interrupted."""
    report: Path = Path("runs/experiments")
    """Folder for losses.md, losses.json and losses_gold.jpg."""
    preset: Literal["mini", "reference"] = "mini"
    """Preset of scripts/train_flax.py."""
    init_from: str | None = None
    """Start every run from this student; by default from random weights, the same in all losses."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the random weights and the order of the data: one run for every loss and seed."""
    steps: int = 2000
    """Of each run. 9 runs of 2000 steps of the mini student take about a night on two cores."""
    flags: str = ""
    """Further flags of scripts/train_flax.py for all runs: --flags="--batch-size 16"."""
    gold: Path | None = None
    """Triplet dataset of the gold set's pairs; by default the teacher of --data stylises them."""
    own_gold: Path | None = None
    """Folder with content/ and style/: pairs to add to the gold set."""
    teacher: str | None = None
    """Where the teacher of --data is, if not where it was."""
    max_pairs: int = 64
    """Held-out triplets to measure on at most."""

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; expected one or more different ones")
        if self.steps < 2 or self.max_pairs < 1:
            raise ValueError("expected at least 2 steps and 1 of max_pairs")

    def run(self, loss: str, seed: int) -> TrainingRun:
        """The training with one loss and seed."""
        return TrainingRun(
            *(self.out, self.data, self.validation, loss, seed, self.steps, self.preset),
            *(self.init_from, tuple(shlex.split(self.flags))),
        )


def compare_losses(config: CompareConfig) -> None:
    """Run the experiment, or what is left of it; see `CompareConfig`.

    Raises:
        InputError: data, a teacher or pictures that cannot be used, or a training that failed.
    """
    enable_compilation_cache()
    # Whatever is given is opened before the trainings, which take long.
    test = None if config.test is None else ExampleSet.of(config.test, config.max_pairs)
    gold = GoldSet.load(config.own_gold)
    gold_dataset = TripletDataset(config.gold or stylise_gold_set(config, gold))
    runs = {loss: [config.run(loss, seed) for seed in config.seeds] for loss in LOSSES}
    first = runs["L1"][0]
    # All losses of a seed before the next seed: a comparison stands as early as can be.
    ensure_all(run for column in zip(*runs.values(), strict=True) for run in column)

    sets = {
        HELD_OUT: test or ExampleSet(held_out_triplets(first.workdir, config.max_pairs)),
        GOLD: ExampleSet([(gold_dataset, range(len(gold_dataset)))]),
    }
    judge = Judge(structure=False)
    by_loss = {
        loss: [{name: judged(run, judge, of) for name, of in sets.items()} for run in of_loss]
        for loss, of_loss in runs.items()
    }
    others = {name: baselines(config.out, judge, of) for name, of in sets.items()}
    figures = Figures(by_loss, {name: of.pairs for name, of in sets.items()}, others)
    write_figures(config, gold_dataset)
    training = TripletDataset(config.data)
    fraction = 0.0 if config.validation else load_config(first.workdir)["held_out_fraction"]
    train = split_triplets(training, fraction).train
    described = {name: of.described(training, train) for name, of in sets.items()}
    text = report_text(config, gold, described, figures, objectives(runs))
    write_text(config.report / "losses.md", text)
    write_text(config.report / "losses.json", figures_json(config, gold, figures))
    print(text)


def stylise_gold_set(config: CompareConfig, gold: GoldSet) -> Path:
    """The gold set by the teacher of the training data, with the same settings: a dataset folder.

    Raises:
        InputError: the data do not say who made them, or their teacher has changed.
    """
    manifest = TripletDataset(config.data).manifest
    try:
        styleid = manifest["settings"]["styleid"]
        made_by = manifest["provenance"]
        # Datasets from before other methods than StyleID call the model the teacher.
        teacher = config.teacher or made_by.get("model") or made_by["teacher"]
    except KeyError as error:
        raise InputError(
            f"{config.data} does not say which teacher made it ({error} is missing): stylise the "
            "gold set with it and give the result with --gold."
        ) from error
    of = json.dumps([gold.sha256, manifest["settings"], teacher], sort_keys=True)
    folder = config.out / f"gold-{hashlib.sha256(of.encode()).hexdigest()[:12]}"
    gold.write(folder)
    flags = [
        *("--content", str(folder / "content"), "--style", str(folder / "style")),
        *("--pairs", str(folder / "pairs.csv"), "--model", teacher),
        *("--size", str(manifest["image_size"][0]), "--preset", styleid["convention"]),
        *("--steps", str(styleid["num_steps"]), "--gamma", str(styleid["gamma"])),
        *("--temperature", str(styleid["temperature"])),
        *("--injection-layers", *map(str, styleid["injection_layers"])),
        *("--dtype", manifest["settings"]["dtype"]),
    ]
    dataset = ensure_dump(folder / "triplets", flags)
    hashes = [m["settings"].get("weights_sha256") for m in (manifest, dataset.manifest)]
    if hashes[0] != hashes[1]:
        shutil.rmtree(folder)  # else it would be taken for finished once the teacher is mended
        raise InputError(
            f"the teacher at {teacher} is not the one that made {config.data}: their weights "
            "differ; give the right one with --teacher."
        )
    return dataset.root


def write_figures(config: CompareConfig, gold_dataset: TripletDataset) -> None:
    """Draw the gold set by the first seed's students: losses_gold.jpg."""
    runs = [config.run(loss, config.seeds[0]) for loss in LOSSES]
    stylists = [Stylist(open_student(str(run.workdir), "latest")) for run in runs]
    rows = []
    for triplet in gold_dataset:
        content, style = (float_from_uint8(image) for image in triplet[:2])
        rows.append([*triplet[:3], *(uint8_from_float(s(content, style)) for s in stylists)])
    config.report.mkdir(parents=True, exist_ok=True)
    captions = ("content", "style", "teacher", *LOSSES)
    write_figure(config.report / "losses_gold.jpg", rows, captions)


def figures_json(config: CompareConfig, gold: GoldSet, figures: Figures) -> str:
    """The mean of each measure, by loss, seed and set, with what they belong to."""
    losses = {
        loss: [{name: finite(means(values)) for name, values in run.items()} for run in runs]
        for loss, runs in figures.by_loss.items()
    }
    others = {
        name: {method: finite(values) for method, values in methods.items()}
        for name, methods in figures.others.items()
    }
    about = {"gold_set": gold.sha256, "steps": config.steps, "seeds": config.seeds}
    about |= {"losses": losses, "baselines_and_teacher": others}
    return json.dumps(about, indent=2, allow_nan=False)


def objectives(runs: dict[str, Sequence[TrainingRun]]) -> list[str]:
    """What each loss was made of at the end of its trainings, and what clipping left of it."""
    lines = [
        "| | squared error | Gram distance | share of the Gram term in the loss | norm of the "
        "gradient | steps with a clipped gradient |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    shares = {}
    for loss, of_loss in runs.items():
        logs = [_training_log(run.workdir) for run in of_loss]
        if not all(logs):
            return ["The trainings were too short to log a step."]
        config = load_config(of_loss[0].workdir)
        last = [line for log in logs for line in log[-max(1, len(log) // 10) :]]
        pixel, total, norm = (
            float(np.mean([line[name] for line in last]))
            for name in ("pixel", "loss", "gradient_norm")
        )
        shares[loss] = 1 - objective.LOSSES[loss].pixel * pixel / total
        clipped = np.mean(
            [line["gradient_norm"] > config["clip_norm"] for log in logs for line in log]
        )
        gram = f"{np.mean([line['gram'] for line in last]):.3f}" if "gram" in last[0] else "–"
        lines.append(
            f"| **{loss}** | {pixel:.5f} | {gram} | {100 * shares[loss]:.2f} % | {norm:.3g} | "
            f"{100 * clipped:.0f} % |"
        )
    crop = f"crops of {config['features_crop']} px" if config["features_crop"] else "whole crops"
    lines += [
        "",
        "Means over the seeds and the last tenth of the logged steps; the clipped ones are those "
        f"of all of them. Features: {config['features']} on {crop}, Gram reduction "
        f'"{config["gram_reduction"]}"; a gradient is clipped at a norm of '
        f"{config['clip_norm']:g}.",
    ]
    if min(shares["L2"], shares["L3"]) > 0.95:
        lines[-1] += (
            " In L2 and in L3 the Gram term is nearly all of the loss, whatever the weights: with "
            "this reduction the two are almost one objective at two scales, and neither Adam nor "
            "a clipped gradient heeds a scale. What tells them apart here is small."
        )
    return lines


def _training_log(workdir: Path) -> list[dict[str, int | float]]:
    """The lines that training wrote about its own steps."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def report_text(
    config: CompareConfig,
    gold: GoldSet,
    described: dict[str, str],
    figures: Figures,
    objectives: Sequence[str],
) -> str:
    """The report in Markdown; all of its statements follow from the figures.

    Args:
        config: of the experiment.
        gold: the gold set.
        described: by set, of what it consists.
        figures: what was measured.
        objectives: lines about the losses themselves.
    """
    dataset = TripletDataset(config.data)
    size = " x ".join(map(str, dataset.manifest["image_size"]))
    made_by = dataset.manifest.get("provenance", {})
    teacher = made_by.get("model") or made_by.get("teacher", "another program")
    lines = [
        "# L1, L2 and L3",
        "",
        "The study behind this project trained its student with three losses (L1: mean squared "
        "error; L2: half of it, half the Gram distance; L3: 0.7 and 0.3) and found, by error and "
        "by eye, that L1 is best, that L2 is less saturated and has more defects, and that L3 is "
        "darker. Here each loss starts from the same weights and sees the same triplets in the "
        "same order, once for every seed. `scripts/compare_losses.py` wrote this page from its "
        "figures.",
        "",
        f"Setup: {len(dataset)} triplets of {size} px by the teacher {Path(teacher).name!r}, the "
        f"{config.preset} student from "
        f"{'random weights' if config.init_from is None else config.init_from}, {config.steps} "
        f"steps, seeds {', '.join(map(str, config.seeds))}"
        f"{f', {config.flags}' if config.flags else ''}. Machine: {machine()}.",
        "",
        "```",
        f"python scripts/compare_losses.py {command_line(config)}",
        "```",
        "",
        "## On the held-out triplets",
        "",
        table(HELD_OUT, figures),
        "",
        f"Mean ± standard deviation over the seeds, on {described[HELD_OUT]}.",
        "",
        "## On the gold set",
        "",
        table(GOLD, figures),
        "",
        f"Fixed pairs of sample pictures{' and own ones' if config.own_gold else ''}, set "
        f"{gold.sha256[:8]}: {described[GOLD]}. The picture shows seed {config.seeds[0]}.",
        "",
        "![Gold set](losses_gold.jpg)",
        "",
        "## What the losses consist of",
        "",
        *objectives,
        "",
        "## Against the study",
        "",
        summary(figures),
        "",
        *(f"- {sentence}" for sentence in verdicts(figures)),
        "",
        sharpness_text(figures),
    ]
    return "\n".join(lines)


def table(name: str, figures: Figures) -> str:
    """Losses, teacher and baselines down, measures across, with the spread over the seeds."""
    lines = [
        f"| | {' | '.join(map(heading, MEASURED))} |",
        f"| --- |{' ---: |' * len(MEASURED)}",
    ]
    for loss, runs in figures.by_loss.items():
        seeds = [means(run[name]) for run in runs]
        cells = [spread_cell(m, [seed[m] for seed in seeds]) for m in MEASURED]
        lines.append(f"| **{loss}** | {' | '.join(cells)} |")
    for method, values in figures.others[name].items():
        lines.append(f"| {method} | {' | '.join(cell(m, values.get(m)) for m in MEASURED)} |")
    return "\n".join(lines)


def verdict(claim: Claim, of: str, figures: Figures) -> str:
    """Whether a set of pictures confirms a finding, as far as `side` is sure."""
    differences = claim.sign * figures.differences(claim.loss, claim.measure, of)
    return {1: "agrees", -1: "disagrees", 0: "undecided"}[side(differences, figures.pairs[of])]


def verdicts(figures: Figures) -> list[str]:
    """What the figures say to each finding of the study, on both sets."""
    sentences = []
    for claim in CLAIMS:
        outcomes = []
        for of in (HELD_OUT, GOLD):
            text = f"**{verdict(claim, of, figures)}** on the {of} ("
            text += difference_text(claim.loss, claim.measure, of, figures)
            if claim.of_one_loss:
                (other,) = {"L2", "L3"} - {claim.loss}
                text += f"; {difference_text(other, claim.measure, of, figures)}"
            outcomes.append(f"{text})")
        title = MEASURES[claim.measure].title
        sentences.append(f"{claim.finding}, by {title}: {'; '.join(outcomes)}.")
    sentences.append(
        "L2 has more defects: no measure here counts defects; LPIPS and SSIM above come nearest, "
        "and the picture shows them."
    )
    return sentences


def difference_text(loss: str, measure: str, of: str, figures: Figures) -> str:
    """By how much a loss lies above L1, with the spread over the seeds and over the pictures."""
    differences = figures.differences(loss, measure, of)
    mean, deviation = mean_and_spread(differences.mean(axis=1).tolist())
    low, high = interval(differences.mean(axis=0), figures.pairs[of])
    digits = MEASURES[measure].digits + 1
    seeds = f" ± {deviation:.{digits}f} over the seeds" if figures.num_seeds > 1 else ""
    return (
        f"{loss} − L1: {mean:+.{digits}f}{seeds}, {low:+.{digits}f} to {high:+.{digits}f} over "
        "the pictures"
    )


def summary(figures: Figures) -> str:
    """How many of the study's findings the held-out triplets confirm, and what that takes."""
    found = [verdict(claim, HELD_OUT, figures) for claim in CLAIMS]
    seeds = figures.num_seeds
    text = (
        f"Of {len(CLAIMS)} comparisons on the held-out triplets {found.count('agrees')} agree "
        f"with the study and {found.count('disagrees')} disagree; undecided: "
        f"{found.count('undecided')}. "
    )
    if seeds < MIN_SEEDS:
        return f"{text}A verdict takes {MIN_SEEDS} seeds; here there are {seeds}."
    return (
        f"{text}To agree or to disagree, all {seeds} seeds must lie on one side (which chance "
        f"alone does in one of {2 ** (seeds - 1)} cases) and so must the 95 % interval over the "
        "pictures (contents and styles drawn with replacement)."
    )


def sharpness_text(figures: Figures) -> str:
    """Mean squared error rewards blur: say how much of the teacher's sharpness each loss keeps."""
    teacher = figures.others[HELD_OUT]["teacher"]["sharpness"]
    shares = [
        f"{loss} {100 * np.mean([run[HELD_OUT]['sharpness'] for run in runs]) / teacher:.0f} %"
        for loss, runs in figures.by_loss.items()
    ]
    return (
        "Mean squared error rewards blur, so read it beside the sharpness: of the teacher's on the "
        f"held-out triplets the students keep {', '.join(shares)}."
    )
