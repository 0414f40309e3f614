"""Teacher against student: parameters, file size, arithmetic, time and memory of one picture."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from evaluation.report import write_text
from evaluation.study import machine
from triplets import InputError

CARDS_GB = (2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 80)
"""Memory of common GPUs."""
CONTEXT_BYTES = 0.5e9
"""What a GPU's driver and libraries take beside the program, about."""
UNET = ("unet-float32", "unet-bfloat16")
"""Measures of one evaluation of a teacher's UNet."""
TITLES = {
    ("teacher", "mini"): "mini teacher",
    ("teacher", "sd15"): "Stable Diffusion 1.5 (teacher)",
    ("student", "mini"): "mini student",
    ("student", "reference"): "reference STTR (student)",
}


@dataclass(frozen=True)
class CostConfig:
    """Measure teachers and students on this machine and write cost.md and cost.json."""

    out: Path = Path("docs/experiments")
    """Folder of the report. Measures in its cost.json are kept, only missing ones are taken."""
    teachers: tuple[str, ...] = ("mini", "sd15")
    """"mini" and "sd15" (with untrained weights, which cost the same), diffusers folders."""
    students: tuple[str, ...] = ("mini", "reference")
    """"mini" and "reference" (likewise), workdirs or exported folders."""
    sizes: tuple[int, ...] = (256, 512)
    """Sides of the square pictures in pixels."""
    steps: int = 50
    """DDIM steps of the teachers."""
    run: tuple[str, ...] = ("mini", "reference")
    """Models to run; the others are counted, and of their teachers one evaluation of the UNet is
    run. A whole picture by Stable Diffusion takes a CPU half an hour: add sd15 on a GPU."""
    device: str | None = None
    """Of the teachers: "cuda", "mps" or "cpu"; by default the best that is there."""
    fresh: bool = False
    """Take all measures again."""


class Case(NamedTuple):
    """One model at one size."""

    role: str
    model: str
    size: int

    @property
    def key(self) -> str:
        """Name in cost.json."""
        return f"{self.role} {self.model} {self.size}"


def measure_costs(config: CostConfig) -> None:
    """Take what is missing, then write the report; see `CostConfig`.

    Raises:
        InputError: a model that cannot be measured.
    """
    path = config.out / "cost.json"
    costs = {} if config.fresh or not path.is_file() else json.loads(path.read_text())["costs"]
    cases = [
        *(Case("teacher", model, size) for model in config.teachers for size in config.sizes),
        *(Case("student", model, size) for model in config.students for size in config.sizes),
    ]
    for case in cases:
        measures = costs.setdefault(case.key, {})
        whats = ["count"]
        if case.model in config.run:
            whats.append("run")
        elif case.role == "teacher" and case.size == max(config.sizes):
            whats += UNET
        for what in whats:
            if _name(what, config) not in measures:
                print(f"{what}: {case.key} px", flush=True)
                busy = os.getloadavg()[0]
                measures[_name(what, config)] = _measure(case, what, config) | {"busy": busy}
                write_text(path, json.dumps({"machine": machine(), "costs": costs}, indent=2))
    text = report_text(config, cases, costs)
    write_text(config.out / "cost.md", text)
    print(text)


def _name(what: str, config: CostConfig) -> str:
    """Under which a measure stands in cost.json."""
    return what if what in UNET else f"{what} {config.steps}"


def _measure(case: Case, what: str, config: CostConfig) -> dict:
    """In the model's own world, and in a process of its own, whose peak memory is its alone."""
    if case.role == "teacher":
        device = [config.device] if config.device and what != "count" else []
        words = ["teacher_torch.cost", case.model, str(case.size), str(config.steps), what, *device]
    else:
        words = ["student_jax.cost", case.model, str(case.size), what]
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


def smallest_card(peak_bytes: float) -> str:
    """The smallest common GPU memory that a program of this size fits in."""
    fits = [card for card in CARDS_GB if peak_bytes + CONTEXT_BYTES <= card * 1e9]
    return f"{fits[0]} GB" if fits else f"more than {CARDS_GB[-1]} GB"


