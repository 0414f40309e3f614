"""The student's parts against plain forms of the same, and its behaviour in training."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from student_jax import STTR, STTRConfig
from student_jax.nets.attention import attention, flash_attention
from student_jax.nets.convolution import ReflectConv, UpsampleConv
from student_jax.nets.imagenet import MEAN, normalise
from student_jax.students.sttr.position_encoding import position_encoding

# Light, but with all that trains differently from how it predicts: dropout and batch norm.
TINY = STTRConfig(
    backbone="light",
    content_widths=(8, 8, 16),
    style_widths=(8, 8, 16, 16),
    hidden_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=32,
    dropout=0.1,
    tail_dim=16,
    tail_batch_norm=True,
    content_skips=True,
)


def pictures(seed, *shape):
    return jax.random.uniform(jax.random.key(seed), (*shape, 3))


def build(config, **options):
    """A model with random numbers of about the right size, faster than by its initialisers."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: STTR(config, **options, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(x):
        if len(x.shape) == 1:
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        return rng.standard_normal(x.shape, np.float32) / np.sqrt(
            np.prod(x.shape[:-1]), dtype=np.float32
        )

    return nnx.merge(graphdef, jax.tree.map(draw, state))


def jitted(model):
    return jax.jit(lambda *args, **kwargs: model(*args, **kwargs))


def num_parameters(config):
    model = nnx.eval_shape(lambda: STTR(config, rngs=nnx.Rngs(0)))
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


# --- configuration


