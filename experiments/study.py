"""What studies share: measuring the student of a training run, and saying where it was done."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.runs import TrainingRun
from student_jax.evaluation import baselines
from student_jax.evaluation import judge as measures
from student_jax.evaluation.examples import spread, triplet_examples, triplet_ids
from student_jax.evaluation.judge import Example, Judge, on_pictures
from student_jax.evaluation.measures import networks, pixels, texture
from student_jax.evaluation.measures.intervals import interval
from student_jax.evaluation.measures.pixels import Picture
from student_jax.evaluation.overlap import seen_in_training
from student_jax.evaluation.report import cell, write_text
from student_jax.inference.stylist import Stylist
from student_jax.training.data import Triplets, open_triplets
from student_jax.weights.folder import open_student
from triplets import DatasetError, InputError, one_line
from triplets.format import load_json

Values = dict[str, list[float]]
"""By measure, its value of every picture."""
MEASURED = (
    "mse",
    "psnr",
    "ssim",
    "lpips",
    "content_lpips",
    "style_gram",
    "style_histogram",
    "brightness",
    "saturation",
    "sharpness",
)
"""Measures that studies take."""

MIN_SEEDS = 3
"""Fewer say too little about chance."""
PROGRAMS = (measures, pixels, networks, texture, baselines)
"""Modules that decide what is measured."""


@dataclass(frozen=True)
class ExampleSet:
    """Triplets to measure on."""

    chosen: Sequence[tuple[Triplets, Sequence[int]]]
    """Datasets and indices."""

    @classmethod
    def of(cls, data: Path, max_pairs: int) -> "ExampleSet":
        """At most `max_pairs` of a dataset, evenly spread.

        Raises:
            InputError: no triplets there.
        """
        dataset = open_triplets(str(data))
        return cls([(dataset, spread(np.arange(len(dataset)), max_pairs))])

    @property
    def key(self) -> str:
        """Differs for other triplets, and for figures that another program takes of the same."""
        parts = [(dataset.fingerprint, list(map(int, indices))) for dataset, indices in self.chosen]
        digest = hashlib.sha256(json.dumps(parts).encode())
        for module in PROGRAMS:
            digest.update(Path(module.__file__).read_bytes())
        return digest.hexdigest()[:12]

    def __len__(self) -> int:
        return sum(len(indices) for _, indices in self.chosen)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Content and style of each triplet."""
        return triplet_ids(self.chosen)

    def examples(self) -> Iterator[Example]:
        """One at a time."""
        return triplet_examples(self.chosen)

    def about(self, training: Triplets, train: Int[np.ndarray, " p"]) -> dict[str, object]:
        """How many there are, and what of them is also in the triplets that were trained on."""
        contents, styles = (len(set(column)) for column in zip(*self.pairs, strict=True))
        seen = [
            name
            for dataset, indices in self.chosen
            for name in seen_in_training(training, train, dataset, np.array(indices))
        ]
        return {
            "triplets": len(self),
            "contents": contents,
            "styles": styles,
            "seen in training": seen,
        }


def kept(path: Path, take: Callable[[], dict]) -> dict:
    """What `take` returns, from a JSON file where that holds it already."""
    if not path.is_file():
        write_text(path, json.dumps(take(), indent=2))
    return read_kept(path)


def read_kept(path: Path) -> dict:
    """Figures of an earlier time.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return load_json(path)
    except DatasetError as error:
        raise InputError(f"{one_line(error)}; delete the file, to measure again.") from error


def measure_run(
    run: TrainingRun, judge: Judge, examples: ExampleSet, measured: Sequence[str] = MEASURED
) -> Values:
    """The measures of the student at the end of a run; kept in its workdir.

    A measure of a whole set has one value.
    """
    of_set = [measure for measure in measured if measures.MEASURES[measure].take_set]

    def take() -> Values:
        # The last checkpoint, not the best: choosing by the error favours losses that are errors.
        stylist = Stylist(open_student(str(run.workdir), "latest"))
        print(f"measuring {run.workdir} on {len(examples)} pictures", flush=True)
        values = []

        def seen(example: Example, results: dict[str, Picture]) -> None:
            values.append(judge.of_pair(results["student"], example, measured))

        methods = {"student": on_pictures(stylist)}
        whole = judge.of_methods(methods, examples.examples(), only=of_set, seen=seen)
        of_pictures = {m: [of[m] for of in values] for m in values[0]}
        return of_pictures | {m: [value] for m, value in whole.measures["student"].items()}

    return kept(run.workdir / f"measures-{measures_key(examples, measured)}.json", take)


def measures_key(examples: ExampleSet, measured: Sequence[str]) -> str:
    """Differs for other measures too, and names the file that keeps them."""
    return hashlib.sha256(json.dumps([examples.key, measured]).encode()).hexdigest()[:12]


def means(values: Values) -> dict[str, float]:
    """Of each measure, the mean over the pictures."""
    return {measure: float(np.mean(of)) for measure, of in values.items()}


def side(differences: Float[np.ndarray, "seeds pictures"], pairs: Sequence[tuple[str, str]]) -> int:
    """Whether a difference reliably lies above 0 (1), below (-1), or neither (0).

    It is reliable if all seeds, at least `MIN_SEEDS`, lie on one side and so does the `interval`
    over the pictures.
    """
    if len(differences) < MIN_SEEDS:
        return 0
    seeds = differences.mean(axis=1)
    low, high = interval(differences.mean(axis=0), pairs)
    if (seeds > 0).all() and low > 0:
        return 1
    return -1 if (seeds < 0).all() and high < 0 else 0


def measure_baselines(
    folder: Path, judge: Judge, examples: ExampleSet, measured: Sequence[str] = MEASURED
) -> dict[str, dict[str, float]]:
    """The mean of each measure of the teacher and of the baselines; kept in a study's folder."""

    def take() -> dict[str, dict[str, float]]:
        print(f"measuring teacher and baselines on {len(examples)} pictures", flush=True)
        methods = {name: on_pictures(function) for name, function in baselines.BASELINES.items()}
        return judge.of_methods(methods, examples.examples(), only=measured).measures

    return kept(folder / f"baselines-{measures_key(examples, measured)}.json", take)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def spread_cell(measure: str, values: Sequence[float | None]) -> str:
    """Mean and spread over the seeds as they stand in a table; the mean alone of one seed."""
    if None in values:  # as JSON holds what is infinite
        return cell(measure, None)
    mean, deviation = mean_and_spread(values)
    spread = "" if deviation is None else f" ± {cell(measure, deviation)}"
    return f"{cell(measure, mean)}{spread}"


def command_line(study: str, config: object) -> str:
    """The command that asks for a study again, wherever its runs and its report are to lie."""
    words = ["style-distil", "study", study]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in ("out", "report") or value == field.default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif field.name.endswith("flags"):
            words.append(f"{flag}={value}")  # without "=" its dashes would be taken for flags
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag, *map(_number, values)]
    return shlex.join(words)


def _number(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def machine() -> str:
    """The machine and the versions, for a report."""
    device = jax.devices()[0]
    processor = f"{_processor()}, {os.cpu_count()} CPU cores"
    if device.platform != "cpu":
        processor = f"{len(jax.devices())} x {device.device_kind}; {processor}"
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "numpy")
    )
    return f"{processor}; {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
