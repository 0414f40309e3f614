import torch
from torch.utils.flop_counter import FlopCounterMode

from teacher_torch import cost


def test_counted_cost_is_that_of_all_steps(components, monkeypatch):
    monkeypatch.setattr(cost, "build_components", lambda *_: components)
    counted = cost.count("tiny", 64, 5)
    with FlopCounterMode(display=False) as counter:
        cost.stylise_one(components, 64, 5)
    assert counted["flops"] == counter.get_total_flops() > 0
    assert counted["parameters"] == sum(
        p.numel() for m in (components.unet, components.vae) for p in m.parameters()
    )


def test_measured_cost_is_positive(components, monkeypatch):
    monkeypatch.setattr(cost, "build_components", lambda *_: components)
    ran = cost.run("tiny", 64, 2, "cpu")
    assert ran["seconds"] > 0 and ran["peak_bytes"] >= 0
    assert ran["dtype"] == "float32"


def test_stable_diffusion_has_its_published_size():
    with torch.device("meta"):
        unet, vae, text = cost.stable_diffusion_15()
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert text.shape == (1, 77, 768)