@pytest.mark.parametrize("config", [STTRConfig.reference(), STTRConfig.mini(), TINY])
def test_config_survives_json(config):
    text = json.dumps(dataclasses.asdict(config))
    assert STTRConfig.from_dict(json.loads(text)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, "'vgg'"),
        ({"content_widths": ()}, "content_widths is"),
        ({"backbone": "resnet50"}, "a resnet50 has the first of"),
        ({"num_heads": 3}, "hidden_dim is 16"),
        ({"hidden_dim": 6}, "multiple of 4"),
        ({"num_decoder_layers": 0}, "num_decoder_layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"tail_dim": 12}, "multiple of the content stride"),
    ],
)
def test_config_names_what_is_wrong(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(TINY, **change)


def test_config_from_dict_names_unknown_and_missing_fields():
    fields = dataclasses.asdict(TINY)
    fields["depth"] = fields.pop("mlp_dim")
    with pytest.raises(ValueError, match=r"unknown \['depth'\], missing \['mlp_dim'\]"):
        STTRConfig.from_dict(fields)


def test_sizes_of_the_presets():
    # The released model has 45.77 M numbers, of which 0.12 M are frozen batch norms and the
    # running statistics of the tail.
    assert 45.5e6 < num_parameters(STTRConfig.reference()) < 45.8e6
    assert num_parameters(STTRConfig.mini()) < 4e6


# --- parts


@pytest.mark.parametrize("rows", [20, 10, 4, 0], ids=["2 heads", "1 head", "4 queries", "1 query"])
def test_attention_in_parts_is_the_same(rows):
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (
        jax.random.normal(k, (2, n, 4, 4)) for k, n in zip(keys, (10, 11, 11), strict=True)
    )
    score_bytes = 4 * 2 * 11 * rows
    padding = jnp.arange(11) >= jnp.array([[7], [11]])

    def loss(inputs, score_bytes):
        output = attention(*inputs, padding, score_bytes=score_bytes)
        return jnp.sum(output**2), output

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    whole = run((query, key, value), 2**30)
    in_parts = run((query, key, value), score_bytes)
    # The same sums, compiled apart: float32 rounding.
    for actual, expected in zip(jax.tree.leaves(in_parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_attention_agrees_with_jax_and_hides_padding():
    query = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    key, value = jax.random.normal(jax.random.key(1), (2, 2, 7, 3, 4))
    padding = jnp.arange(7) >= jnp.array([[4], [7]])
    expected = jax.nn.dot_product_attention(query, key, value, mask=~padding[:, None, None, :])
    actual = attention(query, key, value, padding)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    anything = jnp.where(padding[:, :, None, None], 1e3, value)
    np.testing.assert_array_equal(attention(query, key, anything, padding), actual)


def test_flash_attention_is_the_same_with_padding_anywhere():
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value = (
        jax.random.normal(k, (2, n, 3, 8)) for k, n in zip(keys, (10, 12, 12), strict=False)
    )
    padding = jax.random.bernoulli(keys[3], 0.4, (2, 12))
    for mask in (None, padding):
        actual = flash_attention(query, key, value, mask, implementation="xla")
        np.testing.assert_allclose(
            actual,
            attention(query, key, value, mask),
            rtol=1e-4,
            atol=1e-6,  # float32 rounding
        )


def test_gpu_computes_attention_by_cudnn_where_it_can(monkeypatch):
    """Programs for a GPU, made without one: what they call shows in their text."""
    monkeypatch.setattr("student_jax.nets.attention._has_flash_attention", lambda: True)
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )

    def calls(dtype, dim=32, padding=None, **options):
        def loss(inputs):
            return attention(*inputs, padding, **options).astype(jnp.float32).sum()

        inputs = (jax.ShapeDtypeStruct((2, 16, 4, dim), dtype),) * 3
        program = jax.jit(jax.grad(loss)).trace(inputs).lower(lowering_platforms=("cuda",))
        return set(re.findall(r"__cudnn\$\w+", program.as_text()))

    cudnn = {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert calls(jnp.bfloat16) == calls(jnp.float16) == cudnn
    assert calls(jnp.bfloat16, padding=jnp.arange(16) >= jnp.array([[7], [16]])) == cudnn
    assert not calls(jnp.float32)
    assert not calls(jnp.bfloat16, dim=12)
    assert not calls(jnp.bfloat16, dropout_rate=0.1, dropout_key=jax.random.key(0))

    config = dataclasses.replace(STTRConfig.mini(), num_encoder_layers=1, num_decoder_layers=1)
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: STTR(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    )
    picture = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    forward = jax.jit(lambda state, *pictures: nnx.merge(graphdef, state)(*pictures))
    program = forward.trace(state, picture, picture).lower(lowering_platforms=("cuda",))
    # Self-attention of the style and of the content, and the content's to the style.
    assert program.as_text().count("custom_call @__cudnn$fmhaSoftmax(") == 3


@pytest.mark.parametrize("score_bytes", [1, 2**30])
def test_attention_dropout_keeps_the_mean(score_bytes):
    query = jnp.zeros((1, 2000, 1, 4))
    key = jnp.zeros((1, 8, 1, 4))
    value = jnp.ones((1, 8, 1, 4))
    output = attention(
        query, key, value, dropout_rate=0.5, dropout_key=jax.random.key(0), score_bytes=score_bytes
    )
    # Means of 8 weights that are 0 or 2: deviation 0.35 each, 0.008 over 2000 queries.
    assert output.std() == pytest.approx(0.35, abs=0.05)
    assert output.mean() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (5, 4)])
def test_upsample_conv_agrees_with_its_plain_form(size):
    layer = UpsampleConv(3, 4, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    upsampled = jax.image.resize(x, (2, 2 * size[0], 2 * size[1], 3), "bilinear")
    padded = jnp.pad(upsampled, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = layer.bias[...] + jax.lax.conv_general_dilated(
        padded, layer.kernel[...], (1, 1), "VALID", dimension_numbers=dimensions
    )
    # The same sums in another order: float32 rounding.
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_reflect_conv_agrees_with_its_plain_form(size):
    layer = ReflectConv(3, 4, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    expected = layer.bias[...] + jax.lax.conv_general_dilated(
        padded, layer.kernel[...], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # The same sums in another order: float32 rounding.
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_position_encoding_by_hand():
    encoding = position_encoding(jnp.zeros((1, 2, 4), bool), 8)
    assert encoding.shape == (1, 2, 4, 8)
    # Row 1 of 2 is at pi, column 1 of 4 at pi / 2; frequencies 1 and 1 / 100.
    y, x = np.pi, np.pi / 2
    expected = [np.sin(y), np.cos(y), np.sin(y / 100), np.cos(y / 100)]
    expected += [np.sin(x), np.cos(x), np.sin(x / 100), np.cos(x / 100)]
    # The denominator's epsilon of 1e-6 moves the angles by about that much.
    np.testing.assert_allclose(encoding[0, 0, 0], expected, atol=1e-5)


def test_position_encoding_does_not_count_padding():
    padding = jnp.zeros((1, 4, 6), bool).at[:, 2:].set(True).at[:, :, 3:].set(True)
    padded = position_encoding(padding, 8)[:, :2, :3]
    np.testing.assert_array_equal(padded, position_encoding(jnp.zeros((1, 2, 3), bool), 8))


# --- the whole


def test_any_suitable_sizes():
    config = STTRConfig.mini()
    predict = jitted(build(config))
    for a, b, c, d in ((2, 2, 1, 1), (4, 7, 5, 2)):
        h, w = a * config.content_stride, b * config.content_stride
        style = pictures(1, 1, c * config.style_stride, d * config.style_stride)
        prediction = predict(pictures(0, 1, h, w), style)
        assert prediction.shape == (1, h, w, 3)
        assert jnp.isfinite(prediction).all()


def first_prediction(**fields):
    config = dataclasses.replace(TINY, **fields)
    content, style = pictures(0, 2, 64, 64), 0.25 + 0.5 * pictures(1, 2, 64, 64) ** 2
    prediction = jitted(nnx.jit(lambda: STTR(config, rngs=nnx.Rngs(0)))())(content, style)
    return content, style, prediction


def test_the_first_prediction_is_near_grey():
    _, _, prediction = first_prediction(content_skips=False)
    # The mean of ImageNet; the small last weights leave faint traces of the content.
    np.testing.assert_allclose(prediction, np.broadcast_to(MEAN, prediction.shape), atol=0.25)


def test_the_first_prediction_with_skips_is_the_content():
    content, _, prediction = first_prediction()
    np.testing.assert_allclose(prediction, content, atol=0.25)  # likewise


def test_the_first_prediction_with_a_colour_map_has_the_colours_of_the_style():
    _, style, prediction = first_prediction(colour_map=True)
    for statistic in (np.mean, np.std):
        expected = statistic(style, axis=(1, 2))
        np.testing.assert_allclose(statistic(prediction, axis=(1, 2)), expected, atol=0.05)


def test_sizes_that_do_not_suit_are_refused():
    model = build(TINY)
    memory = jax.jit(lambda style: model.encode_style(style))(pictures(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"the content is 32 x 20 px.*multiples of 8 px"):
        model.decode(pictures(0, 1, 20, 32), memory)
    with pytest.raises(ValueError, match=r"the content is 32 x 8 px.*at least 16 px"):
        model.decode(pictures(0, 1, 8, 32), memory)
    with pytest.raises(ValueError, match=r"the style is 24 x 16 px.*multiples of 16 px"):
        model.encode_style(pictures(1, 1, 16, 24))
    with pytest.raises(ValueError, match="2 contents but 1 encoded styles"):
        model.decode(pictures(0, 2, 16, 16), memory)


def test_what_is_under_padding_does_not_matter():
    predict = jitted(build(TINY))
    arguments = {
        "content": pictures(0, 1, 32, 48),
        "style": pictures(1, 1, 64, 48),
        "content_mask": jnp.zeros((1, 32, 48), bool).at[:, :, 16:].set(True),
        "style_mask": jnp.zeros((1, 64, 48), bool).at[:, 32:].set(True),
    }
    white = {
        name: jnp.where(arguments[f"{name}_mask"][..., None], 1.0, arguments[name])
        for name in ("content", "style")
    }
    np.testing.assert_array_equal(predict(**arguments | white), predict(**arguments))


def test_padding_a_style_changes_nothing_far_from_it():
    """Keys under padding are hidden, and positions do not count it."""
    model = build(TINY)
    encode = jax.jit(lambda *args: model.encode_style(*args))
    style = pictures(1, 1, 128, 128)
    mask = jnp.zeros((1, 128, 256), bool).at[:, :, 128:].set(True)
    expected = encode(style)
    padded = encode(jnp.pad(style, ((0, 0), (0, 0), (0, 128), (0, 0))), mask)
    grid = padded.position.reshape(1, 8, 16, -1)[:, :, :8]
    np.testing.assert_array_equal(grid, expected.position.reshape(1, 8, 8, -1))
    assert padded.padding.reshape(8, 16)[:, 8:].all()


def test_a_style_encoded_once_serves_several_contents():
    model = build(TINY)
    content, style = pictures(0, 2, 32, 48), pictures(1, 1, 64, 32)
    expected = jitted(model)(content, jnp.concatenate([style, style]))
    memory = jax.jit(lambda style: model.encode_style(style))(style)
    decode = jax.jit(lambda content: model.decode(content, memory))
    for i in range(2):
        # The same operations in other batches: float32 rounding.
        np.testing.assert_allclose(
            decode(content[i : i + 1]), expected[i : i + 1], rtol=0, atol=1e-4
        )


def test_arrays_of_numpy_are_taken():
    model = jitted(build(TINY))
    images, mask = pictures(0, 1, 32, 32), np.zeros((1, 32, 32), bool)
    expected = model(images, images, jnp.asarray(mask), jnp.asarray(mask))
    arrays = (np.asarray(images), np.asarray(images), mask, mask)
    np.testing.assert_array_equal(model(*arrays), expected)
    # Outside of jit too, where NumPy would answer with NumPy.
    assert isinstance(normalise(np.asarray(images)), jax.Array)


def test_every_parameter_of_the_mini_learns():
    model = build(STTRConfig.mini())
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    content, style = pictures(0, 2, 64, 64), pictures(1, 2, 64, 64)

    @jax.jit
    @jax.grad
    def gradient(params):
        prediction = nnx.merge(graphdef, params, rest)(content, style, train=True)
        return jnp.mean((prediction - style) ** 2)

    dead = [
        jax.tree_util.keystr(path)
        for path, x in jax.tree.leaves_with_path(gradient(params))
        # A bias that all keys share moves every score of a query alike: softmax does not see it.
        if not jnp.abs(x).max() > 0 and "'key'" not in jax.tree_util.keystr(path)
    ]
    assert dead == []


def test_training_uses_and_updates_batch_statistics():
    model = build(dataclasses.replace(TINY, dropout=0.0))
    content, style = pictures(0, 2, 32, 32), pictures(1, 2, 32, 32)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    @jax.jit
    def train(stats):
        model = nnx.merge(graphdef, params, stats)
        return model(content, style, train=True), nnx.state(model, nnx.BatchStat)

    predicted = jitted(model)(content, style)
    trained, updated = train(stats)
    assert jnp.abs(trained - predicted).max() > 1e-3
    for before, after in zip(jax.tree.leaves(stats), jax.tree.leaves(updated), strict=True):
        assert jnp.abs(after - before).max() > 0
    for _ in range(150):
        _, updated = train(updated)
    settled = jitted(nnx.merge(graphdef, params, updated))(content, style)
    # After 150 steps on the same batch, 0.9^150 = 1e-7 of the initial statistics is left.
    np.testing.assert_allclose(settled, trained, atol=2e-4 * jnp.abs(trained).max())


def test_dropout_follows_its_key():
    model = build(dataclasses.replace(TINY, tail_batch_norm=False))
    content, style = pictures(0, 1, 32, 32), pictures(1, 1, 32, 32)

    @jax.jit
    def train(seed):
        rngs = nnx.Rngs(dropout=jax.random.key(seed))
        return model(content, style, train=True, rngs=rngs)

    np.testing.assert_array_equal(train(0), train(0))
    assert jnp.abs(train(0) - train(1)).max() > 1e-4
    with pytest.raises(ValueError, match="needs keys"):
        model(content, style, train=True)


def test_remat_changes_nothing():
    content, style = pictures(0, 1, 32, 32), pictures(1, 1, 32, 32)

    def gradient(remat):
        config = dataclasses.replace(TINY, tail_batch_norm=False)
        graphdef, params = nnx.split(build(config, remat=remat))

        def loss(params):
            model = nnx.merge(graphdef, params)
            rngs = nnx.Rngs(dropout=0)
            return jnp.mean(model(content, style, train=True, rngs=rngs) ** 2)

        program = jax.make_jaxpr(jax.grad(loss))(params)
        return str(program).count("remat"), jax.jit(jax.grad(loss))(params)

    (without, expected), (with_remat, found) = gradient(False), gradient(True)
    assert without == 0 and with_remat >= 2  # an encoder and a decoder layer
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # The same operations, fused differently: float32 rounding.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
