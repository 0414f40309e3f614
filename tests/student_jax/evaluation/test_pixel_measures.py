import numpy as np
import pytest

from student_jax.evaluation.measures.histogram_loss import BINS, histogram_loss, rgb_uv_histogram
from student_jax.evaluation.measures.pixels import (
    brightness,
    histogram_distance,
    mean_squared_error,
    psnr,
    saturation,
    sharpness,
    ssim,
)


def constant(*rgb, size=(16, 16)):
    return np.broadcast_to(np.array(rgb, np.float32), (*size, 3))


def noise(seed=0, size=(40, 32)):
    return np.random.default_rng(seed).random((*size, 3))


def test_error_and_psnr_by_hand():
    a, b = constant(0.2, 0.2, 0.2), constant(0.2, 0.2, 0.5)
    assert mean_squared_error(a, b) == pytest.approx(0.03)  # 0.3^2 in one of three channels
    assert psnr(a, b) == pytest.approx(15.2288)  # -10 log10 0.03
    assert psnr(a, a) == float("inf")


def test_ssim_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    a = rng.random((40, 32, 3))
    b = np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)
    # skimage 0.26: structural_similarity(a, b, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=1, channel_axis=2)
    assert ssim(a, b) == pytest.approx(0.8221769499807458, abs=1e-12)
    assert ssim(b, a) == pytest.approx(ssim(a, b), abs=1e-12)
    assert ssim(a, a) == pytest.approx(1)


def test_ssim_of_constants_by_hand():
    # Without variance only the luminance term is left: (2 x y + c1) / (x^2 + y^2 + c1).
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert ssim(constant(0.2, 0.2, 0.2), constant(0.6, 0.6, 0.6)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="8 x 16 px; SSIM needs 11"):
        ssim(constant(0, 0, 0, size=(16, 8)), constant(0, 0, 0, size=(16, 8)))


def test_brightness_and_saturation_by_hand():
    assert brightness(constant(1, 0, 0)) == pytest.approx(0.299)
    assert brightness(constant(0.5, 0.5, 0.5)) == pytest.approx(0.5)
    assert saturation(constant(0.8, 0.4, 0.2)) == pytest.approx(0.75)
    assert saturation(constant(0.4, 0.4, 0.4)) == saturation(constant(0, 0, 0)) == 0


def test_sharpness_by_hand():
    ramp = np.linspace(0, 1, 11)[None, :, None] * np.ones((8, 1, 3))
    assert sharpness(ramp) == pytest.approx(0.1)
    diagonal = ramp[:8, :8] + np.linspace(0, 0.7, 8)[:, None, None]
    assert sharpness(diagonal) == pytest.approx(np.hypot(0.1, 0.1))
    assert sharpness(constant(0.3, 0.6, 0.9)) == pytest.approx(0, abs=1e-7)


def test_histogram_distance_by_hand():
    # 0.4 apart in one of three channels; sizes do not matter.
    a, b = constant(0.2, 0.2, 0.2), constant(0.2, 0.6, 0.2, size=(5, 9))
    assert histogram_distance(a, b) == pytest.approx(0.4 / 3)
    assert histogram_distance(a, b) == histogram_distance(b, a)
    half = np.concatenate([constant(0, 0, 0), constant(1, 1, 1)])
    assert histogram_distance(half, constant(0, 0, 0)) == pytest.approx(0.5)
    assert histogram_distance(noise(), noise().transpose(1, 0, 2)) == 0


def test_histogram_loss_of_equal_and_of_disjoint_colours():
    image = noise(size=(32, 32))
    assert histogram_loss(image, image) == 0
    assert histogram_loss(image, np.flip(image, 1)) == pytest.approx(0, abs=1e-3)
    red, blue = constant(0.8, 0.1, 0.1), constant(0.1, 0.1, 0.8)
    # The kernel's tails overlap everywhere a little, so not quite 1.
    assert 0.9 < histogram_loss(red, blue) <= 1
    assert histogram_loss(red, blue) == pytest.approx(histogram_loss(blue, red))


def test_histogram_of_one_colour_peaks_at_its_log_ratios():
    r, g, b = 0.8, 0.4, 0.2
    histogram = rgb_uv_histogram(constant(r, g, b))
    assert histogram.sum() == pytest.approx(1, abs=1e-3)
    for channel, (x, first, second) in enumerate(((r, g, b), (g, r, b), (b, r, g))):
        peak = np.unravel_index(histogram[channel].argmax(), (64, 64))
        expected = [abs(BINS - np.log(x / other)).argmin() for other in (first, second)]
        assert list(peak) == expected


def tinted(seed, height, width, powers):
    """Random colours whose channels prefer the dark or the bright by their powers."""
    return (np.random.default_rng(seed).random((height, width, 3)) ** powers).astype(np.float32)


SMALL = (tinted(0, 60, 40, (3, 1, 0.5)), tinted(1, 50, 70, (1, 0.5, 2)))
LARGE = (tinted(2, 300, 280, (3, 1, 0.5)), tinted(3, 270, 200, (1, 0.5, 2)))


# The figures are those of the authors' RGBuvHistBlock (github.com/mahmoudnafifi/HistoGAN, commit
# 37fe53c, histogram_classes/RGBuvHistBlock.py) on a CPU, with the settings of StyleID's
# evaluation/eval_histogan.py: h=64, insz=256, resizing="interpolation", method="inverse-quadratic",
# sigma=0.02, intensity_scale=True; the loss is sqrt(sum((sqrt(a) - sqrt(b))^2) / 2).
# Both programs add thousands of float32 in another order, 1e-7 of each sum: they agree to 3e-8 in
# the loss and to 1e-6 of an entry, and ten times that is allowed.
@pytest.mark.parametrize(
    ("pictures", "expected"), [(SMALL, 0.5352029204368591), (LARGE, 0.676362156867981)]
)
def test_histogram_loss_is_that_of_its_authors(pictures, expected):
    assert histogram_loss(*pictures) == pytest.approx(expected, abs=3e-7)


def test_histogram_is_that_of_its_authors():
    histogram = rgb_uv_histogram(SMALL[0])
    entries = [histogram[place] for place in ((0, 20, 30), (1, 40, 25), (2, 33, 10))]
    expected = [0.00024383353593293577, 0.00026134998188354075, 6.881269655423239e-06]
    assert entries == pytest.approx(expected, rel=1e-5)


def test_histogram_loss_of_pictures_of_two_sizes():
    # Doubling each pixel changes nothing once the larger one is sampled down to 256.
    image = noise(size=(256, 256))
    assert histogram_loss(image, image.repeat(2, 0).repeat(2, 1)) == pytest.approx(0, abs=1e-6)
