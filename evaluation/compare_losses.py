"""The study's experiment: L1, L2 and L3 from the same start, on the same triplets and seeds."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from evaluation.baselines import BASELINES
from evaluation.evaluate import held_out_triplets
from evaluation.gold_set import GoldSet
from evaluation.measures import MEASURES, Judge, on_pictures
from evaluation.report import cell, heading, write_figure, write_text
from evaluation.runs import TrainingRun, ensure_all, ensure_dump
from evaluation.study import (
    MEASURED,
    ExampleSet,
    judged,
    kept,
    machine,
    mean_and_spread,
    spread_cell,
)
from student_jax.compilation import enable_compilation_cache
from student_jax.pretrained import open_student
from student_jax.stylise import Stylist
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

    def differences(self, by_seed: dict[str, Sequence[dict[str, float]]]) -> list[float]:
        """Of each seed: how far the loss lies on the claimed side of L1, or minus that."""
        sign = 1 if self.relation == "above" else -1
        return [
            sign * (own[self.measure] - first[self.measure])
            for own, first in zip(by_seed[self.loss], by_seed["L1"], strict=True)
        ]


CLAIMS = (
    *(Claim(f"L1 is better than {loss}", loss, "mse", "above") for loss in ("L2", "L3")),
    *(Claim(f"L1 is better than {loss}", loss, "ssim", "below") for loss in ("L2", "L3")),
    *(Claim(f"L1 is better than {loss}", loss, "lpips", "above") for loss in ("L2", "L3")),
    Claim("L2 is less saturated than L1", "L2", "saturation", "below"),
    Claim("L3 is darker than L1", "L3", "brightness", "below"),
)


@dataclass(frozen=True)
class CompareConfig:
    """Train a student with each loss and several seeds, measure them all, write the report."""

    data: Path
    """Triplet dataset of scripts/dump_teacher.py to train on."""
    validation: Path | None = None
    """Triplet dataset to measure on; by default the training holds a part of its data out."""
    out: Path = Path("runs/studies")
    """Folder of the runs, which studies share; the same command continues what was interrupted."""
    report: Path = Path("docs/experiments")
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
        start = () if self.init_from is None else ("--init-from", self.init_from)
        return TrainingRun(
            *(self.out, self.data, self.validation, loss, seed, self.steps, self.preset),
            flags=(*start, *shlex.split(self.flags)),
        )


def compare_losses(config: CompareConfig) -> None:
    """Run the experiment, or what is left of it; see `CompareConfig`.

    Raises:
        InputError: data, a teacher or pictures that cannot be used, or a training that failed.
    """
    enable_compilation_cache()
    gold = GoldSet.load(config.own_gold)
    gold_dataset = TripletDataset(config.gold or stylise_gold_set(config, gold))
    runs = {loss: [config.run(loss, seed) for seed in config.seeds] for loss in LOSSES}
    # All losses of a seed before the next seed: a comparison stands as early as can be.
    ensure_all(run for column in zip(*runs.values(), strict=True) for run in column)

    sets = {
        HELD_OUT: ExampleSet(held_out_triplets(runs["L1"][0].workdir, config.max_pairs)),
        GOLD: ExampleSet([(gold_dataset, range(len(gold_dataset)))]),
    }
    judge = Judge(structure=False)
    by_seed = {
        loss: [{name: judged(run, judge, of) for name, of in sets.items()} for run in of_loss]
        for loss, of_loss in runs.items()
    }
    methods = {name: on_pictures(function) for name, function in BASELINES.items()}

    def take_baselines(of: ExampleSet) -> dict[str, dict[str, float]]:
        print(f"measuring teacher and baselines on {len(of)} pictures", flush=True)
        return judge.of_methods(methods, of.examples(), only=MEASURED).measures

    others = {
        name: kept(config.out / f"baselines-{of.key}.json", partial(take_baselines, of))
        for name, of in sets.items()
    }
    write_report(config, gold, gold_dataset, by_seed, others)


def stylise_gold_set(config: CompareConfig, gold: GoldSet) -> Path:
    """The gold set by the teacher of the training data, with the same settings: a dataset folder.

    Raises:
        InputError: the data do not say who made them, or their teacher has changed.
    """
    manifest = TripletDataset(config.data).manifest
    try:
        styleid = manifest["settings"]["styleid"]
        teacher = config.teacher or manifest["provenance"]["teacher"]
    except KeyError as error:
        raise InputError(
            f"{config.data} does not say which teacher made it ({error} is missing): stylise the "
            "gold set with it and give the result with --gold."
        ) from error
    of = json.dumps([gold.sha256, manifest["settings"]], sort_keys=True)
    folder = config.out / f"gold-{hashlib.sha256(of.encode()).hexdigest()[:12]}"
    gold.write(folder)
    flags = [
        *("--content", str(folder / "content"), "--style", str(folder / "style")),
        *("--pairs", str(folder / "pairs.csv"), "--teacher", teacher),
        *("--size", str(manifest["image_size"][0]), "--preset", styleid["convention"]),
        *("--steps", str(styleid["num_steps"]), "--gamma", str(styleid["gamma"])),
        *("--temperature", str(styleid["temperature"])),
        *("--injection-layers", *map(str, styleid["injection_layers"])),
        *("--dtype", manifest["settings"]["dtype"]),
    ]
    dataset = ensure_dump(folder / "triplets", flags)
    hashes = [m["settings"].get("weights_sha256") for m in (manifest, dataset.manifest)]
    if hashes[0] != hashes[1]:
        raise InputError(
            f"the teacher at {teacher} is not the one that made {config.data}: their weights "
            "differ; give the right one with --teacher."
        )
    return dataset.root


def write_report(
    config: CompareConfig,
    gold: GoldSet,
    gold_dataset: TripletDataset,
    by_seed: dict[str, list[dict[str, dict[str, float]]]],
    others: dict[str, dict[str, dict[str, float]]],
) -> None:
    """Write losses.md, losses.json and losses_gold.jpg."""
    runs = [config.run(loss, config.seeds[0]) for loss in LOSSES]
    stylists = [Stylist(open_student(str(run.workdir), "latest")) for run in runs]
    rows = []
    for triplet in gold_dataset:
        content, style = (float_from_uint8(image) for image in triplet[:2])
        rows.append([*triplet[:3], *(uint8_from_float(s(content, style)) for s in stylists)])
    config.report.mkdir(parents=True, exist_ok=True)
    captions = ("content", "style", "teacher", *LOSSES)
    write_figure(config.report / "losses_gold.jpg", rows, captions)
    text = report_text(config, gold, trained_on(config.data, gold_dataset), by_seed, others)
    write_text(config.report / "losses.md", text)
    figures = {"gold_set": gold.sha256, "steps": config.steps, "seeds": config.seeds}
    figures |= {"losses": by_seed, "baselines_and_teacher": others}
    # The teacher's ratio to itself is infinite, which JSON cannot say.
    plain = json.dumps(figures, default=list).replace("Infinity", "null")
    write_text(config.report / "losses.json", json.dumps(json.loads(plain), indent=2))
    print(text)


def trained_on(data: Path, gold_dataset: TripletDataset) -> list[str]:
    """Gold pictures whose file names are among the training data's."""
    training = TripletDataset(data)
    known = {Path(name).name for name in (*training.content_ids, *training.style_ids)}
    return sorted(known & {*gold_dataset.content_ids, *gold_dataset.style_ids})


