"""What studies share: judging the student of a training run, and saying where it was done."""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from evaluation.evaluate import triplet_examples
from evaluation.measures import Example, Judge
from evaluation.report import cell, write_text
from evaluation.runs import TrainingRun
from student_jax.data import Triplets
from student_jax.pretrained import open_student
from student_jax.stylise import Stylist

Measures = dict[str, float]
MEASURED = (
    *("mse", "psnr", "ssim", "lpips", "content_lpips", "style_gram", "style_histogram"),
    *("brightness", "saturation", "sharpness"),
)
"""Measures that studies take."""


@dataclass(frozen=True)
class ExampleSet:
    """Triplets to measure on."""

    chosen: Sequence[tuple[Triplets, Sequence[int]]]
    """Datasets and indices."""

    @property
    def key(self) -> str:
        """Differs from that of other triplets."""
        text = repr([(repr(dataset), list(indices)) for dataset, indices in self.chosen])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return sum(len(indices) for _, indices in self.chosen)

    def examples(self) -> Iterator[Example]:
        """One at a time."""
        return triplet_examples(self.chosen)


def kept(path: Path, take: Callable[[], dict]) -> dict:
    """What `take` returns, from a JSON file where that holds it already."""
    if not path.is_file():
        write_text(path, json.dumps(take(), indent=2))
    return json.loads(path.read_text())


def judged(run: TrainingRun, judge: Judge, examples: ExampleSet) -> Measures:
    """Means of the measures of the student at the end of a run; kept in its workdir."""

    def take() -> Measures:
        # The last checkpoint, not the best: choosing by the error favours losses that are errors.
        stylist = Stylist(open_student(str(run.workdir), "latest"))
        print(f"measuring {run.workdir} on {len(examples)} pictures", flush=True)
        values = [
            judge.of_pair(stylist(example.content, example.style), example, MEASURED)
            for example in examples.examples()
        ]
        return {m: float(np.mean([of[m] for of in values])) for m in values[0]}

    return kept(run.workdir / f"measures-{examples.key}.json", take)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def spread_cell(measure: str, values: Sequence[float]) -> str:
    """Mean and spread over the seeds as they stand in a table; the mean alone of one seed."""
    mean, deviation = mean_and_spread(values)
    spread = f" ± {cell(measure, deviation)}" if len(values) > 1 else ""
    return f"{cell(measure, mean)}{spread}"


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
