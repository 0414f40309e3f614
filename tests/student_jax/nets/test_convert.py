"""Conversion of PyTorch weights: all or nothing, and back."""

import jax
import numpy as np
import pytest
from flax import nnx

from student_jax import STTR, STTRConfig, convert
from student_jax.nets.resnet import ResNet

SMALL = STTRConfig(
    hidden_dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=32, tail_dim=32
)


@pytest.fixture(scope="module")
def model():
    """A model whose numbers are all different, statistics and frozen batch norms included."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: STTR(SMALL, rngs=nnx.Rngs(0))))
    leaves, treedef = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    arrays = [rng.random(x.shape, np.float32) for x in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, arrays))


@pytest.fixture
def weights(model):
    return convert.sttr_to_torch(model)


def test_round_trip_is_exact(model, weights):
    again = convert.sttr_from_torch(weights, SMALL)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    twice = convert.sttr_to_torch(again)
    assert twice.keys() == weights.keys()
    for name, array in twice.items():
        np.testing.assert_array_equal(array, weights[name])
        assert array.dtype == weights[name].dtype


def test_all_numbers_are_carried_over(model, weights):
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    assert len(counters) == 9 and all(weights.pop(name) == 0 for name in counters)
    assert sum(x.size for x in weights.values()) == sum(
        x.size for x in jax.tree.leaves(nnx.state(model))
    )


def test_all_faults_are_named_at_once(weights):
    del weights["tail.3.weight"]
    weights["tail.3.wieght"] = np.zeros(1, np.float32)
    weights["transformer.encoder.layers.0.self_attn.in_proj_weight"] = np.zeros((16, 48))
    weights["input_proj_s.bias"] = np.zeros(17)
    with pytest.raises(ValueError, match="do not fit the model") as error:
        convert.sttr_from_torch(weights, SMALL)
    assert str(error.value).splitlines()[1:] == [
        "  wrong shape: input_proj_s.bias is (17,), expected (16,)",
        "  wrong shape: transformer.encoder.layers.0.self_attn.in_proj_weight is (16, 48), "
        "expected (48, 16)",
        "  missing: tail.3.weight",
        "  unexpected: tail.3.wieght",
    ]


def test_weights_of_a_deeper_model_are_unexpected(weights):
    deeper = "transformer.decoder.layers.1.norm1.weight"
    with pytest.raises(ValueError, match=f"unexpected: {deeper}"):
        convert.sttr_from_torch(weights | {deeper: np.zeros(16)}, SMALL)


def test_what_the_authors_save_beside_the_model_is_ignored(weights):
    beside = {
        "criterion.vgg_encoder.slice1.0.weight": np.zeros(1),
        "empty_weight": np.zeros(1),
        "bbox_embed.layers.0.bias": np.zeros(1),
        "backbone_style.body.bn1.num_batches_tracked": np.zeros(()),
    }
    convert.sttr_from_torch(weights | beside, SMALL)
    with pytest.raises(ValueError, match="unexpected: empty_weight"):
        convert.sttr_from_torch(weights | beside, SMALL, ignored=())


def test_resnet_ignores_what_a_backbone_does_not_have(model, weights):
    prefix = "backbone_content.body."
    weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    weights |= {
        "layer4.2.bn3.weight": np.zeros(2048),
        "fc.weight": np.zeros((1000, 2048)),
        "bn1.num_batches_tracked": np.zeros((), np.int64),
    }
    backbone = convert.resnet50_from_torch(weights, (256, 512))
    assert isinstance(backbone, ResNet)
    expected = nnx.state(model.content_backbone)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(backbone), expected)
    with pytest.raises(ValueError, match=r"unexpected: layer5\.weight"):
        convert.resnet50_from_torch(weights | {"layer5.weight": np.zeros(1)}, (256, 512))


@pytest.mark.parametrize(
    ("converter", "later"),
    [
        (convert.vgg16_from_torch, "features.19.weight"),
        (convert.vgg19_from_torch, "features.21.weight"),
    ],
)
def test_vgg_ignores_later_layers_only(converter, later):
    ignored = {later: np.zeros(1), "classifier.6.bias": np.zeros(1)}
    with pytest.raises(ValueError, match=r"missing: features\.0\.weight") as error:
        converter(ignored | {"features.1.weight": np.zeros(1)})
    assert str(error.value).count("unexpected") == 1
    assert "unexpected: features.1.weight" in str(error.value)