def report_text(
    config: CompareConfig,
    gold: GoldSet,
    seen: Sequence[str],
    by_seed: dict[str, list[dict[str, dict[str, float]]]],
    others: dict[str, dict[str, dict[str, float]]],
) -> str:
    """The report in Markdown; all of its statements follow from the figures."""
    dataset = TripletDataset(config.data)
    size = " x ".join(map(str, dataset.manifest["image_size"]))
    teacher = dataset.manifest.get("provenance", {}).get("teacher", "another program")
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
        f"python scripts/compare_losses.py {_command(config)}",
        "```",
    ]
    for name in (HELD_OUT, GOLD):
        lines += ["", f"## On the {name}", "", table(name, by_seed, others), ""]
        if name == HELD_OUT:
            lines.append(
                f"Mean over at most {config.max_pairs} triplets whose content and style no "
                "training saw, ± standard deviation over the seeds."
            )
        else:
            lines.append(
                f"Ten fixed pairs of sample pictures{' and own ones' if config.own_gold else ''}, "
                f"set {gold.sha256[:8]}; the picture shows seed {config.seeds[0]}."
            )
            if seen:
                lines.append(f"The training data hold some of these pictures: {', '.join(seen)}.")
            lines += ["", "![Gold set](losses_gold.jpg)"]
    lines += ["", "## Against the study", "", summary(by_seed), ""]
    lines += [f"- {sentence}" for sentence in verdicts(by_seed)]
    lines += ["", *_sharpness(by_seed, others)]
    return "\n".join(lines)


