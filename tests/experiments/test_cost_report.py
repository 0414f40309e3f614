import json
import os
import subprocess
import sys

import pytest

from experiments.cost import (
    Case,
    CostConfig,
    measure_costs,
    others_seconds,
    ratios,
    smallest_card,
    tables,
)
from triplets import InputError


def fake_counts(case, steps=50):
    """A teacher has 20 times a student's parameters and, kept features or not, its arithmetic."""
    if case.role == "student":
        return {"parameters": 10**6, "flops": case.size * 10**9}
    counts = {"parameters": 20 * 10**6, "flops": 20 * case.size * 10**9}
    as_run = {"evaluations": 3 * steps - 1, "evaluations_as_run": 5 * steps - 3}
    return counts | as_run | {"flops_as_run": 40 * case.size * 10**9}


def fake_run(case):
    factor = 10 if case.role == "teacher" else 1
    device = "CPU (threads: 2)" if case.role == "teacher" else "CPU"
    return {
        "seconds": factor * 0.5,
        "peak_bytes": factor * 10**9,
        "device": device,
        "dtype": "float32",
    }


@pytest.fixture
def calls(monkeypatch):
    """What is measured, in place of measuring it, on a machine without other programs."""
    calls = []

    def measure(case, what, config):
        calls.append((case.key, what))
        return fake_counts(case, config.steps) if what == "count" else fake_run(case)

    monkeypatch.setattr("experiments.cost._measure", measure)
    monkeypatch.setattr("experiments.cost.others_seconds", lambda: 0.0)
    monkeypatch.setattr("experiments.cost.here", lambda: "a machine")
    return calls


def runs(calls):
    """How many models ran, since the last time."""
    taken = [key for key, what in calls if what == "run"]
    calls.clear()
    return len(taken)


def test_every_model_is_counted_and_runs(tmp_path, calls):
    measure_costs(CostConfig(tmp_path, sizes=(64,)))
    assert len(calls) == 8
    text = (tmp_path / "cost.md").read_text()
    assert "| machine | a machine |" in text
    figures = "64 | 20.0 | 40 | 1,280 | 2,560 | 5.00 | 10.00 | 12 GB | CPU (threads: 2), float32"
    for title in ("mini teacher", "Stable Diffusion 1.5 (teacher)"):
        assert f"| {title} | {figures} |" in text
    assert "| mini student | 64 | 1.0 | 2 | 64 | 64 | 0.50 | 1.00 | 2 GB | CPU, float32 |" in text
    # Arithmetic and time are the method's: half of what the teacher's program does.
    assert "| mini teacher / mini student | 20 | 20 | 5.0 | 10.0 |" in text
    assert "| mini teacher | 149 | 247 | 74 |" in text


def test_other_steps_take_other_evaluations(tmp_path, calls):
    measure_costs(CostConfig(tmp_path, teachers=("mini",), students=(), sizes=(64,), steps=20))
    text = (tmp_path / "cost.md").read_text()
    # (2 * 20 + 2 * 19) / 8 + 19 in tiles.
    assert "| mini teacher | 59 | 97 | 29 |" in text
    assert "| steps | 20 |" in text and "style-distil study cost --teachers mini" in text
    assert "| teacher / student |" in text  # an empty table: nothing to compare


def test_claims_of_the_talk(tmp_path, calls):
    """A student is ten times lighter, by parameters, and runs on more GPUs."""
    config = CostConfig(tmp_path, teachers=("sd15",), students=("mini",), sizes=(64,))
    measure_costs(config)
    assert "| 20 | 20 | 5.0 | 10.0 | yes | yes |" in (tmp_path / "cost.md").read_text()
    record = json.loads((tmp_path / "cost.json").read_text())
    light = fake_counts(Case("teacher", "sd15", 64)) | {"parameters": 500_000}
    small = {"count": light, "run": fake_run(Case("student", "mini", 64)) | {"others": None}}
    record["costs"] |= {"teacher sd15 64": small}
    assert "| 0.50 | 20 | 0.50 | 1.0 | no | no |" in tables(record)["ratios"]


def test_runs_are_kept_where_they_were_taken(tmp_path, calls, monkeypatch):
    config = CostConfig(tmp_path, sizes=(64,))
    measure_costs(config)
    assert runs(calls) == 4
    measure_costs(config)
    assert len(calls) == 4  # counted anew
    assert runs(calls) == 0
    measure_costs(CostConfig(tmp_path, sizes=(64, 128)))
    assert runs(calls) == 4
    measure_costs(CostConfig(tmp_path, sizes=(64,), device="cuda"))
    assert runs(calls) == 4
    monkeypatch.setattr("experiments.cost.here", lambda: "another machine")
    measure_costs(CostConfig(tmp_path, sizes=(64,), device="cuda"))
    assert runs(calls) == 4
    assert "| machine | another machine |" in (tmp_path / "cost.md").read_text()
    measured = json.loads((tmp_path / "cost.json").read_text())["costs"]
    assert measured["teacher mini 64"]["machine"] == "another machine"
    assert measured["teacher mini 128"]["machine"] == "a machine"


