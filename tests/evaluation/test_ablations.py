import itertools

import numpy as np
import pytest

from evaluation.ablations import (
    AblationConfig,
    Plan,
    Variant,
    count_parameters,
    draw_curve,
    paragraph,
    plan_gram,
    plan_size,
    plan_styles,
    plan_triplets,
    report_text,
    subset,
)
from student_jax.config import STTRConfig
from triplets import InputError, TripletDataset, read_image


@pytest.fixture
def dataset(dump):
    return TripletDataset(dump)


def figures(plan, **measures):
    """Two seeds of each variant: measure=[(seed 0, seed 1) of the first variant, ...]."""
    shown = ("mse", "psnr", "ssim", "lpips", "style_gram", "style_histogram", "sharpness")
    return {
        variant.label: [
            dict.fromkeys(shown, 0.5) | {m: v[i][seed] for m, v in measures.items()}
            for seed in range(2)
        ]
        for i, variant in enumerate(plan.variants)
    }


def test_triplets_are_nested(dataset):
    train = np.arange(2, 18)
    rows = [set(variant.rows) for variant in plan_triplets(dataset, train).variants]
    assert [len(r) for r in rows] == [2, 4, 8, 16]
    assert all(small < large for small, large in itertools.pairwise(rows))
    assert rows[-1] == set(train)
    given = plan_triplets(dataset, train, (5, 3)).variants
    assert [variant.rows for variant in given] == [
        tuple(rows) for rows in (given[1].rows[:3], given[1].rows)
    ]
    with pytest.raises(InputError, match="has 16 triplets to train on, not 17"):
        plan_triplets(dataset, train, (4, 17))


def test_styles_share_one_budget(dataset):
    plan = plan_styles(dataset, np.arange(20))  # 5 contents x 4 styles
    assert {len(variant.rows) for variant in plan.variants} == {5}
    for variant in plan.variants:
        assert len(set(dataset.pairs[list(variant.rows), 1])) == variant.x
    assert [variant.x for variant in plan.variants] == [1, 2, 4]
    assert [variant.x for variant in plan_styles(dataset, np.arange(20), (3, 2)).variants] == [2, 3]
    diagonal = np.array([0, 5, 10, 15])  # each style once
    with pytest.raises(InputError, match="expected several numbers of styles"):
        plan_styles(dataset, diagonal)
    with pytest.raises(InputError, match="1 of its first 1"):
        plan_styles(dataset, diagonal, (1, 2))


@pytest.mark.slow  # shapes of three students, traced
def test_sizes_are_around_the_mini(dataset):
    plan = plan_size(dataset, np.arange(20))
    half, mini, double = (variant.x for variant in plan.variants)
    assert plan.variants[0].flags[:3] == ("--model.content-widths", "12", "24")
    assert mini == count_parameters(STTRConfig.mini()) / 1e6
    assert half < mini < double
    # Weights of matrices grow with the square of the widths, biases linearly.
    assert 3.5 < double / mini < 4
    quarter, almost = plan_size(dataset, np.arange(20), (0.99, 0.25)).variants
    assert (quarter.label, almost.label) == ("0.25 x mini", "0.99 x mini")
    assert almost.flags[-1] == str(STTRConfig.mini().tail_dim)  # what the tail can halve


def test_a_subset_holds_its_triplets_alone(dataset, tmp_path):
    rows = (7, 3, 19)
    part = subset(dataset, rows, tmp_path / "part")
    assert part.verify() == []
    for triplet, row in zip(part, rows, strict=True):
        for got, expected in zip(triplet, dataset[row], strict=True):
            np.testing.assert_array_equal(got, expected)
    assert len(part.content_ids) == len({dataset.pairs[row][0] for row in rows})
    assert len(subset(dataset, rows, tmp_path / "part")) == 3  # again: kept


def test_paragraph_and_curve_follow_from_the_figures(tmp_path, dump):
    plan = Plan("How many?", "triplets", [Variant("8", 8.0), Variant("16", 16.0)])
    of = figures(plan, mse=[(0.04, 0.02), (0.01, 0.03)], lpips=[(0.5, 0.5), (0.4, 0.4)])
    text = paragraph(plan, of)
    assert "MSE to the teacher changes from 8 to 16 by -33.3 % (lower in 1 of 2 seeds)." in text
    assert "LPIPS to the teacher changes from 8 to 16 by -20.0 % (lower in 2 of 2 seeds)." in text
    assert "that of 16 (triplets)" in text
    draw_curve(plan, of, tmp_path / "curve.png")
    assert read_image(tmp_path / "curve.png").shape[2] == 3
    config = AblationConfig("triplets", dump, seeds=(0, 1), steps=9)
    report = report_text(config, plan, of, held_out=3)
    assert f"--study triplets --data {dump} --steps 9 --seeds 0 1" in report
    assert "| 8 | 0.03000 ± 0.01414 |" in report


def test_the_gram_study_is_beside_l1(dataset):
    flags = [variant.flags for variant in plan_gram(dataset, np.arange(20)).variants]
    assert flags == [(), ("--gram-reduction", "mean"), ()]  # "sum" is the default


@pytest.mark.parametrize(
    ("study", "points"),
    [
        ("triplets", (2.5,)),
        ("styles", (0, 4)),
        ("size", (-1.0,)),
        ("triplets", (4, 4)),
        ("gram", (1,)),
    ],
)
def test_points_that_make_no_curve(study, points, dump):
    with pytest.raises(ValueError, match="points are"):
        AblationConfig(study, dump, points=points)
