"""What is the mini student's alone: colours, codes, and how it begins."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import build, jitted, pictures
from flax import nnx
from test_students import TINY as ALL

from student_jax import MiniConfig, MiniStudent
from student_jax.nets.statistics import STATISTICS

TINY = ALL["mini"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content_widths": (0, 8)}, "content_widths is"),
        ({"style_code": 0}, "style_code is 0"),
        ({"style_code": -1}, "style_code is -1"),
    ],
)
def test_config_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.fixture(scope="module")
def fresh():
    return jitted(nnx.jit(lambda: MiniStudent(TINY, rngs=nnx.Rngs(0)))())


def test_the_first_prediction_of_a_picture_in_its_own_style_is_the_picture(fresh):
    content = pictures(0, 2, 64, 64)
    # The small last weights leave faint traces.
    np.testing.assert_allclose(fresh(content, content), content, atol=0.25)


def test_the_first_prediction_has_the_colours_of_the_style(fresh):
    content, style = pictures(0, 2, 64, 64), 0.25 + 0.5 * pictures(1, 2, 64, 64) ** 2
    prediction = fresh(content, style)
    for statistic in (np.mean, np.std):
        expected = statistic(style, axis=(1, 2))
        np.testing.assert_allclose(statistic(prediction, axis=(1, 2)), expected, atol=0.05)


def test_every_parameter_of_the_bundled_architecture_learns():
    model = build(MiniConfig())
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


def test_statistics_are_float32_in_half_precision():
    content, style = pictures(2, 1, 16, 24), pictures(3, 1, 16, 16)
    maps = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = build(TINY, dtype=dtype)

        @jax.jit
        def colour_map(model=model, dtype=dtype):
            tokens, _ = model.encode_content(content)
            assert tokens.tokens.dtype == dtype and tokens.moments.dtype == jnp.float32
            memory = model.encode_style(style)
            assert model.decode(content, [memory]).dtype == jnp.float32
            return model.transform(tokens, model.context(tokens), [memory]).colour_map

        maps.append(colour_map())
    jax.tree.map(np.testing.assert_array_equal, *maps)


def test_the_style_code_reaches_every_pixel_and_only_through_the_statistics():
    model = MiniStudent(TINY, rngs=nnx.Rngs(0))
    content = pictures(2, 1, 16, 24)
    memory = model.encode_style(pictures(3, 1, 16, 16))
    assert sum(x.shape[1] for x in memory.colours) == STATISTICS
    assert memory.features.shape == (1, 2 * (8 + 8 + 16))
    changed = memory._replace(features=memory.features + 1.0)
    before = model.decode(content, [memory])
    # A new model's code has no effect yet.
    np.testing.assert_array_equal(model.decode(content, [changed]), before)
    for modulation in model.tail.modulations:
        modulation.bias[...] = jnp.zeros_like(modulation.bias)
        modulation.kernel[...] = jnp.ones_like(modulation.kernel)
    for upsampling in model.tail.upsamplings:
        upsampling.kernel[...] = jnp.ones_like(upsampling.kernel)
    difference = model.decode(content, [changed]) - model.decode(content, [memory])
    assert (jnp.abs(difference).max(-1) > 0).all()
