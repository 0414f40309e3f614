"""The mini student's colour statistics and maps against NumPy and by hand."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from student_jax.nets.statistics import (
    STATISTICS,
    ColourStatistics,
    colour_moments,
    colour_statistics,
    feature_statistics,
)
from student_jax.students.mini.colour import ColourMap, QuadraticMap, apply_colour_map


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


def of_pictures(images, stride):
    return colour_statistics(colour_moments(images, stride))


def test_statistics_are_those_of_the_pixels():
    images = skewed_pictures(0, 2, 16, 24, 3)
    result = np.concatenate(of_pictures(images, 8), axis=-1)
    assert result.shape == (2, STATISTICS)
    # Third moments in float32 from sums of powers.
    np.testing.assert_allclose(result, expected_statistics(images), rtol=1e-4, atol=1e-4)


def test_hidden_cells_do_not_count():
    images = skewed_pictures(0, 1, 16, 24, 3)
    hidden = jnp.asarray([[[False, False, True], [False, False, True]]])
    result = colour_statistics(colour_moments(images, 8), hidden)
    left = expected_statistics(images[:, :, :16])
    np.testing.assert_allclose(np.concatenate(result, axis=-1), left, rtol=1e-4, atol=1e-4)


def test_the_map_begins_with_the_means_and_deviations_of_the_style():
    content, style = pictures(0, 1, 16, 16, 3), 0.1 + 0.5 * pictures(1, 1, 16, 16, 3)
    both = (of_pictures(x, 16) for x in (content, style))
    moved = apply_colour_map(ColourMap(rngs=nnx.Rngs(0))(*both), content)
    np.testing.assert_allclose(moved.mean((1, 2)), style.mean((1, 2)), atol=1e-5)
    # The two added variances of 4e-4 do not cancel: less than a thousandth of these deviations.
    np.testing.assert_allclose(moved.std((1, 2)), style.std((1, 2)), rtol=2e-3)


def test_the_map_is_quadratic_within_four_deviations():
    scale, offset = jnp.ones(3), jnp.zeros(3)
    mean, deviation = jnp.full(3, 0.5), jnp.full(3, 0.1)
    coefficients = jnp.zeros((9, 3)).at[0, 0].set(1.0).at[3, 1].set(2.0).at[6, 2].set(3.0)
    constant = jnp.array([0.0, 0.0, 0.25])
    numbers = (scale, offset, mean, deviation, coefficients, constant)
    colour_map = QuadraticMap(*(x[None] for x in numbers))
    colours = jnp.array([[0.6, 0.7, 0.5], [9.0, 0.5, 0.5]])[None, None]
    # Standard units: (1, 2, 0), and (4, 0, 0) after clipping. z_r to red, z_r^2 - 1 to green,
    # z_r z_g to blue.
    expected = colours + jnp.array([[1.0, 0.0, 6.25], [4.0, 30.0, 0.25]])
    np.testing.assert_allclose(apply_colour_map(colour_map, colours), expected, rtol=1e-5)


def test_a_flat_content_is_not_stretched_without_bound():
    zeros = jnp.zeros((1, 3))
    flat = ColourStatistics(zeros, zeros + 0.02, zeros, zeros)
    style = ColourStatistics(zeros, zeros + 1.0, zeros, zeros)
    colour_map = ColourMap(rngs=nnx.Rngs(0))(flat, style)
    colours = pictures(2, 1, 4, 4, 3)
    np.testing.assert_allclose(apply_colour_map(colour_map, colours), 4 * colours, atol=1e-6)


def test_feature_statistics_are_those_of_the_features():
    features = pictures(0, 2, 4, 6, 5)
    expected = np.concatenate(
        [features.mean((1, 2)), np.sqrt(features.var((1, 2)) + 1e-5)], axis=-1
    )
    np.testing.assert_allclose(feature_statistics(features), expected, rtol=1e-5)
