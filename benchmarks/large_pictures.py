"""Memory of large pictures: what the plan says against what the process takes.

    python benchmarks/large_pictures.py --sizes 2048 4096 --max-memory 1 4 64

Each row is a process of its own (Linux only). "plan" is the bytes of `Stylist.plan`; "measured" the
largest resident memory while a picture is stylised, from its file to float pixels, above that just
before, with the programs compiled. Seconds are wall clock, in brackets those of all cores.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from fresh_process import table_cells
from PIL import Image

from triplets.bundled import SAMPLES


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sizes: tuple[int, ...] = (2048, 4096)
    """Sides of the square contents in pixels."""
    max_memory: tuple[float, ...] = (1, 4, 64)
    """GiB."""
    checkpoint: str = "mini"
    limit_s: float = 500
    """Seconds after which a measurement is given up."""


@dataclass(frozen=True)
class Worker:
    """One measurement, in a process of its own."""

    content: str
    size: int
    max_memory: float
    checkpoint: str


def main(config: Config) -> None:
    """Measure all, and print a table."""
    print("| px | limit GiB | plan | plan MiB | measured MiB | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for size in config.sizes:
            content = Path(folder, f"{size}.png")
            with Image.open(SAMPLES / "content" / "coffee.jpg") as photo:
                photo.convert("RGB").resize((size, size)).save(content, compress_level=1)
            for limit in config.max_memory:
                worker = Worker(str(content), size, limit, config.checkpoint)
                print(f"| {size} | {limit:g} | {_row(worker, config.limit_s)} |", flush=True)


def _row(worker: Worker, limit_s: float) -> str:
    cells = table_cells(__file__, asdict(worker), limit_s)
    return f"more than {limit_s:.0f} s | | | " if cells is None else " | ".join(cells)


def measure(worker: Worker) -> None:
    """Print one row."""
    from student_jax.compilation import enable_compilation_cache
    from student_jax.inference.stylist import Stylist
    from triplets import InputError
    from triplets.memory import PeakGrowth

    enable_compilation_cache()
    stylist = Stylist.from_pretrained(worker.checkpoint, max_memory=int(worker.max_memory * 2**30))
    style = stylist.encode_style(next((SAMPLES / "style").glob("*.jpg")))
    try:
        plan = stylist.plan(worker.size, worker.size, style)
    except InputError as error:
        print(json.dumps([str(error), "", "", ""]))
        return
    with PeakGrowth() as grown:
        wall, cores = time.perf_counter(), time.process_time()
        stylist(worker.content, style)
        wall, cores = time.perf_counter() - wall, time.process_time() - cores
    how = str(plan).partition(": ")[2].rpartition(", ")[0]
    seconds = f"{wall:.1f} ({cores:.1f})"
    print(json.dumps([how, f"{plan.bytes / 2**20:.0f}", f"{grown.bytes / 2**20:.0f}", seconds]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(Worker(**json.loads(sys.argv[2])))
    else:
        main(tyro.cli(Config, description=__doc__))
