"""Training on tiny triplets: it learns, and an interrupted run ends as an unbroken one does."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from student_jax.checkpoint import Checkpoints, load_student
from student_jax.config import TrainConfig
from student_jax.train import TrainingError, train
from triplets import InputError

# Runs a training described by JSON on the command line, in a process of its own to be killed.
PROGRAM = """
import json, sys
from pathlib import Path
from student_jax.config import STTRConfig, TrainConfig
from student_jax.train import train
fields = json.loads(sys.argv[1])
fields["model"] = STTRConfig.from_dict(fields["model"])
for name in ("data", "workdir"):
    fields[name] = Path(fields[name])
train(TrainConfig(**fields))
"""


def start(config) -> subprocess.Popen:
    fields = json.dumps(dataclasses.asdict(config), default=str)
    return subprocess.Popen([sys.executable, "-c", PROGRAM, fields])


def wait_for_step(config, step):
    path = config.workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise TimeoutError(f"step {step} did not come")


def lines(config):
    return (config.workdir / "metrics.jsonl").read_text().splitlines()


def parameters(config):
    return jax.tree.leaves(nnx.state(load_student(config.workdir, "latest")))


def assert_same_run(config, other):
    assert lines(config) == lines(other)
    for a, b in zip(parameters(config), parameters(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def finished(train_settings, tmp_path_factory):
    """An unbroken run of 12 steps."""
    config = TrainConfig(workdir=tmp_path_factory.mktemp("finished") / "run", **train_settings)
    train(config)
    return config


def test_what_a_run_leaves(finished):
    records = [json.loads(line) for line in lines(finished)]
    assert [record["step"] for record in records] == list(range(1, 13))
    validated = [record["step"] for record in records if "validation_mse" in record]
    assert validated == [4, 8, 12]
    assert records[-1]["loss"] < records[0]["loss"]
    names = sorted(path.name for path in (finished.workdir / "samples").iterdir())
    assert names == [f"held_out-{step:07d}.png" for step in validated]
    events = EventAccumulator(str(finished.workdir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert [event.step for event in events.Images("held_out")] == validated


def test_latest_and_best_checkpoints_are_kept(finished):
    errors = {r["step"]: r.get("validation_mse") for r in map(json.loads, lines(finished))}
    best = min((4, 8, 12), key=errors.get)
    with Checkpoints(finished.workdir, read_only=True) as checkpoints:
        assert checkpoints.best_step() == best
        assert {8, 12, best} == set(checkpoints.steps())


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_run_continues_exactly(finished, tmp_path, stop):
    config = dataclasses.replace(finished, workdir=tmp_path / "run")
    process = start(config)
    wait_for_step(config, 6)
    process.send_signal(stop)
    status = process.wait()
    assert status == (-signal.SIGKILL if stop == signal.SIGKILL else 0)
    train(dataclasses.replace(config, resume=True))
    if stop == signal.SIGTERM:
        # The orderly stop adds a validation at its step; all else must agree.
        mine, theirs = (
            [{k: v for k, v in json.loads(line).items() if "validation" not in k} for line in run]
            for run in (lines(config), lines(finished))
        )
        assert mine == theirs
    else:
        assert_same_run(config, finished)


def test_new_run_does_not_overwrite_another(finished):
    with pytest.raises(InputError, match="holds a run already: give --resume"):
        train(finished)


def test_resume_with_other_settings_is_refused(finished):
    with pytest.raises(InputError, match=r"has learning_rate = 0\.003, not 0.1"):
        train(dataclasses.replace(finished, learning_rate=0.1, resume=True))


def test_loss_that_is_no_number_stops_the_run(train_config):
    with pytest.raises(TrainingError, match="the last good checkpoint is none"):
        train(dataclasses.replace(train_config, learning_rate=1e30, clip_norm=1e30))


def test_crop_larger_than_the_pictures(train_config):
    with pytest.raises(InputError, match=r"--crop-size 64 is larger .* \(48 px\)"):
        train(dataclasses.replace(train_config, crop_size=64))


@pytest.mark.parametrize("loss", ["L2", "L3"])
def test_gram_losses_train(train_config, loss):
    train(dataclasses.replace(train_config, loss=loss, steps=4))
    records = [json.loads(line) for line in lines(train_config)]
    pixel, gram = {"L2": (0.5, 0.5), "L3": (0.7, 0.3)}[loss]
    for record in records:
        assert record["gram"] > 0
        expected = pixel * record["pixel"] + gram * record["gram"]
        assert record["loss"] == pytest.approx(expected, rel=1e-5)  # float32 sums


def test_vgg19_without_weights_names_where_to_get_them(train_config):
    with pytest.raises(InputError, match=r"--vgg19-weights FILE: model\.safetensors of https://"):
        train(dataclasses.replace(train_config, loss="L2", features="vgg19"))
