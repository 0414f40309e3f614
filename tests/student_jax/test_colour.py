import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from student_jax.config import STTRConfig
from student_jax.models.colour import MOMENTS, ColourMap, apply_map, cell_moments, statistics


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
