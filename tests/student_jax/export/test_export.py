import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import onnxruntime
import pytest
from flax import nnx
from PIL import Image

from student_jax import STTR
from student_jax.export.export import ExportConfig, _predictor, export
from student_jax.export.jaxpr_to_onnx import to_onnx as program_to_onnx
from student_jax.export.onnx_files import mirrored, onnx_files
from student_jax.students import MiniConfig, MiniStudent, ModulatedConfig, ModulatedStudent
from student_jax.students.modulated.modulation import (
    instance_norm,
    instance_norm_of_cells,
    style_filter,
)
from student_jax.weights.folder import from_pretrained, open_student, save_pretrained
from triplets import InputError, read_image
from triplets.bundled import SAMPLES

# Runs a loading example as someone would who has not installed this project.
WITHOUT_US = (
    "import runpy, sys; sys.modules['student_jax'] = sys.modules['triplets'] = None; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module", autouse=True)
def no_checks_of_symbolic_shapes():
    """jaxtyping cannot tell that half of a symbolic size is half of it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
    source = "student-64.stablehlo" if name == "stablehlo" else "."
    example(root, f"load_{name}.py", source, content, style, out)
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


SMALL = {
    "mini": lambda: MiniStudent(
        MiniConfig((8, 8), (8, 8), 16, num_heads=2, mlp_dim=16, tail_dim=16, style_code=8),
        rngs=nnx.Rngs(1),
    ),
    "modulated": lambda: ModulatedStudent(
        ModulatedConfig((8, 8, 8), 8, (8, 8), num_blocks=1, style_code=8), rngs=nnx.Rngs(1)
    ),
}


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    """A small student with weights that float16 holds, and its files."""
    model = SMALL[request.param]()
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), nnx.state(model))
    nnx.update(model, rounded)
    return request.param, model, onnx_files(model)


def sessions(files):
    return {name: onnxruntime.InferenceSession(file) for name, file in files.items()}


def apart(files, content, style):
    """Encode the style, then stylise the content."""
    encode_style, stylize = files["encode_style.onnx"], files["stylize.onnx"]
    names = [output.name for output in encode_style.get_outputs()]
    memory = dict(zip(names, encode_style.run(names, {"style": style}), strict=True))
    return stylize.run(["stylised"], {"content": content, **memory})[0]


def ours(model, content, style):
    """The student's prediction for pictures that are mirrored up to its strides."""

    def predict(state, content, style):
        h, w = content.shape[1:3]
        content = mirrored(content, model.config.content_stride)
        style = mirrored(style, model.config.style_stride)
        return nnx.merge(graphdef, state)(content, style)[:, :h, :w].clip(0, 1)

    graphdef, state = nnx.split(model)
    return np.asarray(jax.jit(predict)(state, content, style))


def test_onnx_of_any_size(small):
    _, model, files = small
    rng = np.random.default_rng(0)
    content = rng.random((2, 33, 46, 3), np.float32)
    style = rng.random((2, 21, 24, 3), np.float32)
    expected = ours(model, content, style)
    loaded = sessions(files)
    (joined,) = loaded["student.onnx"].run(None, {"content": content, "style": style})
    # Both runtimes work in float32, in other orders.
    np.testing.assert_allclose(joined, expected, atol=1e-5)
    np.testing.assert_allclose(apart(loaded, content, style), expected, atol=1e-5)


def test_what_the_files_say_of_themselves(small):
    name, _, files = small
    said = sessions(files)["stylize.onnx"].get_modelmeta().custom_metadata_map
    mixes, stride = {"mini": ("false", "4"), "modulated": ("true", "8")}[name]
    assert (said["student"], said["mixes"], said["content_stride"]) == (name, mixes, stride)


@pytest.mark.parametrize("small", ["modulated"], indirect=True)  # kept alike for every student
def test_onnx_with_weights_in_float16(small):
    """Only weights are kept in it."""
    _, model, files = small
    halved = onnx_files(model, "float16")["student.onnx"]
    rng = np.random.default_rng(0)
    pictures = {name: rng.random((1, 32, 40, 3), np.float32) for name in ("content", "style")}
    results = [
        onnxruntime.InferenceSession(file).run(None, pictures)[0]
        for file in (files["student.onnx"], halved)
    ]
    # Float16 holds these weights: what is computed of them is the same, but for its order.
    np.testing.assert_allclose(*results, atol=1e-5)
    assert len(halved) < len(files["student.onnx"])


@pytest.mark.slow  # forty programs are compiled to compare with
@pytest.mark.parametrize("name", ["modulated", "mini"])
def test_the_bundled_students_at_twenty_sizes(name):
    model = open_student(name, "best")
    files = sessions(onnx_files(model, "float16"))
    rng = np.random.default_rng(0)
    sizes = [(int(rng.integers(18, 400)), int(rng.integers(18, 400))) for _ in range(18)]
    for height, width in [*sizes, (512, 512), (17, 640)]:
        content, style = (
            resized(picture, height, width) for picture in ("coffee", "van_gogh_harvest")
        )
        expected = ours(model, content, style)
        (joined,) = files["student.onnx"].run(None, {"content": content, "style": style})
        # Sums over all positions, by which features are normalised, are ordered differently: a
        # fortieth of a grey level.
        np.testing.assert_allclose(joined, expected, atol=1e-4)
        np.testing.assert_allclose(apart(files, content, style), expected, atol=1e-4)


def resized(name, height, width):
    (path,) = SAMPLES.rglob(f"{name}.jpg")
    picture = Image.open(path).convert("RGB").resize((width, height))
    return np.asarray(picture, np.float32)[None] / 255


def test_operations_without_translation_are_named():
    shape = jax.ShapeDtypeStruct((4,), np.float32)
    with pytest.raises(NotImplementedError, match="no ONNX translation of sort"):
        program_to_onnx(lambda _, x: jax.numpy.sort(x), (), [shape], ["x"], ["y"])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["norm", "norm of cells", "filter"])
def test_scales_and_shifts_go_into_the_operation_before_them(kind, batch):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (batch, 6, 5, 8)).astype(np.float32)
    scale, shift = rng.normal(size=(2, batch, 1, 1, 8)).astype(np.float32)
    kernels = rng.normal(size=(batch, 72)).astype(np.float32)
    operation = {
        "norm": lambda x, _: instance_norm(x),
        "norm of cells": lambda x, _: instance_norm_of_cells(x),
        "filter": style_filter,
    }[kind]

    def program(_, x, kernels, scale, shift):
        y = operation(x, kernels)
        return shift + ((y * scale + shift) * shift), y - 1, y * y

    arguments = [x, kernels, scale, shift]
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in arguments]
    names = ["x", "kernels", "scale", "shift"]
    model = program_to_onnx(program, (), shapes, names, ["a", "b", "c"])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, dict(zip(names, arguments, strict=True)))
    for y, expected in zip(found, program((), *arguments), strict=True):
        # The same sums in another order.
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    if batch == 1 and kind != "norm of cells":  # whose own last operations these are
        makers = {output: node for node in model.graph.node for output in node.output}
        node = makers["a"]
        while node.op_type in ("Identity", "Transpose"):
            node = makers[node.input[0]]
        assert node.op_type in ("InstanceNormalization", "Conv")


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
