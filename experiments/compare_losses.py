"""L1, L2 and L3 from the same start, on the same triplets and seeds.

The losses are those of E. Silvestrov, "Image Style Transfer for Distillation of Diffusion Knowledge
into a Transformer", talk, Lomonosov Moscow State University, November 2024.
"""

import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from experiments.pages import settings_table, write_report
from experiments.runs import TrainingRun, ensure_all, ensure_dump, teacher_flags
from experiments.study import (
    MEASURED,
    ExampleSet,
    Values,
    command_line,
    machine,
    mean_and_spread,
    means,
    measure_baselines,
    measure_run,
    side,
    spread_cell,
)
from student_jax.compilation import enable_compilation_cache
from student_jax.evaluation.examples import validation_triplets
from student_jax.evaluation.gold_set import GoldSet
from student_jax.evaluation.judge import MEASURES, Judge
from student_jax.evaluation.measures.intervals import interval
from student_jax.evaluation.report import cell, finite, heading, markdown_rows, write_figure
from student_jax.inference.stylist import Stylist
from student_jax.training import objective
from student_jax.training.checkpoint import load_config
from student_jax.training.data import split_triplets
from student_jax.weights.folder import open_student
from triplets import InputError, TripletDataset, float_from_uint8, uint8_from_float

LOSSES = ("L1", "L2", "L3")
TRIPLETS, GOLD = "triplets", "gold set"
"""The sets that students are measured on."""

Verdict = Literal["agrees", "disagrees", "undecided"]


@dataclass(frozen=True)
class Claim:
    """What the talk found, by error and by eye: a measure of one loss lies below L1's, or above."""

    loss: str
    measure: str
    relation: Literal["below", "above"]

    @property
    def sign(self) -> int:
        """Of the claimed difference from L1."""
        return 1 if self.relation == "above" else -1


CLAIMS = (
    Claim("L2", "mse", "above"),  # L1 is best
    Claim("L3", "mse", "above"),
    Claim("L2", "ssim", "below"),
    Claim("L3", "ssim", "below"),
    Claim("L2", "lpips", "above"),
    Claim("L3", "lpips", "above"),
    Claim("L2", "saturation", "below"),  # L2 is less saturated
    Claim("L3", "brightness", "below"),  # L3 is darker
)
CLAIMED = tuple(dict.fromkeys(claim.measure for claim in CLAIMS))
"""Measures that a claim is about; of these both losses are compared with L1."""


@dataclass(frozen=True)
class LossFigures:
    """What was measured."""

    by_loss: dict[str, list[dict[str, Values]]]
    """By loss, seed by seed: by set, by measure, by picture."""
    pairs: dict[str, list[tuple[str, str]]]
    """By set: content and style of each picture."""
    others: dict[str, dict[str, dict[str, float]]]
    """By set, teacher and baselines: the mean of each measure."""

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
    """Triplet dataset of "style-distil dump" to train on."""
    validation: Path | None = None
    """Triplet dataset to validate on; by default a part of the data."""
    test: Path | None = None
    """Triplet dataset to measure on, of pictures that are in neither; by default what the training
    validates on."""
    out: Path = Path("runs/studies")
    """Folder of the runs, which studies share; the same command continues what was interrupted."""
    report: Path = Path("runs/experiments")
    """Folder for losses.json, losses_gold.jpg and losses.md. If losses.md is there, only its tables
    are replaced."""
    preset: Literal["mini", "reference"] = "mini"
    """Preset of "style-distil train"."""
    init_from: str | None = None
    """Start every run from this student; by default from random weights, the same in all losses."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the random weights and the order of the data: one run for every loss and seed."""
    steps: int = 2000
    """Of each run. 9 runs of 2000 steps of the mini student take about a night on two cores."""
    flags: str = ""
    """Further flags of "style-distil train" for all runs: --flags="--batch-size 16"."""
    gold: Path | None = None
    """Triplet dataset of the gold set's pairs; by default the teacher of --data stylises them."""
    own_gold: Path | None = None
    """Folder with content/ and style/: pairs to add to the gold set."""
    model: str | None = None
    """Where the weights of --data's teacher are, if not where they were."""
    max_pairs: int = 64
    """Measure on at most this many triplets, evenly spread."""

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; expected one or more different ones.")
        if self.steps < 2 or self.max_pairs < 1:
            raise ValueError("expected at least 2 steps and 1 of max_pairs.")

    def run(self, loss: str, seed: int) -> TrainingRun:
        """The training with one loss and seed."""
        return TrainingRun(
            root=self.out,
            data=self.data,
            validation=self.validation,
            loss=loss,
            seed=seed,
            steps=self.steps,
            preset=self.preset,
            init_from=self.init_from,
            flags=tuple(shlex.split(self.flags)),
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
        TRIPLETS: test or ExampleSet(validation_triplets(first.workdir, config.max_pairs)),
        GOLD: ExampleSet([(gold_dataset, range(len(gold_dataset)))]),
    }
    judge = Judge(structure=False)
    figures = LossFigures(
        by_loss={
            loss: [
                {name: measure_run(run, judge, of) for name, of in sets.items()} for run in of_loss
            ]
            for loss, of_loss in runs.items()
        },
        pairs={name: of.pairs for name, of in sets.items()},
        others={name: measure_baselines(config.out, judge, of) for name, of in sets.items()},
    )
    write_figures(config, gold_dataset)
    training = TripletDataset(config.data)
    fraction = 0.0 if config.validation else load_config(first.workdir)["validation_fraction"]
    train = split_triplets(training, fraction).train
    about = {name: of.about(training, train) for name, of in sets.items()}
    about[GOLD]["sha256"] = gold.sha256
    write_report(
        config.report,
        "losses",
        "L1, L2 and L3",
        loss_record(config, about, figures, objectives(runs)),
        tables,
        picture="losses_gold.jpg",
    )


