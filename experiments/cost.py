"""Teacher against student: parameters, file size, arithmetic, time and memory of one picture."""

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.study import machine, read_kept
from student_jax.evaluation.report import write_text
from triplets import InputError

CARDS_GB = (2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 80)
"""Memory of common GPUs."""
CONTEXT_BYTES = 0.5e9
"""What a GPU's driver and libraries take beside the program, about."""
SIZE_MULTIPLE = 64
"""Sides in pixels suit Stable Diffusion's autoencoder and UNet, and all students."""
TILE = 8
"""Contents and styles of a dump that are sampled together on a CPU."""
PROC_STAT = Path("/proc/stat")
TITLES = {
    ("teacher", "mini"): "mini teacher",
    ("teacher", "sd15"): "Stable Diffusion 1.5 (teacher)",
    ("student", "mini"): "mini student",
    ("student", "reference"): "reference STTR (student)",
}


@dataclass(frozen=True)
class CostConfig:
    """Measure teachers and students on this machine and write cost.md and cost.json."""

    out: Path = Path("runs/experiments")
    """Folder of the report. Runs in its cost.json are kept if they were of the same models on this
    machine, with the same device and libraries; folders of weights are always run again."""
    teachers: tuple[str, ...] = ("mini", "sd15")
    """"mini" and "sd15" (with untrained weights, which cost the same), diffusers folders."""
    students: tuple[str, ...] = ("mini", "reference")
    """"mini" and "reference" (likewise), workdirs or exported folders."""
    sizes: tuple[int, ...] = (256, 512)
    """Sides of the square pictures in pixels, multiples of 64."""
    steps: int = 50
    """DDIM steps of the teachers."""
    device: Literal["cuda", "mps", "cpu"] | None = None
    """Of the teachers; by default the best that is there."""
    fresh: bool = False
    """Run all models again."""

    def __post_init__(self):
        if not self.sizes or any(size < 1 or size % SIZE_MULTIPLE for size in self.sizes):
            raise ValueError(
                f"sizes are {self.sizes}; expected one or more positive multiples of "
                f"{SIZE_MULTIPLE} px"
            )
        if not 2 <= self.steps <= 999:
            raise ValueError(f"steps is {self.steps}; expected 2 to 999")


class Case(NamedTuple):
    """One model at one size."""

    role: str
    model: str
    size: int

    @property
    def key(self) -> str:
        """Name in cost.json."""
        return f"{self.role} {self.model} {self.size}"

    @property
    def built_in(self) -> bool:
        """Whether no files decide what it is."""
        return (self.role, self.model) in TITLES

    @property
    def title(self) -> str:
        """Name in the report."""
        return TITLES.get((self.role, self.model), f"{Path(self.model).name} ({self.role})")


def measure_costs(config: CostConfig) -> None:
    """Count all models, run those that were not run here, then write the report.

    Raises:
        InputError: a model or a device that cannot be used, or a damaged cost.json.
    """
    path = config.out / "cost.json"
    costs = {} if config.fresh or not path.is_file() else read_kept(path).get("costs", {})
    cases = [
        *(Case("teacher", model, size) for model in config.teachers for size in config.sizes),
        *(Case("student", model, size) for model in config.students for size in config.sizes),
    ]
    here = place()
    for case in cases:
        print(f"count: {case.key} px", flush=True)
        # Counting is quick, and tells when a program has changed since it ran.
        of = {"machine": here, "device": config.device, "count": _measure(case, "count", config)}
        kept = costs.get(case.key, {})
        if not case.built_in or any(kept.get(name) != value for name, value in of.items()):
            print(f"run: {case.key} px", flush=True)
            costs[case.key] = of | {"run": _run(case, config)}
            write_text(path, json.dumps({"costs": costs}, indent=2))
    text = report_text(config, cases, costs, here)
    write_text(config.out / "cost.md", text)
    print(text)


def place() -> str:
    """The machine, and the versions of what runs teachers and students."""
    # Only the name of a GPU is wanted here; its memory is for the programs that are measured.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    versions = [machine()]
    for name in ("torch", "diffusers"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)


