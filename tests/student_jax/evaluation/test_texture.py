"""Measures of texture apart from colour, by hand."""

import numpy as np
import pytest

from student_jax.evaluation.measures.texture import (
    SlicedWasserstein,
    high_band,
    match_colours,
    quantiles,
    sameness,
    standardised_luminance,
    wasserstein,
)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def distance():
    return SlicedWasserstein()


def noise(rng, *shape):
    return rng.uniform(0, 1, (*shape, 3)).astype(np.float32)


def test_matched_colours_have_the_styles_mean_and_covariance(rng):
    image, style = noise(rng, 32, 40), noise(rng, 24, 24) * [0.8, 0.2, 0.1] + [0.1, 0.5, 0.3]
    matched = match_colours(image, style, eps=0.0).reshape(-1, 3)
    target = style.reshape(-1, 3)
    assert np.allclose(matched.mean(0), target.mean(0), atol=1e-6)
    assert np.allclose(np.cov(matched.T, bias=True), np.cov(target.T, bias=True), atol=1e-6)


def test_a_style_matched_to_itself_stays(rng):
    style = noise(rng, 32, 32)
    # The variances are 1/12, the regularisation moves values by 1e-5 / (2/12) of their deviation.
    assert np.abs(match_colours(style, style) - style).max() < 1e-4


def test_colours_that_a_grey_result_lacks_are_not_blown_up(rng):
    """Chroma noise of 0.001 beside a style of chroma 0.3: at most 0.3 / sqrt(1e-5) times it."""
    grey = np.repeat(rng.uniform(0, 1, (32, 32, 1)), 3, axis=-1)
    image = (grey + rng.normal(0, 0.001, (32, 32, 3))).astype(np.float32)
    style = noise(rng, 32, 32)
    chroma = match_colours(image, style)
    chroma = (chroma - chroma.mean(-1, keepdims=True)).reshape(-1, 3)
    of_style = (style - style.mean(-1, keepdims=True)).reshape(-1, 3)
    assert chroma.std() < 0.35 * of_style.std()
    unregularised = match_colours(image, style, eps=0.0)
    unregularised = unregularised - unregularised.mean(-1, keepdims=True)
    assert unregularised.std() > 0.9 * of_style.std()


def test_standardised_luminance_forgets_colour_and_contrast(rng):
    image = noise(rng, 16, 16)
    grey = standardised_luminance(image)
    assert grey.mean() == pytest.approx(0.45, abs=1e-5)
    assert grey.std() == pytest.approx(0.225, rel=0.01)
    assert np.allclose(standardised_luminance(0.5 * image + 0.2), grey, atol=3e-3)
    assert (standardised_luminance(np.full((8, 8, 3), 0.3, np.float32)) == np.float32(0.45)).all()


def test_quantiles_by_hand():
    values = np.array([[4.0], [1.0], [3.0], [2.0]], np.float32)
    assert np.allclose(quantiles(values, 4)[:, 0], [1, 2, 3, 4])
    assert np.allclose(quantiles(values, 2)[:, 0], [1.5, 3.5])
    assert np.allclose(quantiles(values, 8)[:, 0], [1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4])


def test_wasserstein_of_a_shift_by_hand():
    """Quantiles -1 and 1 have deviation 1; moved by 0.5, the distance is 0.5."""
    b = np.array([[-1.0], [1.0]], np.float32)
    assert wasserstein(b + 0.5, b) == pytest.approx(0.5)
    assert wasserstein(3 * b, b) == pytest.approx(2.0)
    assert wasserstein(b, b) == 0


def test_distances_of_the_style_itself_and_of_another(rng, distance):
    smooth = np.cumsum(noise(rng, 64, 80), axis=1) / 80
    rough = noise(rng, 64, 64)
    for measure in (distance.features, distance.patches):
        assert measure(smooth, smooth) == pytest.approx(0, abs=1e-6)
        assert measure(smooth, rough) > 0.3
    # A mirrored texture has the same patches under other directions: near, but not equal.
    assert distance.patches(rough[:, ::-1], rough) < 0.1 * distance.patches(smooth, rough)


def test_patches_do_not_see_colour(rng, distance):
    """Another colour of the same luminance: blue is exchanged for green by their luma weights."""
    image = 0.5 * noise(rng, 48, 48)
    other = image.copy()
    other[..., 2] += 0.2
    other[..., 1] -= 0.2 * 0.114 / 0.587
    assert distance.patches(other, image) < 1e-3 < distance.features(other, image)


def test_sameness_by_hand(rng):
    a, b = rng.normal(size=(2, 30, 30))
    assert sameness([a, 2 * a + 1]) == pytest.approx(1)
    assert sameness([a, -a]) == pytest.approx(-1)
    assert abs(sameness([a, b])) < 0.1
    assert sameness([a, a, -a]) == pytest.approx(-1 / 3)
    assert sameness([a, np.zeros_like(a)]) == 0
    with pytest.raises(ValueError, match="two styles or more"):
        sameness([a])


def test_the_high_band_has_no_slow_change():
    slow = np.linspace(0, 1, 256)[None].repeat(64, axis=0)
    assert np.abs(high_band(slow))[:, 32:-32].max() < 1e-9
    fast = np.indices((32, 32)).sum(0) % 2 - 0.5
    assert np.allclose(high_band(fast)[8:-8, 8:-8], fast[8:-8, 8:-8], atol=1e-3)
