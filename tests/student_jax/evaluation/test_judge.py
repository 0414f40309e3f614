"""FID and ArtFID from pictures to figures, with a stand-in for the network."""

from dataclasses import replace

import numpy as np
import pytest

from student_jax.evaluation.judge import Example, Judge
from student_jax.evaluation.measures.inception import ArtFeatures
from student_jax.evaluation.measures.intervals import interval
from student_jax.evaluation.measures.networks import LPIPS
from triplets import InputError

SIDE = 75  # the smallest that the art Inception takes
CONTENT, STYLE, TEACHER, RESULT = (0.1, 0.9), (0.2, 0.4), (0.3, 0.3), (0.5, 0.9)
"""The red of two pictures each; their other channels are noise."""


def picture(seed, red):
    image = np.random.default_rng(seed).random((SIDE, SIDE, 3)).astype(np.float32)
    image[..., 0] = red
    return image


EXAMPLES = [
    Example(
        content=picture(i, CONTENT[i]),
        style=picture(10 + i, STYLE[i]),
        teacher=picture(20 + i, TEACHER[i]),
        ids=(str(i), ""),
    )
    for i in range(2)
]


def result_of(example):
    return picture(30, RESULT[int(example.ids[0])])


def copy(example):
    return example.content


@pytest.fixture
def judge(monkeypatch):
    """With features of one dimension: the mean of the red channel."""

    def load(weights):
        assert weights == "art.safetensors"
        return lambda images: images[..., 0].mean(axis=(1, 2))[:, None]

    monkeypatch.setattr(ArtFeatures, "load", load)
    return Judge(fid_weights="art.safetensors", structure=False)


def test_fid_and_art_fid_of_methods_by_hand(judge):
    judgement = judge.of_methods({"mine": result_of, "copy": copy}, EXAMPLES)
    lpips = LPIPS()
    # Of Gaussians in one dimension: (difference of means)^2 + (difference of deviations)^2, and
    # the deviation of two numbers is their distance by sqrt 2. Results to contents would give 0.12
    # and results to teachers 0.24.
    for name, image_of, fid in (
        ("mine", result_of, (0.7 - 0.3) ** 2 + (0.4 - 0.2) ** 2 / 2),
        ("copy", copy, (0.5 - 0.3) ** 2 + (0.8 - 0.2) ** 2 / 2),
        ("teacher", lambda example: example.teacher, (0.3 - 0.3) ** 2 + (0.0 - 0.2) ** 2 / 2),
    ):
        measures = judgement.measures[name]
        assert measures["fid"] == pytest.approx(fid, abs=1e-6)  # float32 means of 5625 pixels
        to_content = np.mean([lpips(image_of(e), e.content) for e in EXAMPLES])
        assert measures["art_fid"] == pytest.approx((1 + to_content) * (1 + fid), rel=1e-5)
    mine = judgement.measures["mine"]
    assert abs(mine["lpips"] - mine["content_lpips"]) > 1e-3  # the other LPIPS would be noticed
    assert not {"fid", "art_fid"} & judgement.missing.keys()


def test_means_have_intervals_and_sets_have_none(judge):
    examples = [replace(EXAMPLES[i % 2], ids=(f"c{i}", f"s{i}")) for i in range(5)]
    judgement = judge.of_methods({"copy": copy}, examples)
    of_copy = judgement.intervals["copy"]
    assert of_copy.keys() == judgement.measures["copy"].keys() - {"fid", "art_fid"}
    values = np.array([judge.of_pair(copy(e), e)["brightness"] for e in examples])
    expected = interval(values, [e.ids for e in examples])
    assert of_copy["brightness"] == pytest.approx(tuple(expected))
    assert "psnr" not in judgement.intervals["teacher"]  # infinite to itself


def test_few_pictures_have_no_intervals(judge):
    examples = [replace(EXAMPLES[0], ids=(f"c{i}", f"s{i % 4}")) for i in range(8)]
    assert judge.of_methods({"copy": copy}, examples).intervals["copy"] == {}


def test_a_set_of_one_picture_has_no_fid(judge):
    judgement = judge.of_methods({"mine": result_of}, EXAMPLES[:1])
    assert judgement.intervals["mine"] == {}
    for name in ("fid", "art_fid"):
        assert name not in judgement.measures["mine"]
        assert judgement.missing[name] == "a set needs two pictures at least"


def test_pictures_too_small_for_the_network(judge):
    content, style, _, ids = vars(EXAMPLES[0]).values()
    small = [Example(content[1:], style[1:], ids=ids)]
    with pytest.raises(
        InputError, match="75 x 74 px are too small to measure; expected sides of 75"
    ):
        judge.of_methods({"copy": copy}, small)


def test_sameness_is_over_the_styles_of_a_content():
    judge = Judge(structure=False)
    content = np.full((64, 64, 3), 0.5, np.float32)
    grains = 0.1 * np.random.default_rng(0).normal(size=(3, 64, 64, 1)).astype(np.float32)
    examples = [
        Example(content, picture(i, 0.5)[:64, :64], ids=ids)
        for i, ids in enumerate([("a", "1"), ("a", "2"), ("b", "1")])
    ]

    def own(example):
        return content + grains[("1", "2").index(example.ids[1])]

    def one(example):
        return content + grains[0]

    judgement = judge.of_methods({"own": own, "one": one}, examples, only=("sameness",))
    assert judgement.measures["one"]["sameness"] == pytest.approx(1, abs=1e-4)
    # Of independent grains of 64 x 64 pixels: zero but for 1 / 64.
    assert abs(judgement.measures["own"]["sameness"]) < 0.05
    alone = judge.of_methods({"own": own}, examples[1:], only=("sameness",))
    assert "sameness" not in alone.measures["own"]
    assert alone.missing["sameness"] == "no content has two styles"


def test_the_low_band_is_that_of_squares_of_eight_pixels():
    teacher = np.zeros((64, 64, 3), np.float32)
    result = teacher.copy()
    result[:8, :8] = 0.5  # one square of 64
    result[8:16:2, 8:16] = 0.5  # every second line of another: half as much, on average
    example = Example(teacher, teacher, teacher)
    low_band = Judge(structure=False).of_pair(result, example, ["low_band_mse"])
    assert low_band == pytest.approx({"low_band_mse": (0.5**2 + 0.25**2) / 64})