def _run(case: Case, config: CostConfig) -> dict:
    """Time and memory, and "others": the share of all cores' time that other programs took."""
    start, before = time.perf_counter(), others_seconds()
    ran = _measure(case, "run", config)
    others = None
    if before is not None:
        available = (time.perf_counter() - start) * os.cpu_count()
        others = max(0.0, others_seconds() - before) / available
    return ran | {"others": others}


def others_seconds() -> float | None:
    """CPU time since the start of the machine that was not of this program's finished children.

    None where the system does not tell.
    """
    if not PROC_STAT.is_file():
        return None
    ticks = [int(word) for word in PROC_STAT.read_text().split()[1:9]]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = ticks
    busy = user + nice + system + interrupts + soft_interrupts + stolen
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK") - own.children_user - own.children_system


def _measure(case: Case, what: Literal["count", "run"], config: CostConfig) -> dict:
    """In the model's own world, and in a process of its own, whose peak memory is its alone."""
    if case.role == "teacher":
        device = [config.device] if config.device and what == "run" else []
        words = [
            "teacher_torch.cost",
            case.model,
            str(case.size),
            str(config.steps),
            what,
            *device,
        ]
    else:
        words = ["student_jax.inference.cost", case.model, str(case.size), what]
    root = Path(__file__).parents[1]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    result = subprocess.run(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    if result.returncode:
        raise InputError(
            f"python -m {shlex.join(words)} ended with status {result.returncode}; its message is "
            "above."
        )
    return json.loads(result.stdout.strip().splitlines()[-1])


def cards(peak_bytes: float) -> list[int]:
    """The common GPU memories in GB that a program of this size fits in."""
    return [card for card in CARDS_GB if peak_bytes + CONTEXT_BYTES <= card * 1e9]


def smallest_card(peak_bytes: float) -> str:
    """The least of them, in words."""
    fits = cards(peak_bytes)
    return f"{fits[0]} GB" if fits else f"more than {CARDS_GB[-1]} GB"


def report_text(
    config: CostConfig, cases: Sequence[Case], costs: dict[str, dict], where: str
) -> str:
    """The tables and what they say about the study's claims, in Markdown."""
    lines = [
        "# What a picture costs",
        "",
        'The study found its student "ten times lighter" than its teacher. `scripts/cost.py` wrote '
        f"this page from its measures, on this machine: {where}.",
        "",
        "| model | size (px) | parameters (M) | file, float16 (MB) | GFLOP per picture | GFLOP as "
        "run | seconds per picture | peak memory (GB) | smallest GPU |",
        f"| --- |{' ---: |' * 8}",
    ]
    for case in cases:
        counted, ran = costs[case.key]["count"], costs[case.key]["run"]
        millions, peak = counted["parameters"] / 1e6, ran["peak_bytes"]
        cells = [
            f"{millions:.1f}",
            f"{2 * millions:.0f}",
            _number(counted["flops"] / 1e9),
            _number(_flops_as_run(counted) / 1e9),
            f"{ran['seconds']:,.2f}",
            *(["–"] * 2 if peak is None else [f"{peak / 1e9:.2f}", smallest_card(peak)]),
        ]
        lines.append(f"| {case.title} | {case.size} | {' | '.join(cells)} |")
    if config.teachers and config.students:
        lines += ["", *comparisons(config, costs)]
    counts = [costs[case.key]["count"] for case in cases if case.role == "teacher"]
    if counts:
        lines += ["", teacher_remark(config.steps, counts[0])]
    return "\n".join([*lines, "", *remarks(cases, [costs[case.key]["run"] for case in cases])])


def _flops_as_run(counted: dict) -> int:
    # A student has but one way to make a picture.
    return counted.get("flops_as_run", counted["flops"])


def comparisons(config: CostConfig, costs: dict[str, dict]) -> list[str]:
    """Each teacher against each student at the largest size, as a table and in words."""
    size = max(config.sizes)
    table, claims = [], []
    for teacher in config.teachers:
        for student in config.students:
            pair = Case("teacher", teacher, size), Case("student", student, size)
            large, small = (costs[case.key] for case in pair)
            times = ratios(large, small)
            titles = [case.title for case in pair]
            table.append(f"| {' / '.join(titles)} | {' | '.join(map(_number, times.values()))} |")
            holds = "holds" if times["parameters"] >= 10 else "does not hold"
            claims.append(
                f"- {titles[0]} has {_number(times['parameters'])} times the parameters of "
                f'{titles[1]}: "ten times lighter" {holds}.'
            )
            peaks = [measured["run"]["peak_bytes"] for measured in (large, small)]
            if None not in peaks:
                more = "more" if len(cards(peaks[1])) > len(cards(peaks[0])) else "no more"
                claims[-1] += (
                    f" It needs a GPU of {smallest_card(peaks[0])}, the student one of "
                    f"{smallest_card(peaks[1])}: the student runs on {more} video cards."
                )
    return [
        f"How many times as much the teacher takes at {size} px:",
        "",
        f"| teacher / student | {' | '.join(times)} |",
        f"| --- |{' ---: |' * len(times)}",
        *table,
        "",
        'So the study\'s claims "ten times lighter" (by parameters, which decide the size of the '
        'file) and "runs on many more video cards" come out like this:',
        "",
        *claims,
    ]


def ratios(teacher: dict, student: dict) -> dict[str, float | None]:
    """How many times as much the method takes; None where the two did not run on like devices."""
    counted, ran = teacher["count"], teacher["run"]
    alike = ran["device"].startswith("CPU") == student["run"]["device"].startswith("CPU")
    peaks = ran["peak_bytes"], student["run"]["peak_bytes"]
    # What this project's program computes again is not the method's.
    seconds = ran["seconds"] * counted["flops"] / _flops_as_run(counted)
    return {
        "parameters": counted["parameters"] / student["count"]["parameters"],
        "arithmetic": counted["flops"] / student["count"]["flops"],
        "time": seconds / student["run"]["seconds"] if alike else None,
        "memory": peaks[0] / peaks[1] if alike and None not in peaks else None,
    }


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.{0 if value >= 20 else 1 if value >= 1 else 2}f}"


