import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from teacher_torch import StyleIDConfig
from teacher_torch.dump import DumpConfig, dump
from teacher_torch.estimate import hours, measure_rates, tflop
from teacher_torch.inst import InSTConfig, InSTTeacher
from teacher_torch.style_diffusion import StyleDiffusionConfig
from teacher_torch.style_diffusion.adapter import open_style_diffusion
from teacher_torch.styleid import StyleIDTeacher
from teacher_torch.teacher import Runtime
from teacher_torch.zecon import ZeConConfig
from teacher_torch.zecon.adapter import open_zecon
from triplets import write_image

CPU = torch.device("cpu")


@pytest.fixture
def row_flops(components):
    """Of one UNet row of 64 px."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        components.unet(torch.zeros(1, 4, 8, 8), 500, components.null_text_embedding)
    return counter.get_total_flops()


def test_a_row_of_styleid_is_a_unet_row(components, row_flops):
    rates = measure_rates(StyleIDTeacher(components, StyleIDConfig(num_steps=2)), 64)
    assert rates.keys() == {"pair"}
    assert rates["pair"].flops == row_flops and rates["pair"].seconds > 0


def test_a_trained_style_has_backward_passes(components, row_flops):
    rates = measure_rates(InSTTeacher(components, InSTConfig.direct()), 64)
    assert rates["pair"].flops == row_flops
    # A backward pass to the input alone costs about what the forward pass does.
    assert 0.9 * row_flops < 2 * rates["style"].flops - row_flops < 1.5 * row_flops


def test_the_guide_counts(model_folder, row_flops):
    few, many = (
        measure_rates(
            open_zecon(
                replace(ZeConConfig.vgg_statistics(), patches=patches),
                Runtime(str(model_folder), CPU, torch.float32),
            ),
            64,
        )
        for patches in (1, 3)
    )
    assert few["content"].flops == row_flops
    assert many["pair"].flops - few["pair"].flops > row_flops  # VGG16 is larger than this UNet


def test_a_tuned_network_has_gradients_of_its_weights(model_folder, row_flops):
    teacher = open_style_diffusion(
        StyleDiffusionConfig.vgg_statistics(), Runtime(str(model_folder), CPU, torch.float32)
    )
    rates = measure_rates(teacher, 64)
    assert rates["pair"].flops == row_flops < rates["style"].flops
    assert not any(p.requires_grad for p in teacher._tuned.network.parameters())


def test_the_plan_says_what_a_picture_and_a_pair_cost(model_folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for kind, count in (("content", 3), ("style", 2)):
        (tmp_path / kind).mkdir()
        for i in range(count):
            write_image(tmp_path / kind / f"{i}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    content, style = (str(tmp_path / kind) for kind in ("content", "style"))
    model, method = str(model_folder), StyleIDConfig(num_steps=2)
    dump(DumpConfig(content, style, tmp_path / "out", model=model, method=method, tile=8))
    printed = capsys.readouterr()
    # 3 + 2 pictures in 2 steps; 3 + 2 + 6 rows in one step of sampling.
    cost = r"\([\d.e-]+ TFLOP, \d+ s\)"
    assert re.search(
        rf"cost: 2 rows per content {cost}, 2 rows per style {cost}, 1\.833 rows per pair {cost}\n"
        r"in all: [\d.e-]+ TFLOP, about \d+ s at the measured rate\n",
        printed.out,
    )
    assert "preparing: 100%" in printed.err and "3 of 3 contents, 2 of 2 styles" in printed.err
    assert "stylising: 100%" in printed.err and "6 pairs" in printed.err


def test_amounts_in_words():
    assert [hours(s) for s in (0.2, 89, 100, 5399, 12_600)] == [
        "1 s",
        "89 s",
        "2 min",
        "90 min",
        "3.5 h",
    ]
    assert [tflop(x) for x in (59.53e12, 10_350e12, 2.5e9)] == [
        "59.5 TFLOP",
        "10400 TFLOP",
        "0.0025 TFLOP",
    ]
