"""A dump as tasks of datatrove: in processes of this machine, on Slurm, or on a Ray cluster.

datatrove keeps logs, statistics and a mark of each finished task; whether a shard is finished, the
dataset alone says.
"""

import contextlib
import copy
import dataclasses
import functools
import gc
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter, deque
from multiprocessing import connection, get_context, parent_process
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from teacher_torch.devices import release_cached_memory
from teacher_torch.dump import DumpConfig, OpenedDump
from teacher_torch.engine import TASKS_PER_WORKER, Cost, EngineConfig
from teacher_torch.work import Work
from triplets import InputError, one_line
from triplets.storage import LOGS

MOST_DEATHS = 10
"""How often in a row workers may die over one task before it is given up: memory that runs out
would end them for ever."""

MOST_FAILURES = 3
"""How often a task may raise an error."""


def dump_by_executor(config: DumpConfig) -> None:
    """Run or continue a dump; see `EngineConfig`.

    Raises:
        InputError: what `dump` raises, an engine that is not there, or tasks that failed.
    """
    engine = config.engine
    if engine.executor == "slurm" and shutil.which("sbatch") is None:
        raise InputError(
            "--executor slurm needs the command sbatch: start it on a machine of the cluster."
        )
    # A class that was made for the command line alone cannot be sent to other processes.
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(DumpConfig)}
    config = DumpConfig(**fields)
    opened = open_once(config)
    all_shards = opened.work(0, 1).writer
    tasks = engine.tasks or min(all_shards.num_shards, TASKS_PER_WORKER * engine.workers)
    ranks = opened.shares(tasks)
    executor = make_executor(engine, DumpTask(config), tasks, f"{config.out}/{LOGS}")
    unfinished = all_shards.unfinished_shards()
    mark_tasks(executor, {ranks[shard] for shard in unfinished})
    pairs = sum(len(all_shards.shard_pairs(shard)) for shard in unfinished)
    cost = Cost(
        pairs,
        len({ranks[shard] for shard in unfinished}),
        engine.workers,
        pairs * opened.contents.images[0].nbytes,
        engine.pairs_per_hour or measured_rate(executor),
        engine.price_per_hour,
    )
    print(cost, flush=True)
    # The tasks load their own, and need the memory.
    open_once.cache_clear()
    opened.teacher = None
    gc.collect()
    release_cached_memory(opened.device)
    if unfinished:
        if engine.executor == "ray":
            connect_to_ray()
        executor.run()
    if engine.executor == "slurm":
        print("the job array is submitted; the same command continues it, or says what is there.")
        return
    missing = all_shards.unfinished_shards()
    if missing:
        raise InputError(
            f"{len(missing)} of {all_shards.num_shards} shards are missing: the logs in "
            f"{executor.logging_dir.path} say why, and the same command continues."
        )
    print(opened.summary(all_shards))


class DumpTask(PipelineStep):
    """One task: the shards of one rank."""

    type, name = "style-distil", "dump"

    def __init__(self, config: DumpConfig):
        super().__init__()
        self.config = config

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Make the shards that are missing, and count the pairs."""
        end_with_parent()
        opened = open_once(self.config)
        work: Work = opened.work(rank, world_size, at_styles=True)
        start = time.monotonic()
        pairs = sum(len(work.writer.shard_pairs(shard)) for shard in work.shards)
        work.run()
        self.stat_update("pairs", value=pairs)
        self.stat_update("milliseconds", value=round(1000 * (time.monotonic() - start)))


@functools.lru_cache(maxsize=1)
def open_once(config: DumpConfig) -> OpenedDump:
    """The teacher and the pictures, which a process keeps from one task to the next."""
    return OpenedDump(config, verbose=parent_process() is None)


def make_executor(
    engine: EngineConfig, step: DumpTask, tasks: int, logging_dir: str
) -> PipelineExecutor:
    """The engine's own object."""
    common = {
        "pipeline": [step],
        "tasks": tasks,
        "workers": engine.workers,
        "logging_dir": engine.logging_dir or logging_dir,
    }
    resources = {
        "cpus_per_task": engine.cpus_per_task,
        "gpus_per_task": engine.gpus_per_task,
        "mem_per_cpu_gb": engine.memory_per_cpu,
    }
    if engine.executor == "slurm":
        from datatrove.executor import SlurmPipelineExecutor

        return SlurmPipelineExecutor(
            **common,
            **resources,
            partition=engine.partition,
            time=engine.time_limit,
            env_command=engine.setup,
            job_name="style-distil",
        )
    if engine.executor == "ray":
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(**common, **resources)
    return RestartingExecutor(**common)


def mark_tasks(executor: PipelineExecutor, unfinished: set[int]) -> None:
    """Make the engine's marks agree with the dataset: shards may have been set aside, made by other
    means, or shared among another number of tasks."""
    marked = set(range(executor.world_size)) - set(executor.get_incomplete_ranks())
    for rank in marked & unfinished:
        executor.logging_dir.rm(f"completions/{rank:05d}")
    for rank in set(range(executor.world_size)) - unfinished:
        name = f"stats/{rank:05d}.json"
        if not executor.logging_dir.isfile(name):  # Ray adds up those of all tasks at the end
            with executor.logging_dir.open(name, "w") as file:
                PipelineStats(executor.pipeline).save_to_disk(file)
        if rank not in marked:
            executor.mark_rank_as_completed(rank)


