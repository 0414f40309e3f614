"""Training on tiny triplets: it learns, and an interrupted run ends as an unbroken one does."""

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from flax import nnx
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from student_jax import STTR
from student_jax.student import build_student, config_to_json
from student_jax.training.checkpoint import best_first, load_student, set_aside_damaged
from student_jax.training.config import TrainConfig
from student_jax.training.integrity import list_steps
from student_jax.training.progress import TrainingError
from student_jax.training.train import has_frozen_parameters, train
from student_jax.weights.folder import save_pretrained
from triplets import InputError

# Runs a training described by JSON on the command line, in a process of its own.
PROGRAM = """
import json, sys
from pathlib import Path
from student_jax.training import sharding
from student_jax.student import config_from_json
from student_jax.training.config import TrainConfig
from student_jax.training.train import train
fields = json.loads(sys.argv[1])
fields["model"] = config_from_json(fields["model"])
fields["workdir"] = Path(fields["workdir"])
for name in ("data", "data_weights"):
    fields[name] = tuple(fields[name])
sharding.MIN_SHARDED_SIZE = 64  # the tiny student has no large arrays
train(TrainConfig(**fields))
"""

# Orbax abandons its other reads when one fails, and Python tells of them whenever it collects them.
abandons_reads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def start(config, devices=None) -> subprocess.Popen:
    """A run in a process of its own, by default on as many devices as this process has."""
    fields = json.dumps(config.to_json())
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices or jax.device_count())}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, fields], env=environment)


def wait_for_step(config, step, process=None):
    path = config.workdir / "metrics.jsonl"
    while process is None or process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"the run ended before step {step}")


def lines(config):
    """The figures of a run, without those that depend on the clock."""
    records = map(json.loads, (config.workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k != "images_per_s"} for record in records]


def losses(config):
    return [record["loss"] for record in lines(config) if "loss" in record]


def parameters(config):
    return jax.tree.leaves(nnx.state(load_student(config.workdir, "latest")))


