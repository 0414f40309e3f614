"""The command that converts ArtFID's weights."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_recipe import shapes
from safetensors.numpy import load_file

from triplets import InputError

PARTS = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """The command on a checkpoint with this content; returns the file that it writes."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "scripts")
    script = importlib.import_module("convert_art_inception")

    def run(content):
        torch.save(content, tmp_path / "art.pth")
        out = tmp_path / "art.safetensors"
        script.convert(script.ConvertConfig(tmp_path / "art.pth", out))
        return out

    return run


def checkpoint():
    """All tensors that the authors' file holds; as views of one number, for they are 87 MB."""
    zero = torch.zeros(())
    state = {"Conv2d_1a_3x3.conv.weight": torch.arange(864.0).reshape(32, 3, 3, 3).half()}
    for name, shape in shapes().items():
        state.setdefault(f"{name}.conv.weight", zero.expand(shape))
        state |= {f"{name}.bn.{part}": zero.expand(shape[0]) for part in PARTS}
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
    return state | {"fc.weight": zero.expand(4, 2048), "AuxLogits.conv0.conv.weight": zero}


def test_feature_part_is_kept_in_float32(convert):
    out = convert(checkpoint())
    kept = load_file(out)
    out.unlink()
    assert set(kept) == {
        f"{name}.{part}"
        for name in shapes()
        for part in ("conv.weight", *(f"bn.{p}" for p in PARTS))
    }
    assert {value.dtype for value in kept.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(kept["Conv2d_1a_3x3.conv.weight"].ravel(), np.arange(864))


def without(*names):
    return {name: value for name, value in checkpoint().items() if name not in names}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), r"art\.pth holds a Tensor; expected tensors by name"),
        ({"state_dict": checkpoint()}, r'art\.pth holds a dict as "state_dict"; expected nothing'),
        ({"epoch": 3} | checkpoint(), 'holds a int as "epoch"'),
        (
            {f"module.{name}": value for name, value in checkpoint().items()},
            r"holds module\.Conv2d_1a_3x3\.conv\.weight, .*; expected all tensors of ArtFID's "
            r"Inception .* 'Conv2d_1a_3x3\.conv\.weight'",
        ),
        (without("Mixed_7c.branch_pool.bn.bias"), r"fails at 'Mixed_7c\.branch_pool\.bn\.bias'"),
        (
            checkpoint() | {"Mixed_7c.branch_pool.conv.weight": torch.zeros(3, 3, 3, 3)},
            "expected all tensors of ArtFID's Inception",
        ),
    ],
)
def test_other_checkpoints_are_refused(convert, tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        convert(content)
    assert [file.name for file in tmp_path.iterdir()] == ["art.pth"]


def test_files_that_are_no_checkpoint(convert, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda content, path: path.write_text("no tensors"))
    with pytest.raises(InputError, match=r"art\.pth is no PyTorch checkpoint"):
        convert({})
