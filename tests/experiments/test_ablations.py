import hashlib
import itertools
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from experiments.ablations import (
    AblationConfig,
    Figures,
    Plan,
    Variant,
    ablate,
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
from experiments.study import MEASURED
from student_jax import MiniConfig
from triplets import InputError, TripletDataset, read_image


@pytest.fixture
def dataset(dump):
    return TripletDataset(dump)


PAIRS = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


def figures(plan, **measures):
    """Three seeds of four pictures: measure=[(value by seed), ...] of every variant in turn."""
    runs = {
        variant.label: [
            {m: [0.5] * 4 for m in MEASURED} | {m: [v[i][seed]] * 4 for m, v in measures.items()}
            for seed in range(3)
        ]
        for i, variant in enumerate(plan.variants)
    }
    return Figures(runs, PAIRS, dict.fromkeys(MEASURED, 0.25))


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
    assert mini == count_parameters(MiniConfig()) / 1e6
    assert half < mini < double
    # Weights of matrices grow with the square of the widths, biases linearly.
    assert 3.5 < double / mini < 4
    quarter, almost = plan_size(dataset, np.arange(20), (0.99, 0.25)).variants
    assert (quarter.label, almost.label) == ("0.25 x mini", "0.99 x mini")
    assert almost.flags[-1] == str(MiniConfig().tail_dim)  # what the tail can halve


def test_a_subset_holds_its_triplets_alone(dataset, tmp_path):
    rows = (7, 3, 19)
    part = subset(dataset, rows, tmp_path)
    assert part.verify() == []
    for triplet, row in zip(part, rows, strict=True):
        for got, expected in zip(triplet, dataset[row], strict=True):
            np.testing.assert_array_equal(got, expected)
    assert len(part.content_ids) == len({dataset.pairs[row][0] for row in rows})
    assert subset(dataset, rows, tmp_path).root == part.root  # again: kept


def test_subsets_of_other_pictures_are_others(dataset, dump, tmp_path):
    part = subset(dataset, (7, 3), tmp_path)
    assert subset(dataset, (3, 7), tmp_path).root != part.root
    # Another teacher's dump of the same pairs under the same names.
    other = tmp_path / "other"
    shutil.copytree(dump, other)
    shard = other / "pairs-00000"
    pixels = 255 - np.load(shard / "stylised.npy")
    np.save(shard / "stylised.npy", pixels)
    recorded = json.loads((shard / "shard.json").read_text())
    recorded["sha256"]["stylised"] = hashlib.sha256(pixels).hexdigest()
    (shard / "shard.json").write_text(json.dumps(recorded))
    theirs = subset(TripletDataset(other), (7, 3), tmp_path)
    np.testing.assert_array_equal(theirs[0].stylised, 255 - part[0].stylised)


def test_paragraph_and_curve_follow_from_the_figures(tmp_path, dump):
    plan = Plan("How many?", "triplets", [Variant("8", 8.0), Variant("16", 16.0, note="all")])
    of = figures(
        plan,
        mse=[(0.04, 0.02, 0.03), (0.01, 0.03, 0.02)],
        lpips=[(0.5, 0.5, 0.5), (0.4, 0.4, 0.4)],
    )
    text = paragraph(plan, of)
    assert "MSE to the teacher, 16 against 8: no sure difference (-33.3 %; lower in 2 of 3" in text
    assert "LPIPS to the teacher, 16 against 8: better (-20.0 %; lower in 3 of 3 seeds)." in text
    assert "least mean squared error is that of 16, not surely below that of 8." in text
    drawn = []
    for categorical in (False, True):
        draw_curve(replace(plan, categorical=categorical), of, tmp_path / "curve.png")
        drawn.append(read_image(tmp_path / "curve.png"))
    assert not np.array_equal(*drawn)  # no line joins categories
    config = AblationConfig("triplets", dump, points=(1234567.0,), seeds=(0, 4), max_pairs=9)
    report = report_text(config, plan, of, "nine pictures")
    assert f"--study triplets --data {dump} --points 1234567 --seeds 0 4 --max-pairs 9" in report
    assert "| 8 | 0.03000 ± 0.01000 |" in report
    assert "| 16 (all) | 0.02000 ± 0.01000 |" in report
    assert "| teacher | 0.25000 |" in report
    assert "over 2 seeds, on nine pictures; 2000 steps" in report


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


def test_a_missing_matplotlib_is_told_before_any_training(dump, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("experiments.runs.call", None)
    with pytest.raises(InputError, match="drawing curves needs matplotlib"):
        ablate(AblationConfig("gram", dump, out=tmp_path))
