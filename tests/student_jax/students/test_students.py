"""What every student of the package does: the protocol, sizes, memories, dropout, remat."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import build, jitted, pictures
from flax import nnx

from student_jax import MiniConfig, STTRConfig
from student_jax.nets.imagenet import normalise
from student_jax.student import (
    Student,
    StudentConfig,
    build_student,
    config_from_json,
    config_to_json,
    count_parameters,
)
from student_jax.students import ModulatedConfig

# Light, with other strides for contents and styles.
TINY = {
    "sttr": STTRConfig(
        content_widths=(256,),
        style_widths=(256, 512),
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_dim=32,
        dropout=0.1,
        tail_dim=16,
    ),
    "mini": MiniConfig(
        content_widths=(8, 8),
        style_widths=(8, 8, 16),
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_dim=32,
        dropout=0.1,
        tail_dim=16,
        style_code=4,
    ),
    "modulated": ModulatedConfig(
        widths=(8, 8, 16), pixel_width=8, style_widths=(8, 8, 16), num_blocks=1, style_code=8
    ),
}
TRANSFORMERS = ("sttr", "mini")


@pytest.fixture(scope="module", params=TINY)
def config(request):
    return TINY[request.param]


@pytest.fixture(scope="module")
def model(config):
    return build(config)


@pytest.fixture(scope="module", params=TRANSFORMERS)
def transformer_config(request):
    return TINY[request.param]


# --- configuration


@pytest.mark.parametrize(
    "config", [STTRConfig.reference(), MiniConfig(), ModulatedConfig(), *TINY.values()]
)
def test_config_survives_json(config):
    text = json.dumps(config_to_json(config))
    assert config_from_json(json.loads(text)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content_widths": ()}, "content_widths is"),
        ({"num_heads": 3}, "hidden_dim is 16"),
        ({"hidden_dim": 6}, "multiple of 4"),
        ({"num_decoder_layers": 0}, "num_decoder_layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"tail_dim": 10}, "multiple of the content stride"),
    ],
)
def test_config_names_what_is_wrong(transformer_config, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(transformer_config, **change)


def test_config_from_json_names_unknown_and_missing_fields(config):
    fields = config_to_json(config)
    fields["depth"] = fields.pop("style_widths")
    with pytest.raises(ValueError, match=r"unknown \['depth'\], missing \['style_widths'\]"):
        config_from_json(fields)


@pytest.mark.slow  # traces three initialisations at full size
def test_sizes_of_the_presets():
    def num_parameters(config):
        return count_parameters(nnx.eval_shape(lambda: build_student(config, rngs=nnx.Rngs(0))))

    # The released model has 45.77 M numbers, of which 0.12 M are frozen batch norms and the
    # running statistics of the tail.
    assert 45.5e6 < num_parameters(STTRConfig.reference()) < 45.8e6
    assert num_parameters(MiniConfig()) < 4e6
    assert num_parameters(ModulatedConfig()) < 4e6


def test_they_follow_the_protocol(config, model):
    assert isinstance(model, Student) and isinstance(model.config, StudentConfig)
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert {"slow", "normal"} <= {model.learning_group(path) for path, _ in parameters}


# --- calls


def test_any_suitable_sizes(config, model):
    predict = jitted(model)
    for a, b, c, d in ((2, 2, 1, 1), (4, 7, 5, 2)):
        h, w = a * config.content_stride, b * config.content_stride
        style = pictures(1, 1, c * config.style_stride, d * config.style_stride)
        prediction = predict(pictures(0, 1, h, w), style)
        assert prediction.shape == (1, h, w, 3)
        assert jnp.isfinite(prediction).all()


def test_sizes_that_do_not_suit_are_refused(config, model):
    stride = config.content_stride
    memory = jax.jit(lambda style: model.encode_style(style))(pictures(1, 1, 16, 16))
    with pytest.raises(ValueError, match=rf"the content is 32 x 18 px.*multiples of {stride} px"):
        model.decode(pictures(0, 1, 18, 32), [memory])
    with pytest.raises(ValueError, match=rf"32 x {stride} px.*at least {2 * stride} px"):
        model.decode(pictures(0, 1, stride, 32), [memory])
    with pytest.raises(ValueError, match=r"the style is 20 x 16 px.*multiples of 8 px"):
        model.encode_style(pictures(1, 1, 16, 20))
    with pytest.raises(ValueError, match="2 contents but 1 encoded styles"):
        model.decode(pictures(0, 2, 16, 16), [memory])


def test_a_style_encoded_once_serves_several_contents(model):
    content, style = pictures(0, 2, 32, 48), pictures(1, 1, 64, 32)
    expected = jitted(model)(content, jnp.concatenate([style, style]))
    memory = jax.jit(lambda style: model.encode_style(style))(style)
    decode = jax.jit(lambda content: model.decode(content, [memory]))
    for i in range(2):
        # The same operations in other batches: float32 rounding.
        atol = 1e-6 * jnp.abs(expected).max() + 1e-4
        np.testing.assert_allclose(decode(content[i : i + 1]), expected[i : i + 1], atol=atol)


def test_memories_are_batched_on_their_first_axis(model):
    encode = jax.jit(lambda style: model.encode_style(style))
    styles = pictures(1, 2, 16, 24)
    both, second = encode(styles), encode(styles[1:])
    for row, expected in zip(jax.tree.leaves(both), jax.tree.leaves(second), strict=True):
        assert row.shape[0] == 2
        np.testing.assert_allclose(row[1:], expected, rtol=1e-4, atol=1e-5)


def test_weights_choose_among_memories(model):
    encode = jax.jit(lambda style: model.encode_style(style))
    content, styles = pictures(0, 1, 16, 24), [pictures(i, 1, 16, 16) for i in (1, 2)]
    memories = [encode(style) for style in styles]
    decode = jax.jit(lambda *memories, **weights: model.decode(content, memories, **weights))
    alone = decode(memories[0])
    chosen = decode(*memories, weights=jnp.array([1.0, 0.0]))
    # Values reach 170 with random weights, where float32 steps are 2e-5.
    np.testing.assert_allclose(chosen, alone, rtol=1e-5, atol=1e-4)
    assert jnp.abs(decode(*memories, weights=jnp.array([0.5, 0.5])) - alone).max() > 1e-4


def test_what_is_beyond_the_picture_is_hidden_from_all_that_look_far(model):
    """Other pixels under the padding only change what convolutions see of them."""
    # Tokens of 4 px: 60 of them are the picture's, far from the padding at the right.
    content, style = np.array(pictures(0, 1, 16, 480)), pictures(1, 1, 16, 16)
    padding = np.zeros((1, 16, 480), bool)
    padding[:, :, 240:] = True
    memory = jax.jit(lambda style: model.encode_style(style))(style)
    decode = jax.jit(lambda content, **options: model.decode(content, [memory], **options))
    expected = decode(content, padding=jnp.asarray(padding))
    content[:, :, 320:] = 1.0
    actual = decode(content, padding=jnp.asarray(padding))
    np.testing.assert_allclose(actual[:, :, :160], expected[:, :, :160], rtol=1e-4, atol=1e-4)
    # Without a mask, they attend to it.
    assert np.abs(decode(content) - expected)[:, :, :160].max() > 1e-3


def test_arrays_of_numpy_are_taken(model):
    images = pictures(0, 1, 32, 32)
    expected = jitted(model)(images, images)
    np.testing.assert_array_equal(jitted(model)(np.asarray(images), np.asarray(images)), expected)
    # Outside of jit too, where NumPy would answer with NumPy.
    assert isinstance(normalise(np.asarray(images)), jax.Array)


# --- training


def test_dropout_follows_its_key(transformer_config):
    model = build(transformer_config)
    content, style = pictures(0, 1, 32, 32), pictures(1, 1, 32, 32)

    @jax.jit
    def train(seed):
        rngs = nnx.Rngs(dropout=jax.random.key(seed))
        return nnx.merge(*nnx.split(model), copy=True)(content, style, train=True, rngs=rngs)

    np.testing.assert_array_equal(train(0), train(0))
    assert jnp.abs(train(0) - train(1)).max() > 1e-4
    with pytest.raises(ValueError, match="needs keys"):
        model(content, style, train=True)


def gradient(config, remat):
    """Of a loss, as a function of the parameters, and the parameters."""
    content, style = pictures(0, 1, 32, 32), pictures(1, 1, 32, 32)
    graphdef, params, rest = nnx.split(build(config, remat=remat), nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        rngs = nnx.Rngs(dropout=0)
        return jnp.mean(model(content, style, train=True, rngs=rngs) ** 2)

    return jax.grad(loss), params


@pytest.mark.parametrize("remat", [False, True])
def test_remat_is_of_layers_or_blocks(config, remat):
    function, params = gradient(config, remat)
    assert ("remat" in str(jax.make_jaxpr(function)(params))) == remat


@pytest.mark.slow  # compiles six gradients
def test_remat_changes_nothing(config):
    expected, found = (
        jax.jit(function)(params)
        for function, params in (gradient(config, remat) for remat in (False, True))
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # The same operations, fused differently: float32 rounding.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
