import copy

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from teacher_torch import cost
from teacher_torch.components import Components


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


def test_one_evaluation_of_the_unet(components, monkeypatch):
    unet, vae, scheduler, text = components
    on_meta = [copy.deepcopy(module).to("meta") for module in (unet, vae)]
    untouched = Components(*on_meta, scheduler, text.to("meta"))
    monkeypatch.setattr(cost, "build_components", lambda *_: untouched)
    ran = cost.evaluate_unet("tiny", 64, torch.bfloat16, "cpu")
    # The counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        unet(torch.zeros(1, 4, 8, 8), 500, text)
    assert ran["flops"] == counter.get_total_flops() > 0
    assert ran["seconds"] > 0 and ran["peak_bytes"] >= 0
    assert ran["dtype"] == "bfloat16"


def test_stable_diffusion_has_its_published_size():
    with torch.device("meta"):
        unet, vae, text = cost.stable_diffusion_15()
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert text.shape == (1, 77, 768)
