import hashlib
import itertools
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from experiments.ablations import (
    PAINTED,
    Ablation,
    AblationConfig,
    AblationFigures,
    Variant,
    ablate,
    ablation_record,
    draw_curve,
    parameters_of,
    subset,
    tables,
    vary_gram,
    vary_painting,
    vary_size,
    vary_students,
    vary_styles,
    vary_terms,
    vary_triplets,
)
from experiments.study import MEASURED
from student_jax import MiniConfig
from student_jax.student import STUDENTS
from student_jax.training.objective import terms
from triplets import InputError, TripletDataset, read_image


@pytest.fixture
def dataset(dump):
    return TripletDataset(dump)


PAIRS = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


def figures(ablation, **measures):
    """Three seeds of four pictures: measure=[(value by seed), ...] of every variant in turn."""
    runs = {
        variant.label: [
            {m: [0.5] * 4 for m in MEASURED} | {m: [v[i][seed]] * 4 for m, v in measures.items()}
            for seed in range(3)
        ]
        for i, variant in enumerate(ablation.variants)
    }
    return AblationFigures(runs, PAIRS, dict.fromkeys(MEASURED, 0.25))


def test_triplets_are_nested(dataset):
    train = np.arange(2, 18)
    rows = [set(variant.rows) for variant in vary_triplets(dataset, train).variants]
    assert [len(r) for r in rows] == [2, 4, 8, 16]
    assert all(small < large for small, large in itertools.pairwise(rows))
    assert rows[-1] == set(train)
    given = vary_triplets(dataset, train, (5.0, 3.0)).variants
    assert [variant.rows for variant in given] == [
        tuple(rows) for rows in (given[1].rows[:3], given[1].rows)
    ]
    with pytest.raises(InputError, match="has 16 triplets to train on, not 17"):
        vary_triplets(dataset, train, (4.0, 17.0))


def test_styles_share_one_budget(dataset):
    ablation = vary_styles(dataset, np.arange(20))  # 5 contents x 4 styles
    assert {len(variant.rows) for variant in ablation.variants} == {5}
    for variant in ablation.variants:
        assert len(set(dataset.pairs[list(variant.rows), 1])) == variant.x
    assert [variant.x for variant in ablation.variants] == [1, 2, 4]
    assert [variant.x for variant in vary_styles(dataset, np.arange(20), (3.0, 2.0)).variants] == [
        2,
        3,
    ]
    diagonal = np.array([0, 5, 10, 15])  # each style once
    with pytest.raises(InputError, match="expected several numbers of styles"):
        vary_styles(dataset, diagonal)
    with pytest.raises(InputError, match="1 of its first 1"):
        vary_styles(dataset, diagonal, (1.0, 2.0))


@pytest.mark.slow  # shapes of three students, traced
def test_sizes_are_around_the_mini(dataset):
    ablation = vary_size(dataset, np.arange(20))
    half, mini, double = (variant.x for variant in ablation.variants)
    assert ablation.variants[0].flags[:3] == ("--model.content-widths", "12", "24")
    assert mini == parameters_of(MiniConfig()) / 1e6
    assert half < mini < double
    # Weights of matrices grow with the square of the widths, biases linearly.
    assert 3.5 < double / mini < 4
    quarter, almost = vary_size(dataset, np.arange(20), (0.99, 0.25)).variants
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


def test_tables_and_curve_follow_from_the_figures(tmp_path, dump):
    ablation = Ablation(
        "How many?", "triplets", [Variant("8", 8.0), Variant("16", 16.0, note="all")]
    )
    of = figures(
        ablation,
        mse=[(0.04, 0.02, 0.03), (0.01, 0.03, 0.02)],
        lpips=[(0.5, 0.5, 0.5), (0.4, 0.4, 0.4)],
    )
    drawn = []
    for categorical in (False, True):
        draw_curve(replace(ablation, categorical=categorical), of, tmp_path / "curve.png")
        drawn.append(read_image(tmp_path / "curve.png"))
    assert not np.array_equal(*drawn)  # no line joins categories
    config = AblationConfig("triplets", dump, points=(1234567.0,), seeds=(0, 4), max_pairs=9)
    about = {"triplets": 9, "contents": 2, "styles": 2, "seen in training": ["a"]}
    record = ablation_record(config, ablation, of, about)
    assert record["measured on"] == about
    written = tables(json.loads(json.dumps(record, allow_nan=False)))
    assert "| MSE, 8 to 16 | -33.3 % | 2 of 3 | **unclear** |" in written["steps"]
    assert "| LPIPS, 8 to 16 | -20.0 % | 3 of 3 | **better** |" in written["steps"]
    # The least error is that of 16, not reliably below that of 8.
    measures = written["measures"].splitlines()
    assert measures[0].startswith("| triplets | MSE ↓ |")
    assert measures[2].startswith("| 8 | 0.03000 ± 0.01000 |") and measures[2].endswith("| no |")
    assert measures[3].startswith("| 16 (all) | 0.02000 ± 0.01000 |")
    assert measures[4].startswith("| teacher | 0.25000 |")
    command = f"--vary triplets --data {dump} --points 1234567 --seeds 0 4 --max-pairs 9"
    assert f"| command | `style-distil study ablations {command}` |" in written["settings"]
    assert "| steps | 2000 |\n| seeds | 0, 4 |" in written["settings"]
    assert "| measured on | 9 triplets of 2 contents and 2 styles |" in written["settings"]
    assert "| also in the training | a |" in written["settings"]


