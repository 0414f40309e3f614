"""Both mini models predict what they predicted before their code was reorganised.

The mini student, on crops of sample pictures, whole, mixed and in a batch, is of version 0.1.0. The
mini teacher, by StyleID with 3 steps at 64 px, is its second edition; the first agreed with version
0.1.0 when the fixture was renewed. Tolerance: one thread or two, and another
order of sums, move float32 results by less than 1e-6 here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from student_jax import Stylist
from teacher_torch import StyleID, StyleIDConfig
from teacher_torch.latent_diffusion import load_components
from teacher_torch.pixels import to_model_range

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def before():
    with np.load(Path(__file__).parent / "fixtures" / "bundled_models.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def stylist():
    return Stylist.from_pretrained("mini")


def test_mini_student(before, stylist):
    content, style, other = (before[name] for name in ("content", "style", "other"))
    assert np.abs(stylist(content, style) - before["one"]).max() < TOLERANCE
    mixed = stylist(content, [style, other], weights=[0.3, 0.7])
    assert np.abs(mixed - before["mix"]).max() < TOLERANCE
    contents, styles = np.stack([content, content[::-1]]), np.stack([style, style[:, ::-1]])
    assert np.abs(stylist(contents, styles) - before["batch"]).max() < TOLERANCE


def test_mini_teacher(before):
    teacher = StyleID(*load_components("mini"), StyleIDConfig(num_steps=3))
    content, style = (
        teacher.invert(to_model_range(before[f"teacher_{name}"][None]))
        for name in ("content", "style")
    )
    stylised = teacher.stylise(content, style)
    assert (stylised - torch.from_numpy(before["teacher"])).abs().max() < TOLERANCE
