"""ONNX Runtime in the place of JAX, for what the command does with a bundled student."""

import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
from flax import nnx

from student_jax.export.onnx_files import onnx_files
from student_jax.inference import quick
from student_jax.inference.quick import QuickStylist, quick_files
from student_jax.inference.stylist import Stylist
from student_jax.students import ModulatedConfig, ModulatedStudent
from triplets import InputError

OPTIONS = {"style_scale": None, "stroke_size": 1.0, "max_memory": 2**30}


@pytest.fixture(scope="module")
def model():
    config = ModulatedConfig((8, 8, 8), 8, (8, 8), num_blocks=1, style_code=8)
    return ModulatedStudent(config, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic shapes
        for name, file in onnx_files(model, batch=1).items():
            (root / name).write_bytes(file)
    return root


@pytest.fixture(scope="module")
def stylist(model):
    return Stylist(model)


def picture(height, width, seed):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def never():
    raise AssertionError("JAX was not needed")


def test_the_same_pictures(folder, stylist):
    """At a size that the Stylist does not pad."""
    fast = QuickStylist(folder, never, **OPTIONS)
    content, *styles = picture(48, 64, 0), picture(70, 90, 1), picture(40, 40, 2)
    ours, its = ([engine.encode_style(x) for x in styles] for engine in (stylist, fast))
    mask = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    for weights, options in (
        ([1, 0], {}),
        ([0.3, 0.7], {"strength": 0.5, "preserve_colour": True, "mask": mask}),
    ):
        mixtures = [e.encode_style(x, weights) for e, x in ((stylist, ours), (fast, its))]
        assert fast.plan(48, 64, mixtures[1]).tile is None
        expected, result = (
            stylist(content, mixtures[0], **options),
            fast(content, mixtures[1], **options),
        )
        # Both runtimes work in float32, in other orders.
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_sizes_that_do_not_suit_the_strides(folder):
    fast = QuickStylist(folder, never, **OPTIONS | {"stroke_size": 2.0})
    style = fast.encode_style(picture(33, 21, 1))
    for height, width in ((5, 7), (33, 50)):
        assert fast(picture(height, width, 0), style).shape == (height, width, 3)


def test_what_is_too_large_goes_to_jax(folder, stylist):
    fast = QuickStylist(folder, lambda: stylist, **OPTIONS | {"max_memory": 10_000})
    content, style = picture(40, 40, 0), picture(40, 40, 1)
    result = fast(content, fast.encode_style(style))
    np.testing.assert_allclose(result, stylist(content, style), atol=1e-6)


def test_weights_that_mean_nothing(folder):
    fast = QuickStylist(folder, never, **OPTIONS)
    style = fast.encode_style(picture(40, 40, 1))
    for styles, weights in (([style], [0.0]), ([style], [1.0, 2.0]), ([], [])):
        with pytest.raises(InputError, match="the weights are"):
            fast.encode_style(styles, weights)


def test_only_bundled_students_have_files(tmp_path):
    for checkpoint in (str(tmp_path), "hf://owner/name", "nothing"):
        assert quick_files(checkpoint) is None


def test_files_are_made_once_and_anew_when_damaged(folder, tmp_path, monkeypatch):
    made = []

    def files(*_, **__):
        made.append(1)
        return {name: (folder / name).read_bytes() for name in quick.FILES}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("student_jax.export.onnx_files.onnx_files", files)
    first, second = quick_files("modulated"), quick_files("modulated")
    assert first == second and first.is_relative_to(tmp_path) and made == [1]
    kept = first / "stylize.onnx"
    whole = kept.read_bytes()
    flipped = bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]])
    for times, damaged in enumerate((whole[:100], flipped, b""), start=2):
        kept.write_bytes(damaged)
        assert quick_files("modulated") == first
        assert kept.read_bytes() == whole and len(made) == times


def test_the_command_starts_without_jax():
    program = "import sys, student_jax.inference.command; print('jax' in sys.modules)"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"
