"""Who runs the processes of a dump, and what that will take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from triplets import InputError

TASKS_PER_WORKER = 32
"""A dead worker loses at most a task, and the last worker waits at most for one
(docs/scale.md, benchmarks/preemption.py)."""


@dataclass(frozen=True)
class EngineConfig:
    """By default this process works alone, or as one rank of several."""

    executor: Literal["local", "slurm", "ray"] | None = None
    """Let datatrove run the dump as tasks: in processes of this machine, as a job array of Slurm,
    or on a Ray cluster. The same command started again continues."""
    tasks: int | None = None
    """Parts of the work. What a dead worker leaves is taken again; by default 32 for each worker,
    at most one per shard."""
    workers: int = 1
    """Tasks that run at the same time."""
    logging_dir: str | None = None
    """Folder or address for the engine's logs, statistics and marks; by default logs/ in --out."""
    gpus_per_task: int = 0
    """GPUs that Slurm or Ray gives to each task."""
    cpus_per_task: int = 4
    """Processors that Slurm or Ray gives to each task."""
    memory_per_cpu: int = 4
    """GB of main memory for each of them."""
    partition: str | None = None
    """Partition of Slurm."""
    time_limit: str = "10:00:00"
    """After which Slurm ends a task."""
    setup: str | None = None
    """Shell command that each Slurm job begins with, such as "source venv/bin/activate"."""
    pairs_per_hour: float | None = None
    """Of one worker, for the plan; by default what finished tasks took."""
    price_per_hour: float | None = None
    """Of one worker, in any currency, for the plan."""

    def __post_init__(self):
        for name, least in (
            ("tasks", 1),
            ("workers", 1),
            ("cpus_per_task", 1),
            ("memory_per_cpu", 1),
            ("gpus_per_task", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {value}: expected at least {least}.")
        for name in ("pairs_per_hour", "price_per_hour"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {value}: expected a number above 0.")
        if self.executor == "slurm" and self.partition is None:
            raise InputError("--executor slurm needs the name of a --partition.")
        if self.executor is None and self.tasks is not None:
            raise InputError("--tasks belongs to --executor local, slurm or ray: give both.")


def share_shards(
    styles: Sequence[Int[np.ndarray, " _"]], tasks: int, group: int | None
) -> list[int]:
    """Which task makes each shard: runs of consecutive shards, as equal as they can be.

    Args:
        styles: rows of the styles of each shard.
        tasks: how many tasks there are.
        group: how many styles are prepared together, if that is worth keeping in one task: then
            shards that share their first group stay together. None to cut anywhere.
    """
    if group is None:
        pieces = np.arange(len(styles))
    else:
        order = np.unique(np.concatenate(styles))
        first = [np.searchsorted(order, rows.min()) // group for rows in styles]
        pieces = np.cumsum(np.diff(first, prepend=first[:1]) != 0)
    count = int(pieces[-1]) + 1
    return (pieces * min(tasks, count) // count).tolist()


@dataclass(frozen=True)
class Cost:
    """What is left of a dump, in the figures that decide whether to start it."""

    pairs: int
    """Left to stylise."""
    tasks: int
    """With work left."""
    workers: int
    num_bytes: int
    """Of the pixels that are left to write, before they are compressed."""
    pairs_per_hour: float | None
    """Of one worker, if known."""
    price_per_hour: float | None
    """Of one worker."""

    def __str__(self) -> str:
        lines = [
            f"plan: {self.pairs} pairs in {self.tasks} tasks, {self.workers} at a time; "
            f"{self.num_bytes / 1e9:.2f} GB of pixels"
        ]
        if self.pairs_per_hour is None:
            lines.append(
                "hours: known once a task is finished; --pairs-per-hour of a worker estimates them"
            )
        else:
            hours = self.pairs / self.pairs_per_hour
            at_once = max(1, min(self.workers, self.tasks))
            lines.append(
                f"hours: {hours:.2f} of one worker, {hours / at_once:.2f} of {at_once}, at "
                f"{self.pairs_per_hour:.0f} pairs per hour"
            )
            if self.price_per_hour is not None:
                lines.append(
                    f"cost: {hours * self.price_per_hour:.2f}, or "
                    f"{self.price_per_hour / self.pairs_per_hour:.6f} per pair"
                )
        return "\n".join(lines)
