"""How a dump is cut into tasks, what the plan says, and how the engine's marks follow it."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import tyro
from datatrove.executor import LocalPipelineExecutor
from datatrove.utils.stats import PipelineStats

from teacher_torch import executors
from teacher_torch.dump import DumpConfig, dump, dump_config_type
from teacher_torch.engine import Cost, EngineConfig, share_shards
from teacher_torch.executors import (
    DumpTask,
    RestartingExecutor,
    make_executor,
    mark_tasks,
    measured_rate,
)
from triplets import InputError


def test_shards_are_shared_evenly():
    styles = [np.array([0])] * 7
    assert share_shards(styles, 1, None) == [0] * 7
    assert share_shards(styles, 3, None) == [0, 0, 0, 1, 1, 2, 2]
    assert share_shards(styles, 20, None) == [0, 1, 2, 3, 4, 5, 6]


def test_tasks_are_cut_at_styles():
    """Shards of two styles each; styles are prepared by twos. No group is in two tasks."""
    styles = [np.array([style]) for style in (0, 0, 0, 1, 2, 2, 3, 7)]
    assert share_shards(styles, 3, 2) == [0, 0, 0, 0, 1, 1, 1, 2]
    assert share_shards(styles, 2, 2) == [0, 0, 0, 0, 0, 0, 0, 1]
    # Rows that no pair uses are in no group: 0, 1, 2, 3, 7 are the first five.
    assert share_shards(styles, 99, 1) == [0, 0, 0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["plan: 1000 pairs in 40 tasks, 4 at a time; 0.79 GB of pixels", "hours: known once"]),
        (
            {"pairs_per_hour": 50.0, "price_per_hour": 2.0},
            [
                "hours: 20.00 of one worker, 5.00 of 4, at 50 pairs per hour",
                "cost: 40.00, or 0.040000 per pair",
            ],
        ),
    ],
)
def test_the_plan(changes, lines):
    cost = Cost(1000, 40, 4, 1000 * 512 * 512 * 3, None, None)
    text = str(dataclasses.replace(cost, **changes))
    assert all(line in text for line in lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "local", "tasks": 0}, "--tasks 0: expected at least 1"),
        ({"executor": "slurm"}, "--executor slurm needs the name of a --partition"),
        ({"tasks": 3}, "--tasks belongs to --executor"),
        ({"price_per_hour": -1.0}, "--price-per-hour -1.0: expected a number above 0"),
    ],
)
def test_impossible_engines(settings, message):
    with pytest.raises(InputError, match=message):
        EngineConfig(**settings)


def test_flags_have_no_prefix():
    needed = ["--content", "a", "--style", "b", "--out", "c"]
    flags = ["--executor", "local", "--tasks", "5", "--workers", "2"]
    engine = tyro.cli(dump_config_type(), args=needed + flags).engine
    assert (engine.executor, engine.tasks, engine.workers) == ("local", 5, 2)
    with pytest.raises(InputError, match="--executor gives out the ranks itself"):
        DumpConfig("a", "b", "c", rank=0, world_size=2, engine=engine)


@pytest.mark.parametrize(
    ("executor", "missing", "extra"), [("local", "datatrove", "scale"), ("ray", "ray", "ray")]
)
def test_an_engine_that_is_not_installed(executor, missing, extra, monkeypatch):
    for name in (missing, f"{missing}.executor"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "teacher_torch.executors")
    config = DumpConfig("a", "b", "c", engine=EngineConfig(executor=executor))
    with pytest.raises(InputError, match=rf'{missing}: pip install "style-distil\[{extra}\]"'):
        dump(config)


def test_slurm_without_its_command(monkeypatch):
    monkeypatch.setenv("PATH", "")
    engine = EngineConfig(executor="slurm", partition="gpu")
    with pytest.raises(InputError, match="needs the command sbatch"):
        executors.dump_by_executor(DumpConfig("a", "b", "c", engine=engine))


def test_marks_follow_the_dataset(tmp_path):
    executor = LocalPipelineExecutor([], tasks=5, logging_dir=str(tmp_path))
    for rank in (0, 1, 2):
        executor.mark_rank_as_completed(rank)
    mark_tasks(executor, {1, 4})
    assert executor.get_incomplete_ranks() == [1, 4]


def test_tasks_without_work_have_statistics_too(tmp_path):
    """Ray adds up those of all tasks; a sum with a task that has none would be empty."""
    task = DumpTask(DumpConfig("a", "b", "c"))
    executor = LocalPipelineExecutor([task], tasks=3, logging_dir=str(tmp_path))
    mark_tasks(executor, {1})
    task.stat_update("pairs", value=4)
    with executor.logging_dir.open("stats/00001.json", "w") as file:
        PipelineStats([task]).save_to_disk(file)
    total = PipelineStats()
    for rank in range(3):
        total += PipelineStats.from_json(
            json.loads((tmp_path / f"stats/{rank:05d}.json").read_text())
        )
    [step] = json.loads(total.to_json())
    assert step["stats"]["pairs"]["total"] == 4
    assert measured_rate(executor) is None


def test_the_rate_of_finished_tasks(tmp_path):
    executor = LocalPipelineExecutor([], tasks=2, logging_dir=str(tmp_path))
    assert measured_rate(executor) is None
    (tmp_path / "stats").mkdir()
    stats = '[{"name": "x", "stats": {"pairs": {"total": 10}, "milliseconds": {"total": 36000}}}]'
    (tmp_path / "stats" / "00000.json").write_text(stats)
    (tmp_path / "stats" / "00001.json").write_text("[")
    assert measured_rate(executor) == 1000


def test_executors_of_a_cluster(tmp_path):
    task = DumpTask(DumpConfig("a", "b", "c"))
    engine = EngineConfig(executor="slurm", partition="gpu", gpus_per_task=1, setup="module load x")
    slurm = make_executor(engine, task, 7, str(tmp_path))
    script = slurm.get_launch_file_contents(slurm.get_sbatch_args(7), "run")
    for line in ("--array=0-6%1", "--partition=gpu", "--gpus=1", "--requeue", "--mem-per-cpu=4G"):
        assert f"#SBATCH {line}" in script
    assert "module load x" in script
    ray = make_executor(EngineConfig(executor="ray", workers=3), task, 7, str(tmp_path))
    assert (ray.tasks, ray.workers, ray.cpus_per_task) == (7, 3, 4)


class Task(DumpTask):
    """Writes a file per rank; the processes of some ranks die, and others fail."""

    def __init__(self, folder, dies=(), fails=()):
        super().__init__(DumpConfig("a", "b", "c"))
        self.folder, self.dies, self.fails = folder, dies, fails

    def run(self, data, rank=0, world_size=1):
        import os
        import signal

        attempts = len(list(self.folder.glob(f"{rank}-*")))
        (self.folder / f"{rank}-{attempts}").touch()
        if attempts < dict(self.dies).get(rank, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if rank in self.fails:
            raise InputError("no more room.")


@pytest.mark.slow
def test_the_task_of_a_dead_worker_is_taken_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(executors, "MOST_DEATHS", 3)
    task = Task(tmp_path, dies=((0, 2), (3, 1), (4, 99)), fails=(5,))
    executor = RestartingExecutor([task], tasks=7, workers=2, logging_dir=str(tmp_path / "logs"))
    with pytest.raises(InputError, match=r"2 tasks failed again and again, task [45] with"):
        executor.run()
    assert executor.get_incomplete_ranks() == [4, 5]
    attempts = [len(list(tmp_path.glob(f"{rank}-*"))) for rank in range(7)]
    assert attempts == [3, 1, 1, 2, 3, 3, 1]
    assert "a worker died over task 0, which is taken again" in capsys.readouterr().out
