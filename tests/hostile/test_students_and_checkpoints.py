"""Damaged students and checkpoints, as a command loads them."""

import shutil

import jax
import numpy as np
import pytest
from attacks import Silent
from flax import nnx
from mutations import damaged

from student_jax import MiniConfig
from student_jax.student import build_student
from student_jax.training.checkpoint import load_student, set_aside_damaged
from student_jax.training.config import TrainConfig
from student_jax.training.integrity import list_steps
from student_jax.training.train import train
from student_jax.weights.folder import from_pretrained, save_pretrained

pytestmark = pytest.mark.slow

TINY = MiniConfig(
    content_widths=(8, 8),
    style_widths=(8, 8),
    hidden_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=16,
    tail_dim=16,
    style_code=4,
)


def test_students(attack, tmp_path):
    whole = tmp_path / "whole"
    save_pretrained(build_student(TINY, rngs=nnx.Rngs(0)), whole)

    def attempt(rng):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        path = copy / rng.choice(("config.json", "model.safetensors"))
        path.write_bytes(damaged(path.name, path.read_bytes(), rng))
        if path.name == "model.safetensors" and rng.random() < 0.3:
            from_pretrained(path)
        else:
            from_pretrained(copy)

    attack(200, attempt)


@pytest.fixture(scope="module")
def run(dump, tmp_path_factory):
    """A run of four steps with a checkpoint after every second."""
    config = TrainConfig(
        data=(str(dump),),
        workdir=tmp_path_factory.mktemp("hostile") / "run",
        model=TINY,
        steps=4,
        batch_size=4,
        crop_size=32,
        warmup_steps=1,
        validation_fraction=0.2,
        checkpoint_every=2,
        validation_pairs=4,
    )
    train(config)
    return config.workdir


def arrays(student):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.state(student))]


def test_checkpoints(attack, run, tmp_path):
    known = [arrays(load_student(run, step)) for step in list_steps(run / "checkpoints")]

    def attempt(rng):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        files = sorted(path for path in copy.rglob("checkpoints/**/*") if path.is_file())
        path = rng.choice([path for path in files if path.stat().st_size])
        path.write_bytes(damaged(path.name, path.read_bytes(), rng))
        if arrays(load_student(copy, "latest")) not in known:
            raise Silent(f"damage to {path.relative_to(copy)} loaded other weights")
        set_aside_damaged(copy)
        assert list_steps(copy / "checkpoints")

    attack(50, attempt)
