"""A student from outside of the package, in ten lines, with all that the machinery does."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from student_jax import Stylist
from student_jax.evaluation.config import EvaluateConfig
from student_jax.evaluation.evaluate import evaluate
from student_jax.export.export import ExportConfig, export
from student_jax.inference import cost
from student_jax.inference.command import StyliseConfig, stylise_files
from student_jax.student import STUDENTS, Student, StudentConfig, register_student
from student_jax.training.checkpoint import Checkpoints, load_student
from student_jax.training.config import TrainConfig
from student_jax.training.integrity import list_steps
from student_jax.training.train import train
from student_jax.weights.folder import from_pretrained, open_student
from triplets import InputError, TripletDataset, read_image, write_image


@dataclasses.dataclass(frozen=True)
class TintConfig(StudentConfig):
    kernel_px: int = 3
    content_stride = 1
    style_stride = 1


class Tint(nnx.Module):
    """One convolution over the content beside the style's mean colour."""

    tiles = None

    def __init__(self, config, *, dtype, remat, rngs):
        self.config = config
        side = (config.kernel_px, config.kernel_px)
        self.conv = nnx.Conv(6, 3, side, dtype=dtype, rngs=rngs)

    def __call__(self, content, style, *, train=False, rngs=None):
        return self.decode(content, [self.encode_style(style)])

    def encode_style(self, style):
        return jnp.asarray(style).mean((1, 2))

    def decode(self, content, memories, *, weights=None, padding=None):
        weights = jnp.ones(1) if weights is None else weights
        colour = jnp.einsum("s,sbc->bc", weights, jnp.stack(memories))[:, None, None]
        tint = jnp.broadcast_to(colour, content.shape)
        return self.conv(jnp.concatenate([content, tint], axis=-1)).astype(jnp.float32)

    def learning_group(self, path):
        return "normal"


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_student("tint", TintConfig, Tint)
    yield
    del STUDENTS["tint"]


@pytest.fixture(scope="module")
def settings(train_settings):
    return train_settings | {
        "model": TintConfig(),
        "steps": 40,
        "checkpoint_every": 20,
        "learning_rate": 0.03,
    }


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """An unbroken run."""
    config = TrainConfig(workdir=tmp_path_factory.mktemp("tint") / "run", **settings)
    train(config)
    return config


@pytest.fixture(scope="module")
def stylist(run):
    return Stylist.from_checkpoint(run.workdir)


def weights(student):
    return jax.tree.leaves(nnx.state(student))


def assert_same(a, b):
    for x, y in zip(weights(a), weights(b), strict=True):
        np.testing.assert_array_equal(x, y)


def picture(h, w, seed):
    return np.random.default_rng(seed).random((h, w, 3), np.float32)


