"""Task length against preemption: a simulation of a dump on machines that may be taken away.

python benchmarks/preemption.py --rate 0.1

A worker takes the next task, starts it, and makes its shards one after the other; a finished shard
is never lost. Workers are preempted at random moments (a Poisson process) and replaced after a
while; the rest of a task is taken again first. No run of a real cluster is behind this: it shows
which number of tasks is a bad idea.
"""

import dataclasses
import heapq
import itertools
import random
import statistics
from collections import deque

import tyro


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """The dump and the machines."""

    shards: int = 39_063
    """Of the dump: 10 million pairs at 256 pairs per shard."""
    shard_minutes: float = 1.075
    """Time of a shard on one worker: 700 GPU-hours for all."""
    workers: int = 64
    """That run at the same time."""
    rate: float = 0.1
    """Preemptions of a worker per hour."""
    replacement_minutes: float = 5.0
    """Until another machine has taken the place of one that was preempted."""
    start_minutes: float = 1.0
    """Of each task: a process, the networks, the pictures."""
    spread: float = 0.2
    """Standard deviation of the workers' speeds, as a share."""
    tasks: tuple[int, ...] = (64, 256, 1024, 2048, 4096, 8192, 39_063)
    """Numbers of tasks to compare."""
    runs: int = 5
    """Simulations of each, whose median is shown."""
    seed: int = 0
    """Of the first of them."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one simulated dump took."""

    hours: float
    """Until the last shard."""
    preemptions: int
    lost_hours: float
    """Work on shards that were cut, over all workers."""
    idle_hours: float
    """Workers without a task while others still worked."""


def simulate(config: SimulationConfig, tasks: int, seed: int) -> Outcome:
    """One dump, event by event."""
    rng = random.Random(seed)
    each, more = divmod(config.shards, tasks)
    queue = deque(each + (task < more) for task in range(tasks))
    speeds = [max(0.2, rng.gauss(1, config.spread)) for _ in range(config.workers)]
    counter = itertools.count()
    # When a worker is free next, its number, and when it will be preempted.
    events = [(0.0, next(counter), worker, _life(config, rng)) for worker in range(config.workers)]
    end, preemptions, lost = 0.0, 0, 0.0
    finished = [0.0] * config.workers
    while queue and events:
        now, _, worker, preempted = heapq.heappop(events)
        if preempted <= now:  # while it had nothing to do
            preempted = now + _life(config, rng)
        shards = queue.popleft()
        minutes = config.shard_minutes / speeds[worker]
        done = now + config.start_minutes + shards * minutes
        if done <= preempted:
            end = max(end, done)
            finished[worker] = done
            heapq.heappush(events, (done, next(counter), worker, preempted))
            continue
        preemptions += 1
        worked = max(0.0, preempted - now - config.start_minutes)
        made = min(shards - 1, int(worked / minutes))
        lost += worked - made * minutes
        queue.appendleft(shards - made)
        again = preempted + config.replacement_minutes
        finished[worker] = preempted
        heapq.heappush(events, (again, next(counter), worker, again + _life(config, rng)))
    idle = sum(max(0.0, end - last) for last in finished)
    return Outcome(end / 60, preemptions, lost / 60, idle / 60)


def _life(config: SimulationConfig, rng: random.Random) -> float:
    """Minutes until a worker is preempted."""
    return rng.expovariate(config.rate / 60) if config.rate else float("inf")


def main(config: SimulationConfig) -> None:
    """Print a table over the numbers of tasks and the best of them."""
    ideal = config.shards * config.shard_minutes / 60 / config.workers
    print(
        f"{config.shards} shards of {config.shard_minutes} minutes, {config.workers} workers, "
        f"{config.rate} preemptions per worker and hour; without any loss: {ideal:.2f} h\n"
    )
    print("| tasks | shards per task | hours | of the ideal | preemptions | lost h | idle h |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    hours = {}
    for tasks in config.tasks:
        if tasks > config.shards:
            continue
        outcomes = [simulate(config, tasks, config.seed + run) for run in range(config.runs)]
        median = [
            statistics.median(column)
            for column in zip(*map(dataclasses.astuple, outcomes), strict=True)
        ]
        hours[tasks] = median[0]
        print(
            f"| {tasks} | {config.shards / tasks:.0f} | {median[0]:.2f} | {median[0] / ideal:.2f} "
            f"| {median[1]:.0f} | {median[2]:.1f} | {median[3]:.1f} |"
        )
    best = min(hours, key=hours.__getitem__)
    print(f"\nshortest with {best} tasks: {best / config.workers:.0f} per worker")


if __name__ == "__main__":
    main(tyro.cli(SimulationConfig, description=__doc__))
