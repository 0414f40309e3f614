"""What studies share: judging the student of a training run, and saying where it was done."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from evaluation.measures import Example, Judge, on_pictures
from evaluation.report import write_text
from evaluation.runs import TrainingRun
from student_jax.pretrained import open_student
from student_jax.stylise import Stylist

Measures = dict[str, float]
ExampleSets = dict[str, Callable[[], Iterator[Example]]]


def judged(run: TrainingRun, judge: Judge, sets: ExampleSets, key: str) -> dict[str, Measures]:
    """Measures of the student at the end of a run on some sets of examples, by the set's name.

    They are kept in judged.json of the run's workdir, and read from there while `key`, which says
    what they were taken on, stays the same.
    """
    path = run.workdir / "judged.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        if (stored["key"], stored["steps"]) == (key, run.steps):
            return stored["measures"]
    # The last checkpoint, not the best: choosing by the error would favour losses that are errors.
    stylist = Stylist(open_student(str(run.workdir), "latest"))
    methods = {"student": on_pictures(stylist)}
    print(f"measuring {run.workdir}", flush=True)
    measures = {
        name: judge.of_methods(methods, examples()).measures["student"]
        for name, examples in sets.items()
    }
    write_text(path, json.dumps({"key": key, "steps": run.steps, "measures": measures}, indent=2))
    return measures


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def machine() -> str:
    """The machine and the versions, for a report."""
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else _processor()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "numpy")
    )
    return f"{len(jax.devices())} x {kind}, {os.cpu_count()} CPU cores; {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