def test_it_learns(run):
    lines = map(json.loads, (run.workdir / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 40 and losses[-1] < 0.5 * losses[0]
    config = json.loads((run.workdir / "config.json").read_text())
    assert config["model"] == {"student": "tint", "kernel_px": 3}
    student = load_student(run.workdir)
    assert isinstance(student, Student) and student.config == run.model


def test_a_run_that_was_stopped_continues_exactly(run, tmp_path, monkeypatch):
    config = dataclasses.replace(run, workdir=tmp_path / "run")

    def killed(self, state, metrics):
        save(self, state, metrics)
        raise KeyboardInterrupt

    save = Checkpoints.save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", killed)
        train(config)
    assert list_steps(config.workdir / "checkpoints") == [20]
    train(dataclasses.replace(config, resume=True))
    assert_same(load_student(config.workdir, "latest"), load_student(run.workdir, "latest"))
    with pytest.raises(InputError, match=r"has model = .*tint"):
        train(dataclasses.replace(config, resume=True, model=TintConfig(kernel_px=5)))


def test_another_run_starts_from_it(run, tmp_path):
    config = dataclasses.replace(run, workdir=tmp_path / "run", init_from=str(run.workdir), steps=3)
    train(config)
    assert load_student(config.workdir).config == run.model


def test_pictures_of_any_size_by_one_style_or_two(stylist):
    content, styles = picture(61, 83, 0), [picture(20, 30, 1), picture(40, 25, 2)]
    one, other = (stylist(content, style) for style in styles)
    assert one.shape == content.shape and np.abs(one - other).max() > 1e-3
    mixed = stylist(content, styles, weights=[0.3, 0.7])
    inside = (mixed > 0.01) & (mixed < 0.99)
    inside &= (one > 0) & (one < 1) & (other > 0) & (other < 1)
    assert inside.any()
    # It is linear in the style's colour.
    np.testing.assert_allclose(mixed[inside], (0.3 * one + 0.7 * other)[inside], atol=1e-5)
    batch = stylist(np.stack([content, content]), np.stack([styles[0], styles[0][::-1]]))
    np.testing.assert_allclose(batch[0], one, atol=1e-5)


def test_a_picture_too_large_for_the_memory_is_refused(run):
    small = Stylist(load_student(run.workdir), max_memory=100 * 2**20)
    small(picture(61, 83, 0), picture(20, 30, 1))
    with pytest.raises(
        InputError, match="2000 x 2000 px do not fit into 100 MiB, and this student"
    ):
        small(picture(2000, 2000, 0), picture(20, 30, 1))


def test_export_and_back(run, tmp_path):
    out = tmp_path / "out"
    formats = ("safetensors", "stablehlo")
    export(ExportConfig(out, str(run.workdir), "latest", formats, sizes=(24,), style_size=16))
    assert json.loads((out / "config.json").read_text()) == {"student": "tint", "kernel_px": 3}
    assert "(tint)" in (out / "README.md").read_text()
    student = from_pretrained(out)
    assert_same(student, load_student(run.workdir, "latest"))
    assert_same(open_student(str(out / "model.safetensors")), student)
    loaded = jax.export.deserialize(bytearray((out / "student-24.stablehlo").read_bytes()))
    content, style = picture(24, 24, 0)[None], picture(16, 16, 1)[None]
    expected = student(content, style).clip(0, 1)
    np.testing.assert_allclose(loaded.call(content, style), expected, atol=1e-5)


def test_its_cost():
    # A convolution of 3 x 3 pixels: 6 channels to 3, and biases.
    counted = cost.count("tint", 32)
    assert counted["parameters"] == 3 * 3 * 6 * 3 + 3
    # Its products, and those of the style's colour with its weight.
    assert counted["flops"] == 2 * 32 * 32 * 3 * 3 * 6 * 3 + 2 * 3


def test_where_it_is_not_registered_its_files_are_refused_in_a_sentence(run):
    program = "import sys; from student_jax import Stylist; Stylist.from_pretrained(sys.argv[1])"
    command = [sys.executable, "-c", program, str(run.workdir)]
    failed = subprocess.run(command, capture_output=True, text=True)
    message = failed.stderr.strip().splitlines()[-1]
    assert "the student 'tint' is not known, only mini, modulated, sttr" in message


def test_it_is_evaluated_beside_the_controls(run, dump, tmp_path):
    config = EvaluateConfig(
        tmp_path / "report",
        checkpoint=str(run.workdir),
        data=str(dump),
        max_pairs=2,
        structure=False,
    )
    measures = evaluate(config).measures
    assert {"teacher", "student", "content copied"} <= measures.keys()
    assert 0 < measures["student"]["mse"] < 1
    assert (tmp_path / "report" / "comparison.png").is_file()


def test_the_command_stylises_with_it(run, dump, tmp_path):
    triplet = TripletDataset(dump)[0]
    for name in ("content", "style"):
        write_image(tmp_path / f"{name}.png", getattr(triplet, name))
    stylise_files(
        StyliseConfig(
            content=(str(tmp_path / "content.png"),),
            style=(str(tmp_path / "style.png"),),
            out=str(tmp_path / "out.png"),
            checkpoint=str(run.workdir),
        )
    )
    expected = Stylist.from_checkpoint(run.workdir)(triplet.content, triplet.style)
    difference = read_image(tmp_path / "out.png") - 255 * expected
    assert np.abs(difference).max() <= 0.51  # rounded once