def report_text(config: CostConfig, cases: Sequence[Case], costs: dict[str, dict]) -> str:
    """The table and what it says about "ten times lighter", in Markdown."""
    lines = [
        "# What a picture costs",
        "",
        'The study found its student "ten times lighter" than its teacher. `scripts/cost.py` wrote '
        "this page from its measures, on this machine: " + machine() + ".",
        "",
        "| model | size (px) | parameters (M) | file, float16 (MB) | GFLOP per picture | seconds "
        "per picture | peak memory (GB) | smallest GPU |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in cases:
        counted, ran = (costs[case.key].get(_name(what, config)) for what in ("count", "run"))
        millions = counted["parameters"] / 1e6
        cells = [f"{millions:.1f}", f"{2 * millions:.0f}", f"{counted['flops'] / 1e9:,.0f}"]
        cells += _time_and_memory(ran) if ran else ["–"] * 3
        lines.append(f"| {_title(case)} | {case.size} | {' | '.join(cells)} |")
    lines += unet_table(config, cases, costs)
    lines += ["", *comparisons(config, costs), "", *remarks(config, cases, costs)]
    return "\n".join(lines)


def unet_table(config: CostConfig, cases: Sequence[Case], costs: dict[str, dict]) -> list[str]:
    """One evaluation of the UNet, and what follows for a picture, where no picture was run."""
    lines = []
    for case in cases:
        for what in UNET:
            if ran := costs[case.key].get(what):
                evaluations = costs[case.key][_name("count", config)]["flops"] / ran["flops"]
                lines.append(
                    f"| {_title(case)} | {case.size} | {ran['dtype']} | {ran['flops'] / 1e9:,.0f} "
                    f"| {' | '.join(_time_and_memory(ran))} | "
                    f"{evaluations * ran['seconds'] / 60:,.0f} |"
                )
    if not lines:
        return []
    return [
        "",
        "One evaluation of the UNet alone, of teachers that were not run, with the minutes that "
        "all the arithmetic of a picture would take at the same rate:",
        "",
        "| UNet of | size (px) | dtype | GFLOP | seconds | peak memory (GB) | smallest GPU | "
        "minutes per picture, about |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *lines,
    ]


def _title(case: Case) -> str:
    return TITLES.get((case.role, case.model), f"{Path(case.model).name} ({case.role})")


def _time_and_memory(ran: dict) -> list[str]:
    peak = ran["peak_bytes"]
    return [f"{ran['seconds']:.2f}", f"{peak / 1e9:.2f}", smallest_card(peak)]


def comparisons(config: CostConfig, costs: dict[str, dict]) -> list[str]:
    """How many times more each teacher takes than each student, at the largest size."""
    size = max(config.sizes)
    columns = (
        ("count", "parameters", "parameters"),
        ("count", "flops", "arithmetic"),
        ("run", "seconds", "time"),
        ("run", "peak_bytes", "memory"),
    )
    lines = [
        f"How many times as much the teacher takes at {size} px:",
        "",
        f"| teacher / student | {' | '.join(name for *_, name in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for teacher in config.teachers:
        for student in config.students:
            pair = [Case(*of, size) for of in (("teacher", teacher), ("student", student))]
            cells = []
            for what, field, _ in columns:
                large, small = (costs[case.key].get(_name(what, config)) for case in pair)
                ratio = large[field] / small[field] if large and small else None
                cells.append("–" if ratio is None else f"{ratio:,.{0 if ratio >= 20 else 1}f}")
            lines.append(f"| {' / '.join(map(_title, pair))} | {' | '.join(cells)} |")
    return lines


def remarks(config: CostConfig, cases: Sequence[Case], costs: dict[str, dict]) -> list[str]:
    """How the figures were taken."""
    runs = [
        (case, measures)
        for case in cases
        for what, measures in costs[case.key].items()
        if what == _name("run", config) or what in UNET
    ]
    lines = [
        f"A teacher's picture is one content and one style, both inverted in "
        f"{config.steps} steps, and the sampling, by the paper's settings. A dump of many pairs "
        "shares the inversions: in tiles of 8 x 8 and 50 steps a pair takes 74 evaluations of the "
        "UNet in place of 247. Its parameters are those of the UNet and the "
        "autoencoder: the text encoder is used once, for the empty text. One GFLOP is 10^9 "
        "operations of matrix products and convolutions, two for a multiply-add. Costs do not "
        "depend on the values of the weights, so they may be untrained.",
    ]
    if runs:
        devices = {f"{case.role}s on {ran['device']} in {ran['dtype']}" for case, ran in runs}
        lines += [
            "",
            f"Run: {'; '.join(sorted(devices))}. A teacher's seconds are those of 2 and 4 steps, "
            "continued to all of them. Its memory is the allocator's peak on a GPU, and the growth "
            "of the process elsewhere; the student's is what its compiled program holds. The "
            f"smallest GPU leaves {CONTEXT_BYTES / 1e9} GB for the driver; measured on a CPU it is "
            "an estimate.",
        ]
    busy = max((ran["busy"] for _, ran in runs), default=0)
    if busy > 0.5:
        lines += [
            "",
            "Other programs ran meanwhile, with a load average of up to "
            f"{busy:.1f} before a measure on {os.cpu_count()} cores: the seconds are too long.",
        ]
    return lines
