"""What studies share: judging the student of a training run, and saying where it was done."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from evaluation.measures import Example, Judge
from evaluation.report import write_text
from evaluation.runs import TrainingRun
from student_jax.pretrained import open_student
from student_jax.stylise import Stylist

Measures = dict[str, float]
ExampleSets = dict[str, Callable[[], Iterator[Example]]]


def kept(path: Path, key: str, take: Callable[[], dict]) -> dict:
    """What `take` returns, from a JSON file where that holds it already.

    `key` says what it was taken of: while it stays the same, so does the result.
    """
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            return stored["measures"]
    measures = take()
    write_text(path, json.dumps({"key": key, "measures": measures}, indent=2))
    return measures


def judged(
    run: TrainingRun, judge: Judge, sets: ExampleSets, key: str, only: Collection[str]
) -> dict[str, Measures]:
    """Measures of the student at the end of a run: the means over sets of examples, by their name.

    They are kept in judged.json of the run's workdir; see `kept`.
    """

    def take() -> dict[str, Measures]:
        # The last checkpoint, not the best: choosing by the error favours losses that are errors.
        stylist = Stylist(open_student(str(run.workdir), "latest"))
        print(f"measuring {run.workdir.name}", flush=True)
        means = {}
        for name, examples in sets.items():
            values = [judge.of_pair(stylist(e.content, e.style), e, only) for e in examples()]
            means[name] = {m: float(np.mean([of[m] for of in values])) for m in values[0]}
        return means

    return kept(run.workdir / "judged.json", f"{key} {run.steps} {sorted(only)}", take)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


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
