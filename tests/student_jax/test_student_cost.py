import pytest

from student_jax.cost import count


@pytest.mark.slow  # traces the large model
def test_reference_costs_what_its_layers_say():
    counted = count("reference", 512)
    assert counted["parameters"] == 45_642_627
    # XLA's own analysis says 293.0 GFLOP, elementwise operations included: about one per cent.
    assert counted["flops"] == pytest.approx(290e9, rel=0.005)
