import pytest

from student_jax.cost import count


@pytest.mark.slow  # traces the large model
def test_reference_costs_what_its_layers_say():
    counted = count("reference", 512)
    assert counted["parameters"] == 45_642_627
    # 290.0 GFLOP in matrix products and convolutions, counted in the traced program; XLA adds
    # about one per cent of elementwise operations.
    assert counted["flops"] == pytest.approx(290e9, rel=0.02)