def assert_same_run(config, other):
    assert lines(config) == lines(other)
    for a, b in zip(parameters(config), parameters(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="session")
def finished(train_settings, tmp_path_factory):
    """An unbroken run of 12 steps."""
    config = TrainConfig(workdir=tmp_path_factory.mktemp("finished") / "run", **train_settings)
    train(config)
    return config


def test_what_a_run_leaves(finished):
    records = lines(finished)
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert steps[-1]["loss"] < steps[0]["loss"]
    validated = [record["step"] for record in records if "validation_mse" in record]
    assert validated == [4, 8, 12]
    assert records[-1]["validation_mse"] < records[4]["validation_mse"]
    names = sorted(path.name for path in (finished.workdir / "samples").iterdir())
    assert names == [f"validation-{step:07d}.png" for step in validated]
    events = EventAccumulator(str(finished.workdir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert [event.step for event in events.Images("validation")] == validated
    summary = json.loads((finished.workdir / "summary.json").read_text())
    assert summary["steps"] == 12 and summary["images_per_s"] > 0
    assert summary["validation_mse"] == records[-1]["validation_mse"]
    made_from = json.loads((finished.workdir / "config.json").read_text())["made_from"]
    assert made_from["libraries"]["jax"] == jax.__version__


def damaged_copy(config, workdir, name, kind):
    """A copy of a run with damage to one file of its latest checkpoint."""
    copy = copy_of(config, workdir)
    (file,) = [*(workdir / "checkpoints" / "12").glob(name)][:1]
    encoded = bytearray(file.read_bytes())
    if kind == "flip":
        encoded[len(encoded) // 2] ^= 1
    elif kind == "cut":
        del encoded[len(encoded) // 2 :]
    if kind == "missing":
        file.unlink()
    else:
        file.write_bytes(encoded)
    return copy


FILES = [
    ("state/d/*", "flip"),
    ("student/d/*", "cut"),
    ("student/manifest.ocdbt", "missing"),
    ("metrics/metrics", "cut"),
    ("_CHECKPOINT_METADATA", "cut"),
]


@abandons_reads
def test_a_run_continues_before_a_damaged_checkpoint(finished, tmp_path, capsys):
    """It ends as it would have."""
    config = damaged_copy(finished, tmp_path / "run", *FILES[0])
    train(config)
    assert "warning: checkpoint 12 is damaged" in capsys.readouterr().err
    assert_same_run(config, finished)


@abandons_reads
@pytest.mark.parametrize(("name", "kind"), FILES)
def test_a_damaged_checkpoint_is_told_and_kept_under_another_name(
    finished, tmp_path, capsys, name, kind
):
    workdir = damaged_copy(finished, tmp_path / "run", name, kind).workdir
    set_aside_damaged(workdir)
    assert "warning: checkpoint 12 is damaged" in capsys.readouterr().err
    assert list_steps(workdir / "checkpoints") == list_steps(finished.workdir / "checkpoints")[:-1]
    (aside,) = (workdir / "damaged").iterdir()
    assert aside.name.startswith("12-")


@abandons_reads
@pytest.mark.parametrize(("name", "kind"), FILES[1:4])
def test_a_damaged_checkpoint_without_checksums(finished, tmp_path, capsys, name, kind):
    """A kill after the last save leaves it so."""
    config = damaged_copy(finished, tmp_path / "run", name, kind)
    (config.workdir / "checkpoints" / "12" / "sha256.json").unlink()
    set_aside_damaged(config.workdir)
    assert "warning: checkpoint 12 is damaged" in capsys.readouterr().err
    assert 12 not in list_steps(config.workdir / "checkpoints")


@abandons_reads
def test_a_student_before_a_damaged_checkpoint(finished, tmp_path, capsys):
    config = damaged_copy(finished, tmp_path / "run", *FILES[1])
    student = load_student(config.workdir, "latest")
    before = load_student(finished.workdir, 8)
    for a, b in zip(*(jax.tree.leaves(nnx.state(x)) for x in (student, before)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "warning: checkpoint 12 is damaged" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"checkpoint 12 of .* cannot be read: .*the steps"):
        load_student(config.workdir, 12)


@abandons_reads
def test_a_run_whose_checkpoints_are_all_damaged(finished, tmp_path):
    config = damaged_copy(finished, tmp_path / "run", *FILES[0])
    for file in config.workdir.glob("checkpoints/*/metrics/metrics"):
        file.write_text("[")
    with pytest.raises(InputError, match=r"all checkpoints of .*run\" are damaged"):
        train(config)
    assert not (config.workdir / "damaged").exists()


def copy_of(config, workdir):
    shutil.copytree(config.workdir, workdir)
    return dataclasses.replace(config, workdir=workdir, resume=True)


def test_a_run_killed_before_its_summary_gets_one(finished, tmp_path):
    """And a damaged line of the figures does not keep it from that."""
    config = copy_of(finished, tmp_path / "run")
    path = config.workdir / "summary.json"
    expected = json.loads(path.read_text()) | {"images_per_s": None}
    path.unlink()
    with (config.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": \n[]\n{"step"')
    train(config)
    assert json.loads(path.read_text()) == expected
    assert lines(config) == lines(finished)


@abandons_reads
@pytest.mark.parametrize("text", ["[]", "{}", "{"])
def test_a_damaged_configuration_can_be_moved_away(finished, tmp_path, text, capsys):
    config = copy_of(finished, tmp_path / "run")
    path = config.workdir / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.json.*if it is damaged, move it away"):
        train(config)
    path.unlink()
    with pytest.raises(InputError, match="holds a run already: give --resume"):
        train(dataclasses.replace(config, resume=False))
    if text == "{}":
        other = dataclasses.replace(config, model=dataclasses.replace(config.model, mlp_dim=8))
        with pytest.raises(InputError, match=r"checkpoint 12 in .* does not fit these settings"):
            train(other)
        train(config)
        assert "has its 12 steps already" in capsys.readouterr().out


def test_a_signal_before_the_first_step(train_config, monkeypatch, capsys):
    def send(config):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("student_jax.training.train.check_config", send)
    train(train_config)
    assert "stopped by a signal after step 0 of 12; --resume" in capsys.readouterr().out


def test_latest_and_best_checkpoints_are_kept(finished):
    errors = {r["step"]: r["validation_mse"] for r in lines(finished) if "validation_mse" in r}
    best = min(errors, key=errors.get)
    folder = finished.workdir / "checkpoints"
    assert best_first(folder, list_steps(folder))[0] == best
    assert {8, 12, best} == set(list_steps(folder))


def test_the_best_checkpoint_of_a_run_for_texture_is_the_latest(finished, monkeypatch):
    def student(step):
        return jax.tree.leaves(nnx.state(load_student(finished.workdir, step)))

    fields = json.loads((finished.workdir / "config.json").read_text())
    assert fields["loss"] == "L1"
    folder = finished.workdir / "checkpoints"
    of_error = student(best_first(folder, list_steps(folder))[0])
    for loss, expected in (("L1", of_error), ("texture", student("latest"))):
        monkeypatch.setattr(
            "student_jax.training.checkpoint.load_config",
            lambda _, loss=loss: fields | {"loss": loss},
        )
        for a, b in zip(student("best"), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_killed_run_continues_exactly(finished, tmp_path):
    config = dataclasses.replace(finished, workdir=tmp_path / "run")
    process = start(config)
    wait_for_step(config, 6, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    train(dataclasses.replace(config, resume=True))
    assert_same_run(config, finished)


def test_sigterm_saves_and_the_run_continues_exactly(finished, tmp_path, capsys):
    config = dataclasses.replace(finished, workdir=tmp_path / "run")

    def send():
        wait_for_step(config, 5)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    train(config)
    thread.join()
    assert "--resume continues" in capsys.readouterr().out
    train(dataclasses.replace(config, resume=True))
    assert_same_run(config, finished)


def unfinished_saves(config):
    return list(config.workdir.glob("checkpoints/*checkpoint-tmp*"))


def last_checkpoint(config):
    names = [path.name for path in config.workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_within_save(config, process):
    while process.poll() is None:
        if unfinished_saves(config):
            # Held still, to see whether the save ended just then.
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            if unfinished_saves(config):
                return
            process.send_signal(signal.SIGCONT)
    raise AssertionError("the run ended without another save")


@pytest.mark.slow
def test_run_killed_again_and_again_ends_the_same(finished, tmp_path):
    """At random moments, and in saves: there is one after every step."""
    often = dataclasses.replace(
        finished, workdir=tmp_path / "unbroken", steps=20, checkpoint_every=1
    )
    train(often)
    config = dataclasses.replace(often, workdir=tmp_path / "run")
    rng = random.Random(0)
    for moment in ("any", "save", "any", "save", "any"):
        done = last_checkpoint(config)
        process = start(dataclasses.replace(config, resume=done > 0))
        while last_checkpoint(config) == done:
            assert process.poll() is None
            time.sleep(0.01)
        if moment == "save":
            wait_within_save(config, process)
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert moment != "save" or unfinished_saves(config)
    train(dataclasses.replace(config, resume=True))
    assert_same_run(config, often)
    assert not unfinished_saves(config)


@pytest.mark.slow
def test_devices_and_processes_do_not_change_the_run(finished, tmp_path):
    """Four devices, also with the parameters spread over them, and two processes of two each."""

    def run(name, devices=1, **changes):
        config = dataclasses.replace(finished, workdir=tmp_path / name, **changes)
        return config, start(config, devices)

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    runs = [run("four", devices=4), run("spread", devices=4, fsdp=2)]
    pair = {"coordinator": coordinator, "num_processes": 2}
    runs += [run("processes", devices=2, process_id=i, **pair) for i in range(2)]
    assert [process.wait() for _, process in runs] == [0] * 4
    for config, _ in runs:
        # Sums in another order. Adam then magnifies rounding where a gradient is truly zero.
        np.testing.assert_allclose(losses(config), losses(finished), rtol=1e-3)

    # A run may also continue on other devices than those that it began on.
    config = dataclasses.replace(runs[1][0], resume=True, fsdp=1)
    assert list_steps(config.workdir / "checkpoints")[-1] == 12
    for a, b in zip(parameters(config), parameters(finished), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-3)  # about the learning rate: see above


def test_new_run_does_not_overwrite_another(finished):
    with pytest.raises(InputError, match="holds a run already: give --resume"):
        train(finished)


def test_a_run_that_cannot_begin_leaves_no_run(train_config, monkeypatch):
    """So that the corrected command may have its workdir."""
    with pytest.raises(InputError, match=r"48 x 48 px, smaller than --crop-size 64"):
        train(dataclasses.replace(train_config, crop_size=64))
    assert not train_config.workdir.exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        train(dataclasses.replace(train_config, wandb="project"))
    train(dataclasses.replace(train_config, steps=3))
    assert json.loads((train_config.workdir / "config.json").read_text())["steps"] == 3


def test_a_workdir_that_is_a_file(train_config):
    train_config.workdir.write_text("mine")
    with pytest.raises(InputError, match="a file is in the way"):
        train(train_config)
    assert train_config.workdir.read_text() == "mine"


def test_resume_with_other_settings_is_refused(finished):
    with pytest.raises(InputError, match=r"has learning_rate = 0\.003, not 0.1"):
        train(dataclasses.replace(finished, learning_rate=0.1, resume=True))


def test_run_from_before_a_setting_existed_continues(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    workdir.mkdir()
    fields = json.loads((finished.workdir / "config.json").read_text())
    del fields["features_crop"]
    (workdir / "config.json").write_text(json.dumps(fields))
    (workdir / "checkpoints").symlink_to(finished.workdir / "checkpoints")
    train(dataclasses.replace(finished, workdir=workdir, resume=True))
    assert "has its 12 steps already" in capsys.readouterr().out


def test_run_of_version_0_1_0_continues_and_is_loaded(finished, tmp_path, capsys):
    """Its file does not name the student, and has an older name of a setting."""
    fields = json.loads((finished.workdir / "config.json").read_text())
    assert fields["model"] == config_to_json(finished.model)
    del fields["model"]["student"]
    fields["model"] |= {"backbone": "resnet50", "tail_batch_norm": True}
    fields["model"] |= {"content_skips": False, "colour_map": False, "style_code": 0}
    fields["backbone_rate"] = fields.pop("slow_rate")
    config = dataclasses.replace(finished, workdir=tmp_path / "run", resume=True)
    config.workdir.mkdir()
    (config.workdir / "config.json").write_text(json.dumps(fields))
    (config.workdir / "checkpoints").symlink_to(finished.workdir / "checkpoints")
    train(config)
    assert "has its 12 steps already" in capsys.readouterr().out
    for a, b in zip(parameters(config), parameters(finished), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match=r"has slow_rate = 1\.0, not 0\.5"):
        train(dataclasses.replace(config, slow_rate=0.5))
    with pytest.raises(InputError, match="has model = "):
        train(dataclasses.replace(config, model=dataclasses.replace(config.model, mlp_dim=8)))
    (config.workdir / "config.json").write_text(
        json.dumps(fields | {"model": fields["model"] | {"content_skips": True}})
    )
    with pytest.raises(InputError, match=r"does not describe a student: .*neither"):
        load_student(config.workdir)


def test_step_that_gives_no_number_names_its_batch(finished, tmp_path):
    model = STTR(finished.model, rngs=nnx.Rngs(0))
    model.tail.upsamplings[-1].bias[...] = 3e38  # overflows
    save_pretrained(model, tmp_path / "broken")
    config = dataclasses.replace(
        finished, workdir=tmp_path / "run", init_from=str(tmp_path / "broken")
    )
    (name,) = finished.data
    with pytest.raises(TrainingError) as error:
        train(config)
    message = str(error.value)
    assert message.startswith("step 1 gave ") and "loss inf" in message
    assert message.count(f"{name}[") == 4 and "the last good checkpoint is none" in message
    made_from = json.loads((config.workdir / "config.json").read_text())["made_from"]
    assert len(made_from["init_from"]) == 64


def test_vgg19_without_weights(train_config):
    with pytest.raises(InputError, match="neither a file nor the name of a repository"):
        train(
            dataclasses.replace(train_config, loss="L2", features="vgg19", vgg19_weights="no.pth")
        )


def test_a_loss_that_compares_styles_needs_two(train_config):
    config = dataclasses.replace(train_config, loss="paint", batch_size=4, accumulate=4)
    with pytest.raises(InputError, match="expected two pictures a part or more, or --without same"):
        train(config)


def test_a_loss_that_compares_spectra_needs_room(train_config):
    config = dataclasses.replace(train_config, loss="paint", crop_size=24)
    with pytest.raises(InputError, match="--crop-size 24: the loss paint needs 32 pixels or more"):
        train(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5, "accumulate": 2}, "batch_size is 5"),
        ({"crop_size": 30}, "needs a multiple of 4"),
        ({"warmup_steps": 12}, "fewer than steps"),
        ({"data_weights": (1.0, 2.0)}, "for each of 1 datasets"),
        ({"coordinator": "host:1"}, "given together"),
        ({"process_id": 0}, "given together"),
        ({"features_crop": 4}, "at least 8"),
        ({"image_size": 16}, "at least crop_size"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense(train_config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(train_config, **change)


def test_frozen_layers_of_random_numbers_are_noticed(tiny_model, tiny_mini):
    # What STTR freezes comes from ImageNet, or from another student; the mini has none.
    for config, frozen in ((tiny_model, True), (tiny_mini, False)):
        student = nnx.eval_shape(lambda config=config: build_student(config, rngs=nnx.Rngs(0)))
        assert has_frozen_parameters(student) == frozen


def test_the_warning_of_frozen_layers(train_config, capfd):
    train(dataclasses.replace(train_config, steps=3))
    warning = capfd.readouterr().err
    assert "are never trained and stay as they start, which is at random" in warning
    assert "style-distil weights import" in warning