def table(
    name: str,
    by_seed: dict[str, list[dict[str, dict[str, float]]]],
    others: dict[str, dict[str, dict[str, float]]],
) -> str:
    """Losses, teacher and baselines down, measures across, with the spread over the seeds."""
    lines = [
        f"| | {' | '.join(map(heading, MEASURED))} |",
        f"| --- |{' ---: |' * len(MEASURED)}",
    ]
    for loss, runs in by_seed.items():
        cells = [spread_cell(m, [run[name][m] for run in runs]) for m in MEASURED]
        lines.append(f"| **{loss}** | {' | '.join(cells)} |")
    for method, values in others[name].items():
        lines.append(f"| {method} | {' | '.join(cell(m, values.get(m)) for m in MEASURED)} |")
    return "\n".join(lines)


def verdicts(by_seed: dict[str, list[dict[str, dict[str, float]]]]) -> list[str]:
    """What the figures say to each finding of the study, on both sets."""
    sentences = []
    for claim in CLAIMS:
        outcomes = []
        for name in (HELD_OUT, GOLD):
            of_set = {loss: [run[name] for run in runs] for loss, runs in by_seed.items()}
            differences = claim.differences(of_set)
            holds = sum(d > 0 for d in differences)
            mean, deviation = mean_and_spread(differences)
            digits = MEASURES[claim.measure].digits + 1
            outcomes.append(
                f"{_verdict(holds, len(differences))} on the {name} ({holds} of "
                f"{len(differences)} seeds; {claim.loss} lies {abs(mean):.{digits}f} ± "
                f"{deviation:.{digits}f} {claim.relation if mean > 0 else _other(claim.relation)} "
                "L1)"
            )
        title = MEASURES[claim.measure].title
        sentences.append(f"{claim.finding}, by {title}: {'; '.join(outcomes)}.")
    sentences.append(
        "L2 has more defects: no measure here counts defects; LPIPS and SSIM above come nearest, "
        "and the picture shows them."
    )
    return sentences


def summary(by_seed: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """How many of the study's findings the held-out triplets confirm."""
    of_set = {loss: [run[HELD_OUT] for run in runs] for loss, runs in by_seed.items()}
    counts = {"agreeing": 0, "disagreeing": 0, "undecided": 0}
    for claim in CLAIMS:
        holds = [difference > 0 for difference in claim.differences(of_set)]
        outcome = "agreeing" if all(holds) else "undecided" if any(holds) else "disagreeing"
        counts[outcome] += 1
    parts = ", ".join(f"{outcome}: {count}" for outcome, count in counts.items())
    seeds = len(by_seed["L1"])
    return (
        f"Of {len(CLAIMS)} comparisons on the held-out triplets, {parts}. To agree, a finding must "
        f"hold with every one of the {seeds} seeds, to disagree with none."
    )


def _verdict(holds: int, seeds: int) -> str:
    if holds == seeds:
        return "**agrees**"
    return "**disagrees**" if holds == 0 else "**undecided**"


def _other(relation: str) -> str:
    return "below" if relation == "above" else "above"


def _sharpness(
    by_seed: dict[str, list[dict[str, dict[str, float]]]],
    others: dict[str, dict[str, dict[str, float]]],
) -> list[str]:
    """Mean squared error rewards blur: say how much of the teacher's sharpness each loss keeps."""
    teacher = others[HELD_OUT]["teacher"]["sharpness"]
    shares = [
        f"{loss} {100 * np.mean([run[HELD_OUT]['sharpness'] for run in runs]) / teacher:.0f} %"
        for loss, runs in by_seed.items()
    ]
    return [
        "Mean squared error rewards blur, so read it beside the sharpness: of the teacher's on the "
        f"held-out triplets the students keep {', '.join(shares)}."
    ]


def _command(config: CompareConfig) -> str:
    default = CompareConfig(config.data)
    words = ["--data", str(config.data)]
    for name in (
        *("validation", "preset", "init_from", "seeds", "steps", "gold", "own_gold", "teacher"),
        "max_pairs",
    ):
        value = getattr(config, name)
        if value != getattr(default, name):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    if config.flags:
        words.append(f"--flags={config.flags}")  # without "=" its dashes would be taken for flags
    return shlex.join(words)
