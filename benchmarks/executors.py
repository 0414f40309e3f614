"""What an engine costs: the mini teacher's dump by each of them, in CPU seconds.

python benchmarks/executors.py --processes 1 2

Each way makes a small dump and a large one. The difference is what a pair costs; the rest is what
a start costs, of the driver and of all workers, which is also what a killed worker loses beside
half a shard. CPU seconds, because they depend less than the clock's on what else the machine does.
"""

import dataclasses
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from triplets.bundled import SAMPLES


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes that work at the same time."""
    pairs: tuple[int, int] = (8, 40)
    """Of the two dumps; at most 40."""
    tasks_per_process: tuple[int, ...] = (1, 4)
    """Tasks of an engine for each process. One shows what the engine costs; every task prepares its
    contents and styles anew, which several show in addition."""
    size: int = 64
    """Side of the pictures in pixels."""
    steps: int = 20
    """Of the sampler."""
    repeats: int = 1
    """The least of so many measurements counts."""


def command(
    way: str, processes: int, tasks: int, pairs: int, out: Path, config: BenchmarkConfig
) -> list[str]:
    """How to start a dump."""
    words = ["--content", SAMPLES / "content", "--style", SAMPLES / "style", "--out", out]
    words += ["--size", config.size, "--steps", config.steps, "--pairs", f"random:{pairs}"]
    words += ["--tile", 2, "--dtype", "float32", "--device", "cpu"]
    module = ["-m", "style_distil", "dump"]
    start = [sys.executable, *module]
    if way == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", processes]
        start = [sys.executable, *torchrun, "--rdzv-endpoint", "127.0.0.1:0", *module]
    elif way != "plain":
        words += ["--executor", way, "--workers", processes, "--tasks", tasks]
        words += ["--cpus-per-task", 1, "--memory-per-cpu", 2]
    return [str(word) for word in [*start, *words]]


def run(words: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a command with all processes that it waits for."""
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise SystemExit(said.decode()[-3000:])
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start


def main(config: BenchmarkConfig) -> None:
    """Print the table."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; mini teacher, "
        f"{config.size} px, {config.steps} steps; load {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| way | processes | tasks | CPU s per pair | of torchrun | CPU s of the start | wall s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for processes in config.processes:
        engines = ["local"] + (["ray"] if importlib.util.find_spec("ray") else [])
        ways = [("torchrun", processes)] + ([("plain", 1)] if processes == 1 else [])
        for engine in engines:
            ways += [(engine, processes * tasks) for tasks in config.tasks_per_process]
        base = None
        for way, tasks in ways:
            measured = []
            for pairs in config.pairs:
                attempts = []
                for _ in range(config.repeats):
                    with tempfile.TemporaryDirectory() as folder:
                        out = Path(folder) / "data"
                        attempts.append(run(command(way, processes, tasks, pairs, out, config)))
                measured.append(min(attempts))
            (few, _), (many, wall) = measured
            each = (many - few) / (config.pairs[1] - config.pairs[0])
            base = base or each
            start = few - each * config.pairs[0]
            ratio = "" if way == "ray" else f"{each / base:.2f}"  # Ray's workers are not its own
            print(
                f"| {way} | {processes} | {tasks} | {each:.2f} | {ratio} | {start:.1f} | "
                f"{wall:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