def test_runs_of_other_programs_are_not_kept(tmp_path, calls, monkeypatch):
    config = CostConfig(tmp_path, teachers=(), students=("mini", "some/folder"), sizes=(64,))
    measure_costs(config)
    assert runs(calls) == 2
    # The weights of a folder may have changed.
    measure_costs(config)
    assert calls[-1] == ("student some/folder 64", "run") and runs(calls) == 1
    path = tmp_path / "cost.json"
    kept = json.loads(path.read_text())
    kept["costs"]["student mini 64"]["count"]["flops"] += 1  # its architecture was another
    path.write_text(json.dumps(kept))
    measure_costs(config)
    assert runs(calls) == 2
    # A file of an earlier version does not say where it comes from.
    earlier = {"run": fake_run(Case("student", "mini", 64))}
    path.write_text(json.dumps({"costs": {"student mini 64": earlier}}))
    measure_costs(config)
    assert runs(calls) == 2


@pytest.mark.parametrize(("share", "shown"), [(0.04, "4%"), (0.3, "30%")])
def test_the_share_of_other_programs_is_reported(tmp_path, calls, monkeypatch, share, shown):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    clock = iter(range(100, 1000, 10))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    busy = iter([0.0, share * 20])
    monkeypatch.setattr("experiments.cost.others_seconds", lambda: next(busy))
    measure_costs(CostConfig(tmp_path, teachers=("mini",), students=(), sizes=(64,)))
    measured = json.loads((tmp_path / "cost.json").read_text())["costs"]["teacher mini 64"]
    assert measured["run"]["others"] == pytest.approx(share)
    text = (tmp_path / "cost.md").read_text()
    assert f"| other programs, share of the cores at most | {shown} |" in text


def test_others_time_leaves_out_finished_children(tmp_path, monkeypatch):
    def write(busy_seconds):
        ticks = round(busy_seconds * os.sysconf("SC_CLK_TCK"))
        # Idle and waiting time are not work, and guests are in the user time already.
        stat.write_text(f"cpu  {ticks - 15} 1 2 999 888 3 4 5 77 0\ncpu0 0 0\n")

    stat = tmp_path / "stat"
    monkeypatch.setattr("experiments.cost.PROC_STAT", stat)
    assert others_seconds() is None
    write(1000)
    before, own = others_seconds(), os.times()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    took = sum(os.times()[2:4]) - sum(own[2:4])
    assert took > 0
    write(1000 + took + 5)
    assert others_seconds() - before == pytest.approx(5, abs=0.02)


def test_unlike_devices_are_not_compared():
    pair = [Case("teacher", "mini", 64), Case("student", "mini", 64)]
    teacher, student = ({"count": fake_counts(case), "run": fake_run(case)} for case in pair)
    assert ratios(teacher, student) == {
        "parameters": 20,
        "arithmetic": 20,
        "time": 5,
        "memory": 10,
    }
    student["run"]["peak_bytes"] = None
    assert ratios(teacher, student)["memory"] is None
    student["run"] |= {"device": "NVIDIA H200", "peak_bytes": 10**9}
    assert ratios(teacher, student)["time"] is ratios(teacher, student)["memory"] is None


def test_memory_that_is_not_known(tmp_path, calls, monkeypatch):
    unknown = fake_run(Case("student", "mini", 64)) | {"peak_bytes": None}
    monkeypatch.setattr("experiments.cost._run", lambda *_: unknown | {"others": None})
    measure_costs(CostConfig(tmp_path, sizes=(64,)))
    text = (tmp_path / "cost.md").read_text()
    assert "| mini student | 64 | 1.0 | 2 | 64 | 64 | 0.50 | – | – |" in text
    assert "| 0.50 | – | yes | – |" in text
    assert "| other programs, share of the cores at most | unknown |" in text


def test_smallest_card_leaves_room_for_the_driver():
    assert smallest_card(1_500_000_000) == "2 GB"
    assert smallest_card(1_600_000_000) == "4 GB"
    assert smallest_card(10**12) == "more than 80 GB"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": ()}, r"sizes are \(\); expected one or more positive multiples of 64 px"),
        ({"sizes": (64, 100)}, r"sizes are \(64, 100\); expected"),
        ({"sizes": (0,)}, r"sizes are \(0,\); expected"),
        ({"steps": 1}, "steps is 1; expected 2 to 999"),
    ],
)
def test_settings_that_no_model_takes(wrong, message):
    with pytest.raises(ValueError, match=message):
        CostConfig(**wrong)


def test_a_model_that_cannot_be_measured(tmp_path, monkeypatch):
    # In place of a world that would be imported to find that out.
    monkeypatch.setattr("sys.executable", "false")
    config = CostConfig(tmp_path, students=(), teachers=("no/such/folder",), sizes=(64,))
    with pytest.raises(InputError, match=r"teacher_torch.cost no/such/folder 64 50 count ended"):
        measure_costs(config)


def test_a_student_is_measured_by_its_own_program(tmp_path, monkeypatch):
    # Compiling takes nearly all of the time of this test.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    config = CostConfig(tmp_path, teachers=(), students=("mini",), sizes=(64,))
    measure_costs(config)
    measured = json.loads((tmp_path / "cost.json").read_text())["costs"]["student mini 64"]
    assert measured["count"]["parameters"] == 2_567_610
    assert measured["count"]["flops"] > 1e8
    assert measured["run"]["seconds"] > 0
    if sys.platform == "linux":
        # In float32, and little beside it: this process would show far more.
        weights = 4 * measured["count"]["parameters"]
        assert weights < measured["run"]["peak_bytes"] < weights + 50e6
        assert 0 <= measured["run"]["others"] <= 1
    assert "| mini student | 64 | 2.6 | 5 |" in (tmp_path / "cost.md").read_text()
