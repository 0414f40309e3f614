"""Properties of StyleID on a tiny random model; parity with the authors is in tests/parity."""

import pytest
import torch

from teacher_torch import Inversion, StyleID, StyleIDConfig
from teacher_torch.styleid.attention import Rows, StyleInjection

# Rounding of float32 networks whose batches are cut differently, amplified by the steps.
ATOL = 2e-4


def teacher(components, **changes):
    return StyleID(*components, StyleIDConfig(**{"num_steps": 4} | changes))


def pictures(count, size=(64, 64), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=generator) * 2 - 1


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=ATOL)


@pytest.mark.parametrize("convention", ["paper", "port"])
def test_joint_sampling_equals_one_pair_at_a_time(components, convention):
    styleid = teacher(components, convention=convention)
    content, style = styleid.invert(pictures(3)), styleid.invert(pictures(2, seed=1))
    pairs = torch.tensor([[2, 1], [0, 0], [1, 1], [2, 0]])  # any order, not all combinations
    joint = styleid.stylise_pairs(content, style, pairs)
    for picture, (i, j) in zip(joint, pairs.tolist(), strict=True):
        close(picture[None], styleid.stylise(content[i], style[j]))


def test_one_style_or_one_for_each_content(components):
    styleid = teacher(components)
    content, style = styleid.invert(pictures(2)), styleid.invert(pictures(2, seed=1))
    close(styleid.stylise(content, style)[1:], styleid.stylise(content[1], style[1]))
    close(styleid.stylise(content, style[1])[:1], styleid.stylise(content[0], style[1]))
    with pytest.raises(ValueError, match="3 contents cannot pair with 2 styles"):
        styleid.stylise(styleid.invert(pictures(3)), style)


def test_every_setting_changes_the_picture(components):
    changes = (
        {},
        {"gamma": 0.3},
        {"temperature": 3.0},
        {"injection_layers": (9, 10, 11)},
        {"convention": "port"},
        {"inject_attention": False},
        {"adain_init": False},
        {"inject_attention": False, "adain_init": False},
        {"num_steps": 5},
    )
    results = []
    for change in changes:
        styleid = teacher(components, **change)
        content, style = styleid.invert(pictures(1)), styleid.invert(pictures(1, seed=1))
        results.append(styleid.stylise(content, style))
    for i, one in enumerate(results):
        for other in results[:i]:
            assert (one - other).abs().max() > 10 * ATOL


def test_wide_content_and_small_style(components):
    styleid = teacher(components)
    content, style = styleid.invert(pictures(2, (64, 128))), styleid.invert(pictures(1))
    assert styleid.stylise(content, style).shape == (2, 3, 64, 128)


def test_a_content_as_its_own_style_keeps_its_start(components):
    styleid = teacher(components)
    content = styleid.invert(pictures(1))
    close(
        styleid.initial_latents(content, content, torch.zeros(1, 2, dtype=int)), content.latents[-1]
    )


def test_injecting_a_picture_into_itself_changes_nothing(components):
    """Equal queries merge to themselves, and the keys and values are the picture's own."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    styleid = teacher(components)
    with torch.inference_mode(), StyleInjection(components.unet, (6, 11), 0.3, 1.0) as injection:
        injection.rows = Rows(1, 1, torch.tensor([0]), (1,))
        content, style, stylised = styleid._predict(latents.expand(3, -1, -1, -1), 500)
    close(stylised, content)
    close(style, content)


def test_sharper_temperature_changes_injected_rows_alone(components):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    styleid, outputs = teacher(components), []
    for temperature in (1.0, 3.0):
        with (
            torch.inference_mode(),
            StyleInjection(components.unet, (6, 11), 0.75, temperature) as injection,
        ):
            injection.rows = Rows(1, 1, torch.tensor([0]), (1,))
            outputs.append(styleid._predict(latents, 500))
    close(outputs[0][:2], outputs[1][:2])
    assert (outputs[0][2] - outputs[1][2]).abs().max() > 10 * ATOL


def test_processors_are_put_back(components):
    before = dict(components.unet.attn_processors)
    styleid = teacher(components)
    content = styleid.invert(pictures(1))
    styleid.stylise(content, content)
    assert components.unet.attn_processors == before


def test_sides_that_do_not_fit_the_model(components):
    with pytest.raises(ValueError, match="96 x 64 px; this model needs multiples of 64"):
        teacher(components).invert(pictures(1, (64, 96)))


def test_batches_of_inversions(components):
    styleid = teacher(components)
    images = pictures(3)
    whole = styleid.invert(images)
    parts = Inversion.cat([styleid.invert(images[:2]), styleid.invert(images[2:])])
    assert len(parts) == 3 and whole.latents.shape == (5, 3, 4, 8, 8)
    close(parts.latents, whole.latents)
    assert whole.latents.dtype == torch.float32
