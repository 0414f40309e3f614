import json

import pytest

from evaluation.cost import CostConfig, measure_costs, smallest_card
from triplets import InputError


def fake(case, what, config):
    """A teacher that costs ten times its size, and a student that costs its size."""
    factor = 10 if case.role == "teacher" else 1
    if what == "count":
        return {"parameters": factor * 1e6, "flops": factor * case.size * 1e9}
    cost = {"seconds": factor * 0.5, "peak_bytes": factor * 1e9, "flops": case.size * 1e9}
    return cost | {"device": "a device", "dtype": what.removeprefix("unet-")}


def test_report_and_continuation(tmp_path, monkeypatch, capsys):
    calls = []

    def measure(case, what, config):
        calls.append((case.key, what))
        return fake(case, what, config)

    monkeypatch.setattr("evaluation.cost._measure", measure)
    config = CostConfig(tmp_path, sizes=(64,), run=("mini",))
    measure_costs(config)
    # sd15 and reference are counted, not run; of sd15 one evaluation of the UNet is.
    assert len(calls) == 8
    text = (tmp_path / "cost.md").read_text()
    assert "| mini teacher | 64 | 10.0 | 20 | 640 | 5.00 | 10.00 | 12 GB |" in text
    assert "| mini student | 64 | 1.0 | 2 | 64 | 0.50 | 1.00 | 2 GB |" in text
    assert "| Stable Diffusion 1.5 (teacher) | 64 | 10.0 | 20 | 640 | – | – | – |" in text
    assert "| mini teacher / mini student | 10.0 | 10.0 | 10.0 | 10.0 |" in text
    assert "| Stable Diffusion 1.5 (teacher) / mini student | 10.0 | 10.0 | – | – |" in text
    # A picture takes ten evaluations of 5 s.
    row = "| Stable Diffusion 1.5 (teacher) | 64 | bfloat16 | 64 | 5.00 | 10.00 | 12 GB | 1 |"
    assert row in text
    measure_costs(config)
    assert len(calls) == 8
    measure_costs(CostConfig(tmp_path, sizes=(64, 128), run=("mini",)))
    assert len(calls) == 16
    assert len(json.loads((tmp_path / "cost.json").read_text())["costs"]) == 8


def test_smallest_card_leaves_room_for_the_driver():
    assert smallest_card(1.5e9) == "2 GB"
    assert smallest_card(1.6e9) == "4 GB"
    assert smallest_card(1e12) == "more than 80 GB"


def test_a_model_that_cannot_be_measured(tmp_path, monkeypatch):
    # In place of a world that would be imported to find that out.
    monkeypatch.setattr("sys.executable", "false")
    config = CostConfig(tmp_path, students=(), teachers=("no/such/folder",), sizes=(64,))
    with pytest.raises(InputError, match=r"teacher_torch.cost no/such/folder 64 50 count ended"):
        measure_costs(config)
