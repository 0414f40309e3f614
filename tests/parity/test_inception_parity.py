"""ArtFID's Inception against the art-fid package, and its weights as their authors publish them."""

import numpy as np
import pytest
import torch
from flax import nnx
from inception_recipe import shapes, weights

from student_jax.evaluation.measures.inception import (
    ArtFeatures,
    inception_from_torch,
    inception_table,
)
from student_jax.nets.torch_names import named_arrays
from triplets import InputError

PARTS = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(scope="module")
def network():
    return inception_from_torch(weights())


def checkpoint():
    """All tensors that the authors' file holds; as views of one number, for they are 87 MB."""
    state = {}
    for name, shape in shapes().items():
        state[f"{name}.conv.weight"] = np.broadcast_to(np.float32(0), shape)
        state |= {f"{name}.bn.{part}": np.zeros(shape[0], np.float32) for part in PARTS}
        state[f"{name}.bn.num_batches_tracked"] = np.array(7)
    state["Conv2d_1a_3x3.conv.weight"] = np.arange(864, dtype=np.float16).reshape(32, 3, 3, 3)
    return state | {"fc.weight": np.zeros((4, 2048)), "AuxLogits.conv0.conv.weight": np.zeros(1)}


@pytest.mark.slow  # compiling the network takes most of a minute on a busy machine
def test_features_are_those_of_art_fid(network):
    images = np.random.default_rng(0).random((2, 99, 131, 3)).astype(np.float32)
    features = ArtFeatures(network)(images)
    # The art-fid package 0.0.2 with the same weights and pictures gives, in float32:
    expected = [0.26095915, 0.03365501, 0.08125142, 0.5949422, 0.44373906, 0.12425885]
    np.testing.assert_allclose(features[0, :6], expected, atol=1e-5)
    assert features.shape == (2, 2048)
    assert features.mean() == pytest.approx(0.13604102, abs=1e-6)


def test_names_go_both_ways(network):
    expected = weights()
    returned = named_arrays(network, inception_table())
    assert returned.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(returned[name], array)


def test_a_file_of_torch_is_read_as_it_is_published(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(ArtFeatures, "__init__", lambda self, network: built.append(network))
    state = {name: torch.from_numpy(np.array(array)) for name, array in checkpoint().items()}
    torch.save(state, tmp_path / "art.pth")
    ArtFeatures.load(str(tmp_path / "art.pth"))
    [network] = built
    # Halves become the float32 of the network; what belongs to the classifiers is left out.
    assert {x.dtype for x in nnx.to_flat_state(nnx.state(network)).leaves} == {np.dtype(np.float32)}
    first = named_arrays(network, inception_table())["Conv2d_1a_3x3.conv.weight"]
    np.testing.assert_array_equal(first.ravel(), np.arange(864))


def without(*names):
    return {name: value for name, value in checkpoint().items() if name not in names}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {f"module.{name}": value for name, value in checkpoint().items()},
            r"missing: Conv2d_1a_3x3\.conv\.weight.*"
            r"unexpected: module\.Conv2d_1a_3x3\.conv\.weight",
        ),
        (
            without("Mixed_7c.branch_pool.bn.bias"),
            r"do not fit the model:\n  missing: Mixed_7c\.branch_pool\.bn\.bias$",
        ),
        (
            checkpoint() | {"Mixed_7c.branch_pool.conv.weight": np.zeros((3, 3, 3, 3))},
            r"Mixed_7c\.branch_pool\.conv\.weight is \(3, 3, 3, 3\), expected \(192, 2048, 1, 1\)$",
        ),
    ],
)
def test_other_weights_are_refused(content, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        inception_from_torch(content)


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), {"epoch": 3} | {"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, None],
)
def test_files_that_are_not_a_checkpoint(content, tmp_path):
    path = tmp_path / "art.pth"
    if content is None:
        path.write_text("no tensors")
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"--fid-weights .*art\.pth.* PyTorch checkpoint"):
        ArtFeatures.load(str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["art.pth"]
