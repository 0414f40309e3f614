import numpy as np
import pytest

from student_jax.evaluation.measures.intervals import interval

PAIRS = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


def test_interval_over_contents_and_styles():
    # Two contents: half of the draws hold both once, a quarter the first or the second twice.
    values = np.array([0.0, 0.0, 1.0, 1.0])
    assert interval(values, PAIRS) == pytest.approx((0.0, 1.0))
    assert interval(np.full(4, 0.3), PAIRS) == pytest.approx((0.3, 0.3))
    # Many independent pictures, each of its own content and style: near the normal interval,
    # whose deviation the drawing of both widens by sqrt(3) (Owen 2007; here within 10 %).
    rng = np.random.default_rng(0)
    values = rng.standard_normal(400)
    low, high = interval(values, [(f"c{i}", f"s{i}") for i in range(400)])
    half = 1.96 * np.sqrt(3) * values.std() / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_intervals_of_several_measures_are_those_of_each():
    values = np.random.default_rng(0).random((4, 3))
    each = np.stack([interval(column, PAIRS) for column in values.T], axis=1)
    np.testing.assert_allclose(interval(values, PAIRS), each)


def test_draws_that_miss_all_pairs_do_not_count():
    low, high = interval(np.array([1.0, 1.0]), [("a", "x"), ("b", "y")])
    assert low == high == 1.0
