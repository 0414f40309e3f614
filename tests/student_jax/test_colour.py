import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from student_jax.config import STTRConfig
from student_jax.models import STTR
from student_jax.models.colour import (
    MOMENTS,
    ColourMap,
    apply_map,
    cell_moments,
    feature_statistics,
    statistics,
)


def pictures(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(0.3, 0.7, shape), jnp.float32)


def test_statistics_are_those_of_the_pixels():
    images = pictures(0, 2, 16, 24, 3)
    result = statistics(cell_moments(images, None, 8).reshape(2, -1, MOMENTS))
    # The deviation has a variance of 4e-4 added.
    expected = np.concatenate([images.mean((1, 2)), np.sqrt(images.var((1, 2)) + 4e-4)], axis=-1)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_padding_does_not_count():
    images = pictures(0, 1, 16, 24, 3)
    mask = np.zeros((1, 16, 24), bool)
    mask[:, 11:], mask[:, :, 20:] = True, True
    result = statistics(cell_moments(images, jnp.asarray(mask), 8).reshape(1, -1, MOMENTS))
    inside = images[:, :11, :20]
    np.testing.assert_allclose(result[:, :3], inside.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(result[:, 3:], np.sqrt(inside.var((1, 2)) + 4e-4), rtol=1e-5)
    # A cell may also be left out as a whole.
    moments = cell_moments(images, None, 8).reshape(1, -1, MOMENTS)
    padding = jnp.asarray([[False, False, True, False, False, True]])
    left = images[:, :, :16]
    np.testing.assert_allclose(statistics(moments, padding)[:, :3], left.mean((1, 2)), rtol=1e-5)


def test_the_map_begins_with_the_means_and_deviations_of_the_style():
    content, style = pictures(0, 1, 16, 16, 3), 0.1 + 0.5 * pictures(1, 1, 16, 16, 3)
    of = [statistics(cell_moments(x, None, 16).reshape(1, -1, MOMENTS)) for x in (content, style)]
    maps = ColourMap(dtype=jnp.float32, rngs=nnx.Rngs(0))(*of)
    moved = apply_map(jnp.broadcast_to(maps[:, None, None], (1, 16, 16, 12)), content)
    np.testing.assert_allclose(moved.mean((1, 2)), style.mean((1, 2)), atol=1e-5)
    # The two added variances of 4e-4 do not cancel: less than a thousandth of these deviations.
    np.testing.assert_allclose(moved.std((1, 2)), style.std((1, 2)), rtol=2e-3)


def test_a_flat_content_is_not_stretched_without_bound():
    flat = jnp.asarray([[0.0, 0.0, 0.0, 0.02, 0.02, 0.02]])
    style = jnp.asarray([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
    maps = ColourMap(dtype=jnp.float32, rngs=nnx.Rngs(0))(flat, style)
    np.testing.assert_allclose(maps[0, :9].reshape(3, 3), 4 * np.eye(3), atol=1e-6)


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


def test_the_style_code_reaches_every_pixel_and_only_through_the_statistics():
    config = STTRConfig(
        backbone="light",
        content_widths=(8, 8),
        style_widths=(8, 8),
        hidden_dim=8,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_dim=16,
        dropout=0.0,
        tail_dim=16,
        tail_batch_norm=False,
        content_skips=True,
        colour_map=True,
        style_code=4,
    )
    model = STTR(config, rngs=nnx.Rngs(0))
    content = pictures(2, 1, 16, 24, 3)
    memory = model.encode_style(pictures(3, 1, 16, 16, 3))
    assert memory.statistics.shape == (1, 6 + 2 * (8 + 8))
    changed = memory._replace(statistics=memory.statistics.at[:, 6:].add(1.0))
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
