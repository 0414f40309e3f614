"""StyleDiffusion against a fixture made from its definition, since there is no official program.

The networks are those of the ZeCon fixtures, so the pictures are the model's states. Tolerances are
those of REFERENCE of the fixture, some times what float32 costs.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from zecon_recipe import clip_guide, load, picture_denoiser, to_model_range

from teacher_torch.style_diffusion.config import StyleDiffusionConfig
from teacher_torch.style_diffusion.disentangling import (
    Embedded,
    Removed,
    StyleDiffusion,
    luma,
    points,
)

CASE = load("stylediffusion_core")
GIVEN = json.loads(str(CASE["config"]))


@pytest.fixture(scope="module")
def method():
    config = StyleDiffusionConfig(
        removal_time=GIVEN["T_remov"],
        transfer_time=GIVEN["T_trans"],
        forward_steps=GIVEN["S_for"],
        reverse_steps=GIVEN["S_rev"],
        learning_rate=GIVEN["lr"],
        rounds=1,
        style_passes=1,
        content_passes=1,
    )
    return StyleDiffusion(picture_denoiser(), clip_guide("bicubic"), config)


@pytest.fixture(scope="module")
def style():
    return to_model_range(CASE["style_u8"])


@pytest.fixture(scope="module")
def removed(method, style):
    return method.remove(style)


def close(actual, expected, tolerance, relative=0.0):
    expected = torch.from_numpy(np.asarray(expected))
    torch.testing.assert_close(actual.to(expected.dtype), expected, atol=tolerance, rtol=relative)


def test_points():
    for name, times in GIVEN["times"].items():
        last, count = map(int, name.split("/"))
        assert points(last, count) == tuple(times)


def test_colour_removal(style):
    grey = ((luma(style)[0] + 1) * 127.5).round().to(torch.uint8)
    assert all((channel.numpy() == CASE["style_gray"]).all() for channel in grey)


def test_style_removal(method, style, removed):
    close(removed.states, CASE["style_removed"], 1e-3)
    noisy = method.rise(luma(style), 603)
    close(method.fall(noisy, 603, 6)[:, :, ::2, ::2], CASE["style_removed_6_stride2"], 1e-3)


def test_embeddings(method, style, removed):
    content = luma(to_model_range(CASE["content_u8"]))
    for states, name in ((style, "fs"), (removed.states, "fsc"), (content, "fc")):
        close(method.embed(states), CASE[name], 1e-4)


def test_tuning_and_transfer(method, style, removed):
    """Six Adam steps of reconstruction, six of disentanglement, then six of sampling."""
    content = luma(to_model_range(CASE["content_u8"]))
    latents = method.rise(content, 301)
    close(latents, CASE["content_latent_301"], 1e-5)
    losses = []
    tuned = method.tune(style, removed, [Embedded(latents, method.embed(content))], losses.append)
    np.testing.assert_allclose(losses, CASE["losses"], rtol=2e-3)
    close(tuned.network.conv_out.bias, CASE["conv_out_bias_after"], 3e-5)
    change = tuned.network.conv_in.weight - method.denoiser.network.conv_in.weight
    close(change, CASE["conv_in_weight_change"], 3e-5)
    close(method.transfer(latents, tuned), CASE["stylised_after"], 3e-3)
    assert not any(p.requires_grad for p in method.denoiser.network.parameters())


def test_embeddings_are_not_normalised(method, style, removed):
    """Normalised, the first loss of disentanglement would be an eighth."""
    content = luma(to_model_range(CASE["content_u8"]))
    fs, fsc, fc = (torch.from_numpy(CASE[name]) for name in ("fs", "fsc", "fc"))
    loss = method.disentanglement_loss(style, fc, fs - fsc)
    close(loss, 10 * (fsc - fc).abs().mean() + 1 - F.cosine_similarity(fs - fc, fs - fsc)[0], 1e-3)
    assert Removed(content, content).states is content
