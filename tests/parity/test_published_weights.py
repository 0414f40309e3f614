"""Published weights, from PyTorch's files and others, to students and back."""

import argparse
import hashlib
import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from student_jax import STTR, STTRConfig, convert
from student_jax.students.sttr.published import (
    ExportConfig,
    ImportConfig,
    export_weights,
    import_weights,
)
from student_jax.weights.folder import open_student
from student_jax.weights.published import find_weights, read_weights
from triplets import InputError

SMALL = STTRConfig(
    style_widths=(256, 512),
    hidden_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=32,
    tail_dim=32,
)


@pytest.fixture(autouse=True)
def small_reference(monkeypatch):
    monkeypatch.setattr(STTRConfig, "reference", lambda: SMALL)


@pytest.fixture(scope="module")
def official():
    """A state_dict as STTR's authors save it, of random numbers."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: STTR(SMALL, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(lambda x: rng.random(x.shape, np.float32), state)
    return convert.sttr_to_torch(nnx.merge(graphdef, arrays))


def write_checkpoint(path, weights):
    """As their training does, with settings and other numbers beside the model."""
    model = {name: torch.from_numpy(array) for name, array in weights.items()}
    args = argparse.Namespace(lr=1e-4, hidden_dim=256)
    torch.save({"model": model, "optimizer": {"state": {}}, "epoch": 5, "args": args}, path)


def test_checkpoint_of_the_authors_and_back(official, tmp_path, capsys):
    others = {
        "vgg_encoder.slice1.0.weight": np.zeros((64, 3, 3, 3), np.float32),
        "empty_weight": np.ones(92, np.float32),
    }
    path = tmp_path / "checkpoint0005.pth"
    write_checkpoint(path, official | others)
    import_weights(ImportConfig("sttr", str(path), tmp_path / "student"))
    assert "ignored 2: empty_weight, vgg_encoder.slice1.0.weight" in capsys.readouterr().out
    origin = json.loads((tmp_path / "student" / "import.json").read_text())
    assert origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert origin["ignored"] == sorted(others)

    export_weights(ExportConfig(str(tmp_path / "student"), tmp_path / "back.safetensors"))
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(back[name], array)


def test_only_the_papers_student_has_the_authors_names(tmp_path):
    with pytest.raises(InputError, match="mini is a mini student; only the paper's STTR has names"):
        export_weights(ExportConfig("mini", tmp_path / "mini.safetensors"))
    assert not (tmp_path / "mini.safetensors").exists()


def test_names_that_are_ignored_are_not_used(official, tmp_path):
    save_file(official, tmp_path / "sttr.safetensors")
    source = str(tmp_path / "sttr.safetensors")
    with pytest.raises(InputError, match=r"missing: tail\.3\.bias"):
        import_weights(ImportConfig("sttr", source, tmp_path / "student", ignore=(r"\.3\.bias$",)))


def test_faults_are_told_and_nothing_is_written(official, tmp_path):
    weights = {"decoder.weight": np.zeros(1, np.float32)} | official
    del weights["tail.3.weight"]
    save_file(weights, tmp_path / "wrong.safetensors")
    config = ImportConfig("sttr", str(tmp_path / "wrong.safetensors"), tmp_path / "student")
    with pytest.raises(InputError) as error:
        import_weights(config)
    assert "missing: tail.3.weight" in str(error.value)
    assert "unexpected: decoder.weight" in str(error.value)
    assert not config.out.exists()


@pytest.mark.slow
def test_backbones_of_imagenet(official, tmp_path):
    prefix = "backbone_style.body."
    resnet = {k.removeprefix(prefix): v for k, v in official.items() if k.startswith(prefix)}
    resnet |= {
        "fc.weight": np.zeros((10, 2048), np.float32),
        "bn1.num_batches_tracked": np.zeros((), np.int64),
    }
    save_file(resnet, tmp_path / "resnet50.safetensors")
    source = str(tmp_path / "resnet50.safetensors")
    import_weights(ImportConfig("resnet50", source, tmp_path / "student"))
    student = open_student(str(tmp_path / "student"))
    for backbone in (student.content_backbone, student.style_backbone):
        kernel = backbone.stages[0].conv.kernel[...]
        np.testing.assert_array_equal(kernel, resnet["conv1.weight"].transpose(2, 3, 1, 0))
    origin = json.loads((tmp_path / "student" / "import.json").read_text())
    assert set(origin["ignored"]) == {"fc.weight", "bn1.num_batches_tracked"}
    with pytest.raises(InputError, match="exists already"):
        import_weights(ImportConfig("resnet50", source, tmp_path / "student"))


def test_file_that_runs_code_is_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(1)}, "hook": print}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="or holds more than tensors and plain values") as error:
        read_weights(tmp_path / "bad.pth")
    assert "weights_only" not in str(error.value)


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    torch.save(torch.zeros(1), tmp_path / "tensor.pth")
    for name in ("cat.jpg", "tensor.pth"):
        with pytest.raises(InputError, match=rf'"[^"]*{name}": it is not a PyTorch checkpoint, or'):
            read_weights(tmp_path / name)


def test_names_to_ignore_that_are_no_pattern(tmp_path):
    with pytest.raises(ValueError, match=r"ignore has '\(', which is not a regular"):
        ImportConfig("sttr", "weights.pth", tmp_path / "student", ignore=("(",))


@pytest.mark.parametrize("source", ["missing.safetensors", "folder/missing.pth", "a/b/c"])
def test_source_that_is_nowhere(source):
    with pytest.raises(InputError, match="neither a file nor the name of a repository"):
        find_weights(source)
