import sys

import pytest

from student_jax import MiniStudent
from student_jax.inference import cost
from student_jax.inference.cost import count
from student_jax.student import STUDENTS, Registered


def test_measured_memory_is_that_of_the_run_alone(tiny_mini, monkeypatch):
    monkeypatch.setitem(STUDENTS, "tiny", Registered(lambda: tiny_mini, MiniStudent))
    ran = cost.run("tiny", 64)
    assert ran["seconds"] > 0
    if sys.platform != "linux":
        assert ran["peak_bytes"] is None
    else:
        # Compiling even this takes more.
        assert 4 * cost.count("tiny", 64)["parameters"] < ran["peak_bytes"] < 50e6


@pytest.mark.slow  # traces the large model
def test_reference_costs_what_its_layers_say():
    counted = count("reference", 512)
    assert counted["parameters"] == 45_642_627
    # XLA's own analysis says 293.0 GFLOP, elementwise operations included: about one per cent.
    assert counted["flops"] == pytest.approx(290e9, rel=0.005)
