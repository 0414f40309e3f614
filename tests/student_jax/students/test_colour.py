import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from student_jax.students.mini.colour import (
    MAP_NUMBERS,
    MOMENTS,
    STATISTICS,
    ColourMap,
    apply_colour_map,
    cell_moments,
    feature_statistics,
    statistics,
)
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.model import STTR


def pictures(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(0.3, 0.7, shape), jnp.float32)


def expected_statistics(images):
    """By NumPy from the pixels; the deviation has a variance of 4e-4 added."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1, 3)
    deviation = np.sqrt(flat.var(1) + 4e-4)
    centred = flat - flat.mean(1, keepdims=True)
    correlation = [
        (centred[..., i] * centred[..., j]).mean(1) / (deviation[:, i] * deviation[:, j])
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    skewness = (centred**3).mean(1) / deviation**3
    return np.concatenate([flat.mean(1), deviation, np.stack(correlation, 1), skewness], axis=-1)


def skewed_pictures(seed, *shape):
    x = pictures(seed, *shape)
    return x.at[..., 1].set(0.5 * x[..., 0] + 0.3 * x[..., 1] ** 2)


def test_statistics_are_those_of_the_pixels():
    images = skewed_pictures(0, 2, 16, 24, 3)
    result = statistics(cell_moments(images, None, 8).reshape(2, -1, MOMENTS))
    # Third moments in float32 from sums of powers.
    np.testing.assert_allclose(result, expected_statistics(images), rtol=1e-4, atol=1e-4)


def test_padding_does_not_count():
    images = skewed_pictures(0, 1, 16, 24, 3)
    mask = np.zeros((1, 16, 24), bool)
    mask[:, 11:], mask[:, :, 20:] = True, True
    result = statistics(cell_moments(images, jnp.asarray(mask), 8).reshape(1, -1, MOMENTS))
    inside = images[:, :11, :20]
    np.testing.assert_allclose(result, expected_statistics(inside), rtol=1e-4, atol=1e-4)
    # A cell may also be left out as a whole.
    moments = cell_moments(images, None, 8).reshape(1, -1, MOMENTS)
    padding = jnp.asarray([[False, False, True, False, False, True]])
    left = expected_statistics(images[:, :, :16])
    np.testing.assert_allclose(statistics(moments, padding), left, rtol=1e-4, atol=1e-4)


def test_the_map_begins_with_the_means_and_deviations_of_the_style():
    content, style = pictures(0, 1, 16, 16, 3), 0.1 + 0.5 * pictures(1, 1, 16, 16, 3)
    of = [statistics(cell_moments(x, None, 16).reshape(1, -1, MOMENTS)) for x in (content, style)]
    moved = apply_colour_map(ColourMap(rngs=nnx.Rngs(0))(*of), content)
    np.testing.assert_allclose(moved.mean((1, 2)), style.mean((1, 2)), atol=1e-5)
    # The two added variances of 4e-4 do not cancel: less than a thousandth of these deviations.
    np.testing.assert_allclose(moved.std((1, 2)), style.std((1, 2)), rtol=2e-3)


def test_the_map_is_quadratic_within_four_deviations():
    scale, offset = jnp.ones(3), jnp.zeros(3)
    mean, deviation = jnp.full(3, 0.5), jnp.full(3, 0.1)
    coefficients = jnp.zeros((9, 3)).at[0, 0].set(1.0).at[3, 1].set(2.0).at[6, 2].set(3.0)
    constant = jnp.array([0.0, 0.0, 0.25])
    numbers = jnp.concatenate([scale, offset, mean, deviation, coefficients.ravel(), constant])
    colours = jnp.array([[0.6, 0.7, 0.5], [9.0, 0.5, 0.5]])[None, None]
    # Standard units: (1, 2, 0), and (4, 0, 0) after clipping. z_r to red, z_r^2 - 1 to green,
    # z_r z_g to blue.
    expected = colours + jnp.array([[1.0, 0.0, 6.25], [4.0, 30.0, 0.25]])
    np.testing.assert_allclose(apply_colour_map(numbers[None], colours), expected, rtol=1e-5)


def test_a_flat_content_is_not_stretched_without_bound():
    flat = jnp.zeros((1, STATISTICS)).at[:, 3:6].set(0.02)
    style = jnp.zeros((1, STATISTICS)).at[:, 3:6].set(1.0)
    numbers = ColourMap(rngs=nnx.Rngs(0))(flat, style)
    colours = pictures(2, 1, 4, 4, 3)
    np.testing.assert_allclose(apply_colour_map(numbers, colours), 4 * colours, atol=1e-6)


def test_a_colour_map_needs_skips():
    with pytest.raises(ValueError, match="colour_map is on without content_skips"):
        STTRConfig(colour_map=True)


def test_a_style_code_needs_a_colour_map():
    with pytest.raises(ValueError, match="style_code is set without colour_map"):
        STTRConfig(style_code=8)
    with pytest.raises(ValueError, match="style_code is -1"):
        STTRConfig(style_code=-1)


def test_feature_statistics_do_not_count_padding():
    features = pictures(0, 2, 4, 6, 5)
    mask = np.zeros((2, 16, 24), bool)
    mask[:, 8:], mask[:, :, 20:] = True, True
    inside = features[:, :2, :5]
    expected = np.concatenate([inside.mean((1, 2)), np.sqrt(inside.var((1, 2)) + 1e-5)], axis=-1)
    np.testing.assert_allclose(feature_statistics(features, jnp.asarray(mask)), expected, rtol=1e-5)
    whole = feature_statistics(inside, None)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)


@pytest.fixture
def small(tiny_model):
    """With all that is global in a style."""
    return dataclasses.replace(tiny_model, colour_map=True, style_code=4)


def test_statistics_are_float32_in_half_precision(small):
    content, style = pictures(2, 1, 16, 24, 3), pictures(3, 1, 16, 16, 3)
    numbers = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = STTR(small, dtype=dtype, rngs=nnx.Rngs(0))
        grid, _ = model.encode_content(content)
        memory = model.encode_style(style)
        tokens = grid.reshape(1, -1, grid.shape[-1])
        whole = model.transform(tokens, jnp.zeros((1, 24, small.hidden_dim)), [memory])
        numbers.append(whole[..., small.tail_dim :][..., :MAP_NUMBERS])
        assert model.decode(content, memory).dtype == jnp.float32
    np.testing.assert_array_equal(*numbers)


def test_the_style_code_reaches_every_pixel_and_only_through_the_statistics(small):
    model = STTR(small, rngs=nnx.Rngs(0))
    content = pictures(2, 1, 16, 24, 3)
    memory = model.encode_style(pictures(3, 1, 16, 16, 3))
    assert memory.statistics.shape == (1, STATISTICS + 2 * (8 + 8))
    changed = memory._replace(statistics=memory.statistics.at[:, STATISTICS:].add(1.0))
    before = model.decode(content, memory)
    # A new model's code has no effect yet.
    np.testing.assert_array_equal(model.decode(content, changed), before)
    for modulation in model.tail.modulations:
        modulation.bias[...] = jnp.zeros_like(modulation.bias)
        modulation.kernel[...] = jnp.ones_like(modulation.kernel)
    for upsampling in model.tail.upsamplings:
        upsampling.kernel[...] = jnp.ones_like(upsampling.kernel)
    difference = model.decode(content, changed) - model.decode(content, memory)
    assert (jnp.abs(difference).max(-1) > 0).all()
