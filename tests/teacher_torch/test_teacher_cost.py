import copy
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from teacher_torch import cost
from triplets.memory import PeakGrowth

CPU = torch.device("cpu")


@pytest.fixture
def tiny(components, monkeypatch):
    """In place of any other teacher."""

    def build(model, device, dtype):
        unet, vae = (copy.deepcopy(module).type(dtype) for module in components[:2])
        text = components.null_text_embedding.to(dtype)
        return components._replace(unet=unet, vae=vae, null_text_embedding=text)

    monkeypatch.setattr(cost, "build_components", build)
    return components


def test_counted_cost_is_that_of_all_steps(tiny):
    counted = cost.count("tiny", 64, 5)
    with FlopCounterMode(display=False) as counter:
        _, evaluations = cost.stylise_one(cost.open_teacher(tiny, 5), 64)
    assert counted["flops_as_run"] == counter.get_total_flops() > 0
    # Two pictures are inverted in 5 steps; content, style and result take 4 to sample.
    assert counted["evaluations_as_run"] == evaluations == 2 * 5 + 3 * 4
    assert counted["parameters"] == sum(
        p.numel() for m in (tiny.unet, tiny.vae) for p in m.parameters()
    )


def test_the_method_evaluates_content_and_style_once(tiny):
    counted = cost.count("tiny", 64, 5)
    assert counted["evaluations"] == 2 * 5 + 4
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny.unet(torch.zeros(1, 4, 8, 8), 500, tiny.null_text_embedding)
    again = 2 * 4 * counter.get_total_flops()
    assert counted["flops"] == counted["flops_as_run"] - again


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_a_picture_runs_in_the_faster_dtype(tiny, monkeypatch, faster):
    pictures = []

    def timed(teacher, size):
        steps = teacher.styleid.config.num_steps
        pictures.append((str(teacher.components.unet.dtype).removeprefix("torch."), steps))
        picture, _ = cost.stylise_one(teacher, size)
        assert picture.shape == (3, size, size)
        # 3 s a step and 1 s besides, or slower.
        return 3 * steps + 1.0 if pictures[-1][0] == faster else 100.0

    monkeypatch.setattr(cost, "_timed", timed)
    ran = cost.run("tiny", 64, 50, CPU)
    assert ran["dtype"] == faster
    assert ran["seconds"] == 3 * 50 + 1
    # Each takes long, so once: 2 steps in both, 4 in the faster one.
    assert pictures == [("float32", 2), ("bfloat16", 2), (faster, 4)]


def test_fast_models_are_timed_three_times(tiny, monkeypatch):
    steps = []

    def timed(teacher, size):
        steps.append(teacher.styleid.config.num_steps)
        return 0.1 * steps[-1]

    monkeypatch.setattr(cost, "_timed", timed)
    assert cost.run("tiny", 64, 10, CPU)["seconds"] == pytest.approx(1)
    assert steps == [2] * 6 + [4] * 3


def test_measured_cost_is_positive(tiny):
    ran = cost.run("tiny", 64, 2, CPU)
    assert ran["seconds"] > 0
    assert ran["peak_bytes"] is None or ran["peak_bytes"] > 0


def test_peak_is_of_the_work_alone(components):
    def work(size):
        torch.ones(size, dtype=torch.uint8)

    work(300_000_000)  # as loading or compiling takes
    with PeakGrowth() as grown:
        work(100_000_000)
    weights = sum(p.nbytes for m in (components.unet, components.vae) for p in m.parameters())
    peak = cost._peak_bytes(cost.open_teacher(components, 2), grown.bytes)
    if sys.platform == "linux":
        assert peak - weights == pytest.approx(100e6, rel=0.1)
    else:
        assert peak is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_networks_make_pictures(dtype):
    built = cost.build_components("mini", CPU, dtype)
    assert built.unet.dtype == built.vae.dtype == built.null_text_embedding.dtype == dtype
    picture, _ = cost.stylise_one(cost.open_teacher(built, 2), 64)
    assert picture.isfinite().all()


def test_stable_diffusion_has_its_published_size():
    with torch.device("meta"):
        unet, vae, text = cost.stable_diffusion_15()
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert text.shape == (1, 77, 768)