def stylise_gold_set(config: CompareConfig, gold: GoldSet) -> Path:
    """The gold set by the teacher of the training data, with the same settings: a dataset folder.

    Raises:
        InputError: the data do not say who made them, or their teacher has changed.
    """
    manifest = TripletDataset(config.data).manifest
    try:
        teacher = teacher_flags(manifest, config.model)
    except KeyError as error:
        raise InputError(
            f"{config.data} does not say which teacher made it ({error} is missing): stylise the "
            "gold set with it and give the result with --gold."
        ) from error
    of = json.dumps([gold.sha256, manifest["settings"], teacher], sort_keys=True)
    folder = config.out / f"gold-{hashlib.sha256(of.encode()).hexdigest()[:12]}"
    gold.write(folder)
    flags = {
        "--content": folder / "content",
        "--style": folder / "style",
        "--pairs": folder / "pairs.csv",
        "--size": manifest["image_size"][0],
    }
    words = [str(word) for pair in flags.items() for word in pair]
    dataset = ensure_dump(folder / "triplets", [*words, *teacher])
    hashes = [m["settings"].get("weights_sha256") for m in (manifest, dataset.manifest)]
    if hashes[0] != hashes[1]:
        shutil.rmtree(folder)  # else it would be taken for finished once the teacher is mended
        raise InputError(
            f"the weights of the teacher are not those that made {config.data}; give the right "
            "ones with --model."
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


def objectives(runs: Mapping[str, Sequence[TrainingRun]]) -> dict[str, dict]:
    """What each loss was made of at the end of its trainings, and what clipping left of it.

    A training logs its loss, w pixel + (the other terms), and the pixel term itself, where w is the
    loss's weight of that term. So the share of the others in the loss is

        1 - w mean(pixel) / mean(loss)

    such as for L2, where w = 0.5, pixel = 0.01 and gram = 2: loss = 0.005 + 1, and the Gram term is
    1 - 0.005 / 1.005 = 99.50 % of it.

    Returns:
        By loss, the weights of its pixel and Gram terms; means over all seeds and the last tenth of
        their logged steps: pixel, gram (None: the loss has none), gram_share and gradient_norm; and
        clipped, the share of all logged steps whose gradient was clipped. Empty if the trainings
        were too short to log a step.
    """
    made_of = {}
    for loss, of_loss in runs.items():
        logs = [_training_log(run.workdir) for run in of_loss]
        if not all(logs):
            return {}
        ends = [line for log in logs for line in log[-max(1, len(log) // 10) :]]
        mean = {
            name: float(np.mean([line[name] for line in ends]))
            for name in ("pixel", "gram", "loss", "gradient_norm")
            if name in ends[0]
        }
        clip_norm = load_config(of_loss[0].workdir)["clip_norm"]
        clipped = [line["gradient_norm"] > clip_norm for log in logs for line in log]
        weights = objective.LOSSES[loss]
        made_of[loss] = {
            "weights": [weights.pixel, weights.gram],
            "pixel": mean["pixel"],
            "gram": mean.get("gram"),
            "gram_share": 1 - weights.pixel * mean["pixel"] / mean["loss"],
            "gradient_norm": mean["gradient_norm"],
            "clipped": float(np.mean(clipped)),
        }
    return made_of


def _training_log(workdir: Path) -> list[dict[str, float]]:
    """The lines that training wrote about its own steps."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def loss_record(
    config: CompareConfig,
    about: Mapping[str, Mapping[str, object]],
    figures: LossFigures,
    objectives: Mapping[str, Mapping],
) -> dict:
    """All that is reported, as JSON.

    Args:
        config: of the experiment.
        about: by set, of what it consists.
        figures: what was measured.
        objectives: what the losses were made of.
    """
    dataset = TripletDataset(config.data)
    provenance = dataset.manifest.get("provenance", {})
    model = provenance.get("model", provenance.get("teacher", "another program"))
    return {
        "settings": {
            "command": command_line("losses", config),
            "machine": machine(),
            "triplets": len(dataset),
            "size (px)": list(dataset.manifest["image_size"]),
            "teacher": Path(model).name,
            "student": config.preset,
            "from": config.init_from or "random weights",
            "steps": config.steps,
            "seeds": list(config.seeds),
        },
        "sets": about,
        "losses": {
            loss: [{name: finite(means(values)) for name, values in run.items()} for run in runs]
            for loss, runs in figures.by_loss.items()
        },
        "baselines_and_teacher": {
            name: {method: finite(values) for method, values in methods.items()}
            for name, methods in figures.others.items()
        },
        "differences_from_L1": [
            difference(loss, measure, of, figures)
            for of in figures.pairs
            for measure in CLAIMED
            for loss in ("L2", "L3")
        ],
        "objectives": objectives,
    }


def difference(loss: str, measure: str, of: str, figures: LossFigures) -> dict[str, object]:
    """By how much a loss lies above L1 on a set, how reliably, and what the talk claims of it."""
    differences = figures.differences(loss, measure, of)
    mean, deviation = mean_and_spread(differences.mean(axis=1).tolist())
    low, high = interval(differences.mean(axis=0), figures.pairs[of])
    claim = next((c for c in CLAIMS if (c.loss, c.measure) == (loss, measure)), None)
    return {
        "set": of,
        "loss": loss,
        "measure": measure,
        "mean": mean,
        "deviation": deviation,
        "low": float(low),
        "high": float(high),
        "talk": claim and claim.relation,
        "verdict": claim and verdict(claim, of, figures),
    }


def verdict(claim: Claim, of: str, figures: LossFigures) -> Verdict:
    """Whether a set of pictures confirms a claim, as far as `side` is reliable."""
    differences = claim.sign * figures.differences(claim.loss, claim.measure, of)
    return {1: "agrees", -1: "disagrees", 0: "undecided"}[side(differences, figures.pairs[of])]


def tables(record: dict) -> dict[str, str]:
    """The tables of the page, from what losses.json holds."""
    return {
        "settings": settings_table(record["settings"]),
        "sets": _sets_table(record["sets"]),
        "triplets": _measures_table(record, TRIPLETS),
        "triplets_differences": _differences_table(record, TRIPLETS),
        "gold": _measures_table(record, GOLD),
        "gold_differences": _differences_table(record, GOLD),
        "objectives": _objectives_table(record["objectives"]),
        "sharpness": _sharpness_table(record),
    }


def _sets_table(sets: dict) -> str:
    head = ["measured on", "triplets", "contents", "styles", "also in the training"]
    rows = []
    for name, about in sets.items():
        title = name if "sha256" not in about else f"{name} {about['sha256'][:8]}"
        numbers = (str(about[kind]) for kind in ("triplets", "contents", "styles"))
        rows.append([title, *numbers, ", ".join(about["seen in training"]) or "none"])
    return markdown_rows(head, rows)


def _measures_table(record: dict, of: str) -> str:
    """Losses, teacher and baselines down, measures across, with the spread over the seeds."""
    rows = [
        [f"**{loss}**", *(spread_cell(m, [run[of][m] for run in runs]) for m in MEASURED)]
        for loss, runs in record["losses"].items()
    ]
    for method, values in record["baselines_and_teacher"][of].items():
        rows.append([method, *(cell(m, values.get(m)) for m in MEASURED)])
    return markdown_rows(["", *map(heading, MEASURED)], rows)


def _differences_table(record: dict, of: str) -> str:
    head = ["", "difference from L1", "95 % interval over the pictures", "talk", "here"]
    rows = []
    for row in record["differences_from_L1"]:
        if row["set"] == of:
            digits = MEASURES[row["measure"]].digits + 1
            spread = "" if row["deviation"] is None else f" ± {row['deviation']:.{digits}f}"
            rows.append(
                [
                    f"{MEASURES[row['measure']].title}, {row['loss']}",
                    f"{row['mean']:+.{digits}f}{spread}",
                    f"{row['low']:+.{digits}f} to {row['high']:+.{digits}f}",
                    row["talk"] or "–",
                    f"**{row['verdict']}**" if row["verdict"] else "–",
                ]
            )
    return markdown_rows(head, rows)


def _objectives_table(objectives: dict) -> str:
    head = [
        "",
        "weights",
        "squared error",
        "Gram distance",
        "share of the Gram term in the loss",
        "norm of the gradient",
        "steps with a clipped gradient",
    ]
    rows = [
        [
            f"**{loss}**",
            ", ".join(f"{weight:g}" for weight in of["weights"]),
            f"{of['pixel']:.5f}",
            "–" if of["gram"] is None else f"{of['gram']:.3f}",
            f"{100 * of['gram_share']:.2f} %",
            f"{of['gradient_norm']:.3g}",
            f"{100 * of['clipped']:.0f} %",
        ]
        for loss, of in objectives.items()
    ]
    return markdown_rows(head, rows)


def _sharpness_table(record: dict) -> str:
    """How much of the teacher's sharpness the students keep on the triplets."""
    teacher = record["baselines_and_teacher"][TRIPLETS]["teacher"]["sharpness"]
    shares = [
        f"{100 * np.mean([run[TRIPLETS]['sharpness'] for run in runs]) / teacher:.0f} %"
        for runs in record["losses"].values()
    ]
    return markdown_rows(["", *record["losses"]], [["sharpness kept of the teacher's", *shares]])