def teacher_remark(steps: int, counted: dict) -> str:
    """What a picture of the teacher is."""
    method, as_run = counted["evaluations"], counted["evaluations_as_run"]
    # Of the three rows of a sampling step, two are content and style, computed again.
    sampled = (as_run - method) // 2
    in_tiles = (as_run - sampled) / TILE + sampled
    return (
        f"A teacher's picture is one content and one style, both inverted in {steps} steps, and "
        f"the sampling, by the paper's settings. StyleID needs {method} evaluations of the UNet "
        "for it where the features of content and style are kept from their inversion: this is the "
        "GFLOP per picture, which is compared. This project's teacher keeps no features but "
        "computes them again in each step of sampling, so that a picture alone takes it "
        f"{as_run} evaluations: this is what was run, and of its seconds the method's share of the "
        "arithmetic is compared. A dump of many pairs shares inversions and features: in tiles of "
        f"{TILE} x {TILE} a pair takes {in_tiles:.0f} evaluations."
    )


def remarks(cases: Sequence[Case], runs: Sequence[dict]) -> list[str]:
    """How the figures were taken."""
    devices = {
        f"{case.title} on {ran['device']} in {ran['dtype']}"
        for case, ran in zip(cases, runs, strict=True)
    }
    lines = [
        "A teacher's parameters are those of the UNet and the autoencoder: the text encoder is "
        "used once, for the empty text. One GFLOP is 10^9 operations of matrix products and "
        "convolutions, two for a multiply-add. Costs do not depend on the values of the weights, "
        "so they may be untrained.",
        "",
        f"Run: {'; '.join(sorted(devices))}. A teacher's seconds are those of 2 and 4 steps, "
        "continued to all of them. Memory is the allocator's peak on a GPU; on a CPU it is the "
        "weights and what the process grows by for one picture, of teachers and students alike, "
        "without what compiling takes (– where the system does not tell). The smallest GPU leaves "
        f"{CONTEXT_BYTES / 1e9} GB for the driver; measured on a CPU it is an estimate.",
    ]
    others = max((ran["others"] or 0 for ran in runs), default=0)
    if others * os.cpu_count() > 0.1:
        lines += [
            "",
            f"Other programs took up to {others:.0%} of the time of {os.cpu_count()} cores during "
            "a run: the seconds are too long.",
        ]
    return lines