def test_a_variant_can_be_reliably_worse(dump):
    ablation = Ablation("How many?", "triplets", [Variant("8", 8.0), Variant("16", 16.0)])
    of = figures(ablation, mse=[(0.04, 0.04, 0.04), (0.01, 0.02, 0.03)])
    record = ablation_record(AblationConfig("triplets", dump), ablation, of, {})
    above = [variant["reliably above the lowest MSE"] for variant in record["variants"]]
    assert above == [True, False]
    backwards = Ablation("How many?", "triplets", ablation.variants[::-1])
    steps = ablation_record(AblationConfig("triplets", dump), backwards, of, {})
    assert steps["steps between variants"][0]["verdict"] == "worse"


def test_the_gram_ablation_is_beside_l1(dataset):
    flags = [variant.flags for variant in vary_gram(dataset, np.arange(20)).variants]
    assert flags == [(), ("--gram-reduction", "mean"), ()]  # "sum" is the default


def test_the_students_are_of_one_size(dataset):
    ablation = vary_students(dataset, np.arange(20))
    modulated, mini = ablation.variants
    assert (modulated.student, mini.student) == ("modulated", "mini")
    sizes = [parameters_of(STUDENTS[variant.student].config()) for variant in ablation.variants]
    assert 0.9 < sizes[0] / sizes[1] < 1.1
    assert {variant.loss for variant in ablation.variants} == {"paint"}


def test_each_term_of_paint_is_left_out_once(dataset):
    paint, *without, l1 = vary_terms(dataset, np.arange(20)).variants
    assert (paint.flags, l1.loss) == ((), "L1")
    left_out = [dict([variant.flags])["--without"] for variant in without]
    assert left_out == terms("paint") and "low_band" in left_out


def test_paint_is_compared_with_the_losses_of_the_talk(dataset):
    ablation = vary_painting(dataset, np.arange(20))
    assert [variant.loss for variant in ablation.variants] == ["paint", "L1", "L2", "L3"]
    assert len({variant.student for variant in ablation.variants}) == 1


def test_a_study_of_painting_shows_pictures_and_costs(dump):
    variants = [Variant("modulated", 0.0), Variant("mini", 1.0)]
    ablation = Ablation("Which?", "student", variants, categorical=True, painting=True)
    taken = {m: [0.5] * 4 for m in PAINTED} | {"sameness": [0.75]}
    cost = {"flops": 24e9, "seconds": 0.123, "peak_bytes": 5e8}
    costs = {v.label: {"512": cost, "2048": cost | {"seconds": 2.0}} for v in variants}
    teacher = dict.fromkeys(PAINTED, 0.25)
    of = AblationFigures({v.label: [taken] for v in variants}, PAIRS, teacher, costs)
    about = {"triplets": 4, "contents": 2, "styles": 2, "seen in training": []}
    record = ablation_record(AblationConfig("students", dump, seeds=(0,)), ablation, of, about)
    written = tables(json.loads(json.dumps(record, allow_nan=False)))
    assert "steps" not in written and "reliably" not in written["measures"]
    assert "| modulated | 0.50000 | 0.500 |" in written["measures"]
    assert "| 0.75 |" in written["measures"]
    assert "| modulated | 24 | 0.12 | 0.50 | 24 | 2.00 | 0.50 |" in written["costs"]
    # Where no content has several styles, nothing is the same.
    del record["variants"][0]["seeds"][0]["sameness"]
    assert (
        "| modulated | 0.50000 | 0.500 | 0.500 | 0.500 | 0.500 | – |" in tables(record)["measures"]
    )
    unknown = record | {"costs": {"mini": {"512": cost | {"peak_bytes": None}}}}
    assert "| mini | 24 | 0.12 | – |" in tables(unknown)["costs"]


@pytest.mark.parametrize(
    ("study", "points"),
    [
        ("terms", (1.0,)),
        ("triplets", (2.5,)),
        ("styles", (0.0, 4.0)),
        ("size", (-1.0,)),
        ("triplets", (4.0, 4.0)),
        ("gram", (1.0,)),
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
