"""Teacher against student: parameters, file size, arithmetic, time and memory of one picture."""

import importlib.metadata
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.pages import settings_table, write_report
from experiments.runs import answer
from experiments.study import command_line, machine, read_kept
from student_jax.evaluation.report import markdown_rows, write_text

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
    """Measure teachers and students on this machine and write cost.json and cost.md."""

    out: Path = Path("runs/experiments")
    """Folder of the report. Runs in its cost.json are kept if they were of the same models on this
    machine, with the same device and libraries; folders of weights are always run again. If cost.md
    is there, only its tables are replaced."""
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
                f"{SIZE_MULTIPLE} px."
            )
        if not 2 <= self.steps <= 999:
            raise ValueError(f"steps is {self.steps}; expected 2 to 999.")


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
    where = here()
    for case in cases:
        print(f"count: {case.key} px", flush=True)
        # Counting is quick, and shows whether a program has changed since it ran.
        of = {"machine": where, "device": config.device, "count": _measure(case, "count", config)}
        kept = costs.get(case.key, {})
        if not case.built_in or any(kept.get(name) != value for name, value in of.items()):
            print(f"run: {case.key} px", flush=True)
            costs[case.key] = of | {"run": _run(case, config)}
            write_text(path, json.dumps({"costs": costs}, indent=2))
    record = {
        "settings": {
            "command": command_line("cost", config),
            "machine": where,
            "steps": config.steps,
            "left to the GPU's driver (GB)": CONTEXT_BYTES / 1e9,
        },
        "shown": [case._asdict() for case in cases],
        "costs": costs,
    }
    write_report(config.out, "cost", "What a picture costs", record, tables)


def here() -> str:
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

    None if the system does not say.
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
    return answer(*words)


def cards(peak_bytes: int) -> list[int]:
    """The common GPU memories in GB that a program of this size fits in."""
    return [card for card in CARDS_GB if peak_bytes + CONTEXT_BYTES <= card * 1e9]


def smallest_card(peak_bytes: int) -> str:
    """The least of them, in words."""
    fits = cards(peak_bytes)
    return f"{fits[0]} GB" if fits else f"more than {CARDS_GB[-1]} GB"


def tables(record: dict) -> dict[str, str]:
    """The tables of the page, from what cost.json holds."""
    cases = [Case(**fields) for fields in record["shown"]]
    costs = record["costs"]
    settings = record["settings"] | {
        "other programs, share of the cores at most": _others(cases, costs)
    }
    return {
        "settings": settings_table(settings),
        "costs": _costs_table(cases, costs),
        "ratios": _ratios_table(cases, costs),
        "evaluations": _evaluations_table(cases, costs),
    }


def _others(cases: list[Case], costs: Mapping[str, dict]) -> str:
    shares = [costs[case.key]["run"]["others"] for case in cases]
    known = [share for share in shares if share is not None]
    return f"{max(known):.0%}" if known else "unknown"


def _costs_table(cases: list[Case], costs: Mapping[str, dict]) -> str:
    head = [
        "model",
        "size (px)",
        "parameters (M)",
        "file, float16 (MB)",
        "GFLOP per picture",
        "GFLOP as run",
        "seconds per picture",
        "peak memory (GB)",
        "smallest GPU",
        "run on",
    ]
    rows = []
    for case in cases:
        counted, ran = costs[case.key]["count"], costs[case.key]["run"]
        millions, peak = counted["parameters"] / 1e6, ran["peak_bytes"]
        memory = ["–", "–"] if peak is None else [f"{peak / 1e9:.2f}", smallest_card(peak)]
        rows.append(
            [
                case.title,
                str(case.size),
                f"{millions:.1f}",
                f"{2 * millions:.0f}",
                _number(counted["flops"] / 1e9),
                _number(_flops_as_run(counted) / 1e9),
                f"{ran['seconds']:,.2f}",
                *memory,
                f"{ran['device']}, {ran['dtype']}",
            ]
        )
    return markdown_rows(head, rows)


def _ratios_table(cases: list[Case], costs: Mapping[str, dict]) -> str:
    """How many times as much each teacher takes as each student, at the largest size."""
    largest = [case for case in cases if case.size == max(case.size for case in cases)]
    teachers, students = (
        [case for case in largest if case.role == role] for role in ("teacher", "student")
    )
    head = ["teacher / student", "parameters", "arithmetic", "time", "memory"]
    head += ["ten times lighter", "runs on more GPUs"]
    rows = []
    for teacher in teachers:
        for student in students:
            large, small = costs[teacher.key], costs[student.key]
            times = ratios(large, small)
            rows.append(
                [
                    f"{teacher.title} / {student.title}",
                    *map(_number, times.values()),
                    "yes" if times["parameters"] >= 10 else "no",
                    _more_cards(large["run"]["peak_bytes"], small["run"]["peak_bytes"]),
                ]
            )
    return markdown_rows(head, rows)


def _more_cards(large: int | None, small: int | None) -> str:
    if large is None or small is None:
        return "–"
    return "yes" if len(cards(small)) > len(cards(large)) else "no"


def _evaluations_table(cases: list[Case], costs: Mapping[str, dict]) -> str:
    """UNet evaluations for one picture.

    Of the three rows of a sampling step as this project runs it, two are content and style, whose
    features are computed again. In tiles, these two and the inversions are shared by `TILE` pairs.
    """
    rows = []
    for case in cases:
        counted = costs[case.key]["count"]
        if case.role == "teacher":
            method, as_run = counted["evaluations"], counted["evaluations_as_run"]
            sampled = (as_run - method) // 2
            in_tiles = (as_run - sampled) / TILE + sampled
            rows.append([case.title, f"{method}", f"{as_run}", f"{in_tiles:.0f}"])
    head = ["UNet evaluations", "by the method", "as run", f"in tiles of {TILE} x {TILE} pairs"]
    return markdown_rows(head, list(dict.fromkeys(map(tuple, rows))))


def _flops_as_run(counted: dict) -> int:
    # A student has but one way to make a picture.
    return counted.get("flops_as_run", counted["flops"])


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
