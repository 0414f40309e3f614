"""The losses against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses import (
    L1,
    L2,
    L3,
    PAINT,
    PERCEPTUAL,
    DistillationWeights,
    distillation_loss,
    gram_loss,
    gram_matrix,
    low_band_loss,
    moments_loss,
    perceptual_loss,
    pixel_loss,
    relative_gram_loss,
    sameness_loss,
    spectrum_loss,
    texture_loss,
)
from student_jax.evaluation.measures.pixels import luma
from student_jax.evaluation.measures.texture import high_band, sameness

# Two pixels with two channels: F = [[1, 2], [3, 4]], F^T F = [[10, 14], [14, 20]], h w c = 4.
FEATURES = jnp.array([[[[1.0, 2.0], [3.0, 4.0]]]])
GRAM = np.array([[[2.5, 3.5], [3.5, 5.0]]])


def test_gram_matrix_by_hand():
    np.testing.assert_array_equal(gram_matrix(FEATURES), GRAM)


def test_gram_matrix_keeps_pictures_apart():
    batch = jnp.concatenate([FEATURES, 2 * FEATURES])
    np.testing.assert_array_equal(gram_matrix(batch), np.concatenate([GRAM, 4 * GRAM]))


def test_gram_matrix_ignores_where_features_are():
    features = jax.random.normal(jax.random.key(0), (1, 4, 6, 3))
    turned = features.transpose(0, 2, 1, 3)[:, ::-1]
    # Another order of summation: float32 rounding.
    np.testing.assert_allclose(gram_matrix(features), gram_matrix(turned), rtol=1e-5, atol=1e-6)


def test_gram_matrix_sums_half_precision_features_in_float32():
    # 2 x 1024 ones: a bfloat16 sum would stop growing at 256.
    assert gram_matrix(jnp.ones((1, 2, 1024, 1), jnp.bfloat16)).item() == 1.0


def test_pixel_loss_by_hand():
    prediction = jnp.array([[[[0.0, 0.5], [1.0, 0.25]]]])
    assert pixel_loss(prediction, jnp.zeros((1, 1, 2, 2))).item() == (0.25 + 1 + 0.0625) / 4


def test_gram_loss_by_hand():
    # The difference of the Gram matrices is GRAM itself: 6.25 + 2 * 12.25 + 25 = 55.75.
    zeros = jnp.zeros_like(FEATURES)
    assert gram_loss({"a": FEATURES}, {"a": zeros}).item() == 55.75
    assert gram_loss({"a": FEATURES}, {"a": zeros}, "mean").item() == 55.75 / 4
    two = gram_loss({"a": FEATURES, "b": FEATURES}, {"a": zeros, "b": zeros})
    assert two.item() == 2 * 55.75


def test_gram_loss_is_a_mean_over_pictures():
    batch = jnp.concatenate([FEATURES, FEATURES])
    target = jnp.concatenate([jnp.zeros_like(FEATURES), FEATURES])
    assert gram_loss({"a": batch}, {"a": target}).item() == 55.75 / 2


def test_perceptual_loss_by_hand():
    # Unit vectors (0.6, 0.8) and (1, 0): 0.16 + 0.64 = 0.8 apart; (0, 1) and (0, 1): the same.
    prediction = jnp.array([[[[3.0, 4.0], [0.0, 2.0]]]])
    target = jnp.array([[[[5.0, 0.0], [0.0, 7.0]]]])
    # The constant that keeps gradients finite is 1e-6 beside squared lengths of 4 and more.
    assert perceptual_loss({"a": prediction}, {"a": target}).item() == pytest.approx(0.4, rel=1e-6)
    both = {"a": prediction, "b": prediction}, {"a": target, "b": prediction}
    assert perceptual_loss(*both).item() == pytest.approx(0.4, rel=1e-6)


def test_perceptual_loss_has_a_gradient_where_no_channel_is_active():
    target = {"a": jnp.ones((1, 2, 2, 3))}
    gradient = jax.grad(lambda x: perceptual_loss({"a": x}, target))(jnp.zeros((1, 2, 2, 3)))
    assert jnp.isfinite(gradient).all() and (gradient < 0).all()


def test_perceptual_objective_weighs_its_terms():
    prediction = jnp.full((1, 2, 2, 3), 0.5)
    features = {"a": jnp.array([[[[3.0, 4.0]]]])}, {"a": jnp.array([[[[1.0, 0.0]]]])}
    loss, terms = distillation_loss(prediction, jnp.zeros_like(prediction), *features, PERCEPTUAL)
    assert terms.keys() == {"pixel", "perceptual"}
    assert loss.item() == pytest.approx(0.25 + 0.01 * 0.8, rel=1e-6)


def test_arrays_of_numpy_are_taken():
    rng = np.random.default_rng(0)
    pictures, features = rng.random((2, 1, 4, 4, 3), np.float32), rng.random((2, 1, 2, 2, 5))
    both = ({"a": features[0]}, {"a": features[1]})
    weights = DistillationWeights(pixel=1.0, gram=1.0, perceptual=1.0)
    loss, _ = distillation_loss(*pictures, *both, weights)
    on_device = [jax.tree.map(jnp.asarray, x) for x in (*pictures, *both)]
    expected, _ = distillation_loss(*on_device, weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)  # NumPy sums in another order


@pytest.mark.parametrize(("weights", "pixel", "gram"), [(L1, 1, 0), (L2, 0.5, 0.5), (L3, 0.7, 0.3)])
def test_distillation_loss_weighs_its_terms(weights, pixel, gram):
    prediction = jnp.full((1, 2, 2, 3), 0.5)
    loss, terms = distillation_loss(
        prediction,
        jnp.zeros_like(prediction),
        {"a": FEATURES},
        {"a": jnp.zeros_like(FEATURES)},
        weights,
    )
    assert loss.item() == pytest.approx(pixel * 0.25 + gram * 55.75, rel=1e-6)
    assert terms["pixel"].item() == 0.25
    assert terms.keys() == ({"pixel", "gram"} if gram else {"pixel"})


@pytest.mark.parametrize("absent", [None, {}])
def test_features_are_needed_only_for_the_gram_term(absent):
    pictures = jnp.zeros((1, 2, 2, 3))
    loss, _ = distillation_loss(pictures, pictures, absent, absent, L1)
    assert loss.item() == 0.0
    with pytest.raises(ValueError, match="expected the same layers, at least one"):
        distillation_loss(pictures, pictures, absent, absent, L2)


@pytest.mark.parametrize("weights", [L1, L3, PERCEPTUAL, PAINT])
def test_equal_pictures_have_no_loss_and_no_gradient(weights):
    pictures = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))

    def loss(prediction):
        features, target = {"a": prediction}, {"a": pictures}
        return distillation_loss(
            prediction,
            pictures,
            features,
            target,
            weights,
            style_features=target,
            style=pictures,
            content=pictures,
            other=pictures,
        )[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(pictures)
    # Prediction and target may be summed in another order: float32 rounding, squared.
    assert value.item() < 1e-11
    assert jnp.abs(gradient).max() < 1e-6


def test_nothing_is_broadcast():
    pictures, one = jnp.zeros((2, 4, 4, 3)), jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\).*\(1, 4, 4, 3\)"):
        pixel_loss(pictures, one)
    with pytest.raises(ValueError, match=r"at a .*\(2, 4, 4, 3\).*\(1, 4, 4, 3\)"):
        gram_loss({"a": pictures}, {"a": one})
    with pytest.raises(ValueError, match="expected the same layers"):
        gram_loss({"a": pictures}, {"b": pictures})
    with pytest.raises((ValueError, TypeError), match="'average'"):
        gram_loss({"a": pictures}, {"a": pictures}, "average")


@pytest.mark.parametrize(("pixel", "gram"), [(-1.0, 1.0), (0.0, 0.0)])
def test_weights_must_make_sense(pixel, gram):
    with pytest.raises(ValueError, match="expected none below 0"):
        DistillationWeights(pixel, gram)


def test_relative_gram_loss_by_hand():
    # Gram matrices of constant features x are x x^T / c: of (1, 2) and (2, 0), the difference has
    # the squared norm 9 + 4 + 4 + 16 = 33 of quarters, the target 16.
    target = jnp.broadcast_to(jnp.array([2.0, 0.0]), (1, 3, 5, 2))
    prediction = jnp.broadcast_to(jnp.array([1.0, 2.0]), (1, 3, 5, 2))
    loss = relative_gram_loss({"a": prediction}, {"a": target})
    assert loss.item() == pytest.approx(33 / 16, rel=1e-5)
    # The scale of a layer does not matter; pictures are summed before the quotient, layers add.
    pictures = [jnp.concatenate([x, 9 * target]) for x in (prediction, target)]
    layers = [{"a": x, "b": 5 * x} for x in pictures]
    expected = 2 * 33 / (16 + 81**2 * 16)
    assert relative_gram_loss(*layers).item() == pytest.approx(expected, rel=1e-5)
    assert relative_gram_loss({"a": target}, {"a": target}) == 0


def test_texture_loss_by_hand():
    # Stripes of +-2 and of +-1: deviations of 2 and 1 in every window, (1 - 2)^2 / 2^2.
    stripes = jnp.broadcast_to(jnp.array([1.0, -1.0] * 8)[:, None], (1, 16, 16, 1))
    target, prediction = {"relu1_1": 2 * stripes}, {"relu1_1": 5 + stripes}
    # The constant under the root is 1e-6 of these variances.
    assert texture_loss(prediction, target).item() == pytest.approx(0.25, rel=1e-5)
    # Phase and sign do not matter, nor does what is left at the borders.
    shifted = {"relu1_1": jnp.pad(-2 * stripes, ((0, 0), (0, 3), (0, 5), (0, 0)))}
    padded = {"relu1_1": jnp.pad(2 * stripes, ((0, 0), (0, 3), (0, 5), (0, 0)))}
    assert texture_loss(shifted, padded) == 0
    # No texture at all counts as 1 for a layer, but for the constant.
    flat = {"a": jnp.ones((1, 16, 16, 1)), "b": jnp.ones((1, 8, 8, 1))}
    both = {"a": stripes, "b": stripes[:, :8, :8]}
    assert texture_loss(flat, both).item() == pytest.approx(2, rel=3e-3)


def test_texture_needs_a_window():
    small = {"relu1_1": jnp.ones((1, 7, 16, 1))}
    with pytest.raises(ValueError, match="smaller than 8 x 8"):
        texture_loss(small, small)


def test_low_band_loss_by_hand():
    # Two squares of 8 x 8, the last column outside: a checkerboard averages to nothing.
    target = jnp.zeros((1, 8, 17, 1))
    board = jnp.asarray(np.indices((8, 8)).sum(0) % 2 * 2.0 - 1.0, jnp.float32)
    prediction = target.at[0, :, :8, 0].set(board).at[0, :, 8:16].set(0.5).at[0, :, 16].set(9.0)
    assert low_band_loss(prediction, target).item() == 0.5**2 / 2
    with pytest.raises(ValueError, match="at least 8 pixels"):
        low_band_loss(target[:, :7], target[:, :7])


def test_moments_loss_by_hand():
    # Means 2 and 4, deviations 2 and 4, no skewness: half of every channel is 0, half double.
    target = jnp.array([[[[0.0, 0.0], [4.0, 8.0]]]])
    flat = jnp.array([[[[2.0, 4.0], [2.0, 4.0]]]])
    # Of the sum 4 + 16 + 4 + 16 only the deviations are missed; 1e-6 is added to variances.
    assert moments_loss({"a": flat}, {"a": target}).item() == pytest.approx(0.5, rel=2e-3)
    turned = target[:, :, ::-1]
    assert moments_loss({"a": turned}, {"a": target}).item() == 0.0


def test_moments_loss_sees_skewness():
    # Mean 1 and deviation sqrt(3) both, third moments 6 and -6.
    few = jnp.array([4.0, 0.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
    many = 2.0 - few
    root = 6.0 ** (1 / 3)
    expected = (2 * root) ** 2 / (1 + 3 + root**2)
    # The constants inside the roots are worth a hundredth.
    assert moments_loss({"a": many}, {"a": few}).item() == pytest.approx(expected, rel=0.1)


def test_paint_objective_weighs_its_terms():
    rng = np.random.default_rng(0)
    prediction, target, style, content, other = rng.random((5, 1, 32, 32, 3), np.float32)
    features = [
        {
            name: rng.random((1, 8, 8, width), np.float32)
            for name, width in (("a", 3), ("b", 5), ("c", 7))
        }
        for _ in range(3)
    ]
    of_prediction, of_target, of_style = features
    loss, terms = distillation_loss(
        prediction,
        target,
        of_prediction,
        of_target,
        PAINT,
        style_features=of_style,
        style=style,
        content=content,
        other=other,
    )
    deepest = [{"b": x["b"], "c": x["c"]} for x in features]
    expected = (
        30 * low_band_loss(prediction, target)
        + 0.3 * perceptual_loss(*deepest[:2])
        + 0.5 * relative_gram_loss(of_prediction, of_style)
        + 0.4 * texture_loss(of_prediction, of_target)
        + 0.15 * spectrum_loss(prediction, target)
        + 1.0 * moments_loss(of_prediction, of_style)
        + 0.3 * spectrum_loss(prediction, style, reduction=2)
        + 1.0 * sameness_loss(prediction, other, content)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert "gram" not in terms and "perceptual" not in terms


def _waves(down: float, across: float, contrast: float = 0.2):
    """A grey picture of one plane wave, of so many periods in 16 px in each direction."""
    rows, columns = np.mgrid[:64, :48]
    wave = np.sin(2 * np.pi * (down * rows + across * columns) / 16)
    return jnp.asarray(np.repeat((0.5 + contrast * wave)[None, ..., None], 3, -1), jnp.float32)


def test_spectrum_loss_sees_direction_and_size_but_not_place_contrast_or_colour():
    style = _waves(0, 4)
    assert spectrum_loss(style, style).item() == 0
    # Whole periods in every square: another place, contrast and colour leave its power as it is,
    # but for the 1e-6 beside a variance of at least 0.005.
    moved = jnp.roll(_waves(0, 4, contrast=0.1), 1, axis=2) * jnp.array([[[[1.0, 0.8, 0.9]]]])
    assert spectrum_loss(moved, style).item() < 1e-4
    turned, coarser = spectrum_loss(_waves(4, 0), style), spectrum_loss(_waves(0, 2), style)
    assert min(turned, coarser) > 1


def test_reduced_spectra_do_not_see_what_is_finer():
    """A chequered pattern is gone in means of four pixels; a long wave is what it was."""
    coarse = _waves(0, 1)
    fine = coarse + 0.1 * (-1.0) ** np.indices((64, 48)).sum(0)[None, ..., None]
    assert spectrum_loss(fine, coarse) > 1
    assert spectrum_loss(fine, coarse, reduction=2).item() == pytest.approx(0, abs=1e-6)


def test_spectrum_loss_by_hand():
    """A wave of 4 periods and flat grey: the window spreads the wave's power over three bins a
    side."""
    flat, wave = jnp.full((1, 32, 32, 3), 0.5), _waves(0, 4)
    # Of a Hann window of n points, the sum is n/2, of squares 3n/8; the neighbours of a frequency
    # get a quarter of its power. A sine of deviation 1 has an amplitude of the root of 2, half of
    # it at either of +4 and -4 periods across; down, the same window gives 1/4, 1 and 1/4.
    peak = (16 / 2) ** 4 * 0.5 / (3 * 16 / 8) ** 2
    power = np.zeros((16, 9))
    for down, a in ((-1, 0.25), (0, 1.0), (1, 0.25)):
        for across, b in ((3, 0.25), (4, 1.0), (5, 0.25)):
            power[down, across] = a * b * peak
    expected = (np.log((power + 1e-3) / 1e-3) ** 2).ravel()[1:].mean()
    # The deviation is that of the pixels with 1e-6 beside 0.02.
    assert spectrum_loss(wave, flat).item() == pytest.approx(expected, rel=1e-3)


def test_spectrum_loss_has_finite_gradients_on_flat_pictures_and_refuses_small_ones():
    flat = jnp.full((1, 24, 24, 3), 0.5)
    assert jnp.isfinite(jax.grad(spectrum_loss)(flat, _waves(1, 1))).all()
    with pytest.raises(ValueError, match=r"the target is .*expected at least 16 pixels"):
        spectrum_loss(flat, flat[:, :8])
    with pytest.raises(ValueError, match="style_spectrum needs the style"):
        distillation_loss(flat, flat, None, None, DistillationWeights(0, 0, style_spectrum=1))


def test_sameness_loss_is_the_square_of_the_measure():
    """On pictures with variations of all sizes; the measure blurs with a longer tail, 16 px where
    the loss has 12, and neither has a constant of note beside these marks."""
    rng = np.random.default_rng(0)
    content, own, other, shared = rng.random((4, 1, 40, 56, 3), np.float32)
    pictures = [0.5 * content + 0.3 * shared + 0.2 * marks for marks in (own, other)]
    bands = [high_band(luma(picture[0]) - luma(content[0])) for picture in pictures]
    expected = sameness(bands) ** 2
    assert 0.1 < expected < 0.9
    assert sameness_loss(*pictures, content).item() == pytest.approx(expected, rel=0.01)


def test_sameness_loss_of_one_grain_and_of_none():
    content, one = _waves(0, 1), _waves(4, 0)
    assert sameness_loss(one, one, content).item() == pytest.approx(1, abs=1e-4)
    # Light that varies slowly is no mark: 64 px a period pass the blur of 4 px.
    slope = jnp.broadcast_to(jnp.linspace(0, 0.2, 64)[None, :, None, None], one.shape)
    assert sameness_loss(one, one + slope, content).item() == pytest.approx(1, abs=0.02)
    gradient = jax.grad(sameness_loss)(content, content, content)
    assert not gradient.any()
    with pytest.raises(ValueError, match="same shape three times"):
        sameness_loss(one, one[:, 1:], content)