def measured_rate(executor: PipelineExecutor) -> float | None:
    """Pairs per hour of a worker in the tasks that are finished; None if there are none."""
    totals = Counter()
    for name in executor.logging_dir.list_files("stats")[:1000]:
        try:
            with executor.logging_dir.open(name) as file:
                (step,) = json.load(file)
            for key in ("pairs", "milliseconds"):
                value = step["stats"][key]
                totals[key] += value["total"] if isinstance(value, dict) else value
        except (ValueError, KeyError, TypeError):
            continue  # a file of another version, or one that was cut
    if not totals["pairs"] or not totals["milliseconds"]:
        return None
    return totals["pairs"] / totals["milliseconds"] * 3.6e6


def connect_to_ray() -> None:
    """Join the cluster of this machine, or of RAY_ADDRESS; without one, start one here.

    Raises:
        InputError: no cluster at that address.
    """
    import ray

    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--executor ray: no cluster can be reached: {one_line(error)}; start one with ray "
            "start, or give its RAY_ADDRESS."
        ) from error


class RestartingExecutor(LocalPipelineExecutor):
    """datatrove's local executor, which waits for ever for a worker that was killed, with workers
    that are watched.

    Each worker keeps its teacher from task to task. A worker that dies is replaced, and its task is
    taken again.
    """

    def run(self) -> PipelineStats:
        """Run all tasks that are not marked as finished.

        Raises:
            InputError: tasks failed again and again; the others are finished.
        """
        self.save_executor_as_json()
        todo = deque(self.get_incomplete_ranks())
        deaths, failures, given_up = Counter(), Counter(), {}
        workers = [_Worker(self, number) for number in range(min(self.workers, len(todo)))]
        try:
            while todo or any(worker.rank is not None for worker in workers):
                for worker in workers:
                    if worker.rank is None and todo:
                        worker.start(todo.popleft())
                busy = [worker for worker in workers if worker.rank is not None]
                ready = connection.wait([worker.pipe for worker in busy])
                for worker in (worker for worker in busy if worker.pipe in ready):
                    rank, outcome = worker.finish()
                    if outcome is None:
                        deaths.pop(rank, None)
                    elif outcome is DIED:
                        deaths[rank] += 1
                        print(f"a worker died over task {rank}, which is taken again", flush=True)
                    else:
                        failures[rank] += 1
                    if outcome is not None:
                        if deaths[rank] < MOST_DEATHS and failures[rank] < MOST_FAILURES:
                            todo.appendleft(rank)
                        else:
                            given_up[rank] = outcome
        finally:
            for worker in workers:
                worker.stop()
        if given_up:
            rank, reason = next(iter(given_up.items()))
            raise InputError(
                f"{len(given_up)} tasks failed again and again, task {rank} with: "
                f"{reason.rstrip('.')}; the logs are in {self.logging_dir.path}."
            )
        return PipelineStats()


DIED = "its worker died"
"""Outcome of a task that ended with its process."""


class _Worker:
    """A process that does one task after another."""

    def __init__(self, executor: RestartingExecutor, number: int):
        self._executor, self._number = executor, number
        self._process: Any = None
        self.pipe: Any = None
        self.rank: int | None = None

    def start(self, rank: int) -> None:
        """Give it a task; a process is started if there is none."""
        self.rank = rank
        if self._process is None:
            # Not forked: this process may hold a GPU and threads.
            context = get_context("spawn")
            self.pipe, theirs = context.Pipe()
            arguments = (self._executor, self._number, theirs)
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            with _environment(LOCAL_RANK=str(self._number), **_threads(self._executor.workers)):
                self._process.start()
            theirs.close()
        with contextlib.suppress(OSError):  # dead already, which reading finds, too
            self.pipe.send(rank)

    def finish(self) -> tuple[int, str | None]:
        """The task that ended, and None, `DIED` or the error."""
        rank, self.rank = self.rank, None
        try:
            return rank, self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            return rank, DIED

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self.pipe.close()
            if self.rank is None:
                self._process.join(10)  # it has nothing to do, and tidies up
            self._process.kill()
            self._process.join()
            self._process = self.pipe = None


class _environment:
    """Variables that a process which is started meanwhile inherits."""

    def __init__(self, **variables: str):
        self._variables = variables

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _threads(workers: int) -> dict[str, str]:
    """As torchrun does it: processes that share a machine must not all take all of it."""
    if workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}


def _serve(executor: RestartingExecutor, number: int, pipe: connection.Connection) -> None:
    """Do the tasks that come through the pipe until it is closed."""
    end_with_parent()
    pipeline = executor.pipeline
    while True:
        try:
            rank = pipe.recv()
        except EOFError:
            return
        executor.pipeline = copy.deepcopy(pipeline)  # it adds up its statistics
        try:
            executor._run_for_rank(rank, number)
        except Exception as error:  # logged by the engine with its traceback
            pipe.send(f"{type(error).__name__}: {one_line(error)}")
        else:
            pipe.send(None)


@functools.cache
def end_with_parent() -> None:
    """End this process when the one that started it is gone, killed for example: what it makes
    would be made again by whoever continues."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        print("the process that gave out the tasks is gone", file=sys.stderr, flush=True)
        os._exit(1)

    if parent != 1 and "SLURM_JOB_ID" not in os.environ:
        threading.Thread(target=watch, daemon=True).start()
