import subprocess
import sys

import jax
import numpy as np
import onnxruntime
import pytest
from flax import nnx
from PIL import Image

from student_jax import STTR
from student_jax.export.export import ExportConfig, _predictor, export, to_onnx
from student_jax.export.jaxpr_to_onnx import to_onnx as program_to_onnx
from student_jax.nets import attention
from student_jax.weights.folder import from_pretrained, save_pretrained
from triplets import InputError, read_image

# Runs a loading example as someone would who has not installed this project.
WITHOUT_US = (
    "import runpy, sys; sys.modules['student_jax'] = sys.modules['triplets'] = None; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def student(tiny_model):
    model = STTR(tiny_model, rngs=nnx.Rngs(1))
    kernel = model.tail.upsamplings[-1].kernel
    kernel[...] = 30 * kernel[...]  # so that a wrong pixel shows
    return model


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    save_pretrained(student, root / "student")
    export(ExportConfig(root / "out", str(root / "student"), sizes=(64,), style_size=64))
    rng = np.random.default_rng(0)
    for name in ("content", "style"):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
    return root


def example(root, *arguments):
    command = [sys.executable, "-c", WITHOUT_US, *map(str, arguments)]
    return subprocess.run(
        command, cwd=root / "out", capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("name", ["stablehlo", "onnx"])
def test_programs_elsewhere_get_our_pictures(exported, student, name):
    root = exported
    content, style, out = (root / f"{x}.png" for x in ("content", "style", name))
    example(root, f"load_{name}.py", f"student-64.{name}", content, style, out)
    pictures = [np.float32(read_image(path))[None] / 255 for path in (content, style)]
    expected = np.asarray(jax.jit(_predictor(student))(*pictures))[0]
    # A rounding difference of 1e-6 may turn a grey level to its neighbour.
    difference = np.abs(read_image(out) - np.rint(expected * 255))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_weights_elsewhere(exported, student):
    count = sum(x.size for x in jax.tree.leaves(nnx.state(student)))
    printed = example(exported, "load_safetensors.py", "model.safetensors")
    assert f"{count} parameters" in printed and "'hidden_dim': 16" in printed


def test_the_weights_file_alone_is_a_student(exported, student, tmp_path):
    file = tmp_path / "anything.safetensors"
    file.write_bytes((exported / "out" / "model.safetensors").read_bytes())
    assert from_pretrained(file).config == student.config


def test_batches_of_any_size(exported, student):
    artefact = (exported / "out" / "student-64.stablehlo").read_bytes()
    loaded = jax.export.deserialize(bytearray(artefact))
    assert set(loaded.platforms) == {"cpu", "cuda"}
    rng = np.random.default_rng(1)
    content, style = (rng.random((3, 64, 64, 3), np.float32) for _ in range(2))
    expected = jax.jit(_predictor(student))(content, style)
    # Pictures are done one by one in the artefact: sums are ordered differently.
    np.testing.assert_allclose(loaded.call(content, style), expected, atol=1e-5)


def test_onnx_with_attention_in_chunks(student, monkeypatch):
    monkeypatch.setattr(attention, "CPU_SCORE_BYTES", 2**16)
    session = onnxruntime.InferenceSession(to_onnx(student, 64, 64))
    rng = np.random.default_rng(1)
    content, style = (rng.random((1, 64, 64, 3), np.float32) for _ in range(2))
    (stylised,) = session.run(None, {"content": content, "style": style})
    expected = jax.jit(_predictor(student))(content, style)
    # Both runtimes work in float32, in other orders.
    np.testing.assert_allclose(stylised, expected, atol=1e-5)


def test_operations_without_translation_are_named():
    shape = jax.ShapeDtypeStruct((4,), np.float32)
    with pytest.raises(NotImplementedError, match="no ONNX translation of sort"):
        program_to_onnx(jax.numpy.sort, [shape], ["x"], "y")


def test_a_file_where_the_folder_should_be(exported, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot make the folder '.*file': a file is in the way"):
        export(ExportConfig(tmp_path / "file", str(exported / "student"), sizes=(64,)))


@pytest.mark.parametrize("fields", [{"sizes": ()}, {"formats": ()}, {"sizes": (256, 0)}])
def test_usage_that_cannot_work(tmp_path, fields):
    with pytest.raises(ValueError, match="expected"):
        ExportConfig(tmp_path, **fields)


def test_sizes_that_do_not_suit(exported, tmp_path):
    with pytest.raises(InputError, match="sizes has 63; this student needs multiples of 4"):
        export(ExportConfig(tmp_path, str(exported / "student"), sizes=(63,)))
