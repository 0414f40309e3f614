"""Attention distillation against fixtures that the authors' program made on a tiny recipe model.

The fixtures hold their results in float64. Each step starts from the true latents, because Adam
turns the sign of a gradient near zero into a whole step: two float32 programs part by 8e-3 after
eight free steps. The mildest mistake in the algorithm moves a first gradient by 7 % and a loss by
2e-3 (REFERENCE of the fixtures); tolerances are some times what float32 costs.
"""

import numpy as np
import pytest
import torch
from styleid_recipe import FIXTURES, components

from teacher_torch.attention_distillation import AttentionDistillation, AttentionDistillationConfig
from teacher_torch.attention_distillation.features import Masks, Rows
from teacher_torch.attention_distillation.losses import (
    attention_target,
    content_loss,
    same_region,
    style_loss,
)
from triplets import InputError

VARIANTS = {
    "default": {},
    "weight0": {"content_weight": 0.0},
    "layers13_16": {"layers": (9, 10, 11)},
    "scale15": {"style_scale": 1.5},
    "wide": {},
    "iters2": {"num_steps": 4, "iterations": 2},
    "texture": {"num_steps": 6, "content_weight": 0.0},
}
PAIR = torch.zeros(1, 2, dtype=torch.long)


def load(name):
    with np.load(FIXTURES / f"ad_{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(scope="module")
def model():
    unet, vae, scheduler, null_text = components()
    unet.requires_grad_(False)
    return unet, vae, scheduler, null_text


def teacher(model, **settings):
    unet, _, scheduler, null_text = model
    config = AttentionDistillationConfig(**{"num_steps": 8} | settings)
    return AttentionDistillation(unet, scheduler, null_text, config)


@pytest.fixture(scope="module")
def model64():
    """In float64: one flipped sign of an L1 gradient costs 2e-3 of its norm in float32."""
    unet, vae, scheduler, null_text = components()
    return unet.double().requires_grad_(False), vae, scheduler, null_text


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("name", "styles", "scale"),
    [("ad", 2, 1.0), ("ad_scale15", 2, 1.5), ("ad_one_style", 1, 1.0), ("ad_mask", 1, 1.0)],
)
def test_style_loss(name, styles, scale):
    """The authors take the mean over rows, of which ours is the sum: two rows."""
    case = load("losses")
    total = 0.0
    inputs = []
    for i in (0, 1):
        q, k, v = (case[f"in_{x}{i}"].clone().requires_grad_() for x in "qkv")
        inputs += [(f"q{i}", q), (f"k{i}", k), (f"v{i}", v)]
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        keys, values = case[f"in_ks{i}"][:styles], case[f"in_vs{i}"][:styles]
        allowed = None
        if name == "ad_mask":
            masks = (case[f"in_{x}_mask"][0].long() for x in ("target", "source"))
            result, [style] = masks
            allowed = same_region(result.expand(2, -1, -1), style, q.shape[2], keys.shape[2])
        target = attention_target(q, keys, values, scale, allowed)
        total = total + style_loss(output, target).mean()
    torch.testing.assert_close(total, case[name], rtol=1e-6, atol=0)
    for (key, _), gradient in zip(
        inputs, torch.autograd.grad(total, [x for _, x in inputs]), strict=True
    ):
        assert relative(gradient, case[f"{name}_grad_{key}"]) < 1e-5


def test_content_loss():
    case = load("losses")
    queries = [case[f"in_q{i}"].clone().requires_grad_() for i in (0, 1)]
    total = sum(
        content_loss(q, case[f"in_cq{i}"].expand_as(q)).mean() for i, q in enumerate(queries)
    )
    torch.testing.assert_close(total, case["q"], rtol=1e-6, atol=0)
    for i, gradient in enumerate(torch.autograd.grad(total, queries)):
        assert relative(gradient, case[f"q_grad_q{i}"]) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_each_step_from_the_true_latents(name, model64):
    case = load(f"optimize_{name}")
    distillation = teacher(model64, **VARIANTS[name])
    timesteps = distillation.timesteps(spread=False)
    assert timesteps == case["timesteps"].tolist()
    iterations = distillation.config.iterations
    rows = len(case["start"])
    contents = None if name == "texture" else case["start"]
    gradients = case.get("grads")
    truth = torch.cat([case["start"][None], case["latents"]])
    stylised = Rows(
        stylised_contents=None if contents is None else torch.zeros(rows, dtype=torch.long),
        stylised_per_style=(rows,),
    )
    for step, timestep in enumerate(t for t in timesteps for _ in range(iterations)):
        with distillation._distilled() as distilled:
            distillation._record(distilled, contents, case["z_style"], timestep)
            x = truth[step].double().requires_grad_()
            style, content = distillation.losses(distilled, x, stylised, timestep)
        expected = case["style_loss"][step].double()
        torch.testing.assert_close(style.mean(), expected, rtol=2e-6, atol=0)
        # The first step starts at the content, where the authors' distance is exactly zero.
        first = step == 0 and contents is not None
        if contents is not None:
            torch.testing.assert_close(
                content.mean(), case["content_loss"][step].double(), rtol=2e-6, atol=1e-9
            )
        weight = 0.0 if first or contents is None else distillation.config.content_weight
        (gradient,) = torch.autograd.grad((style + weight * content).mean(), x)
        if gradients is not None:
            assert relative(gradient, gradients[step]) < 2e-6
        elif step == 0:
            assert relative(gradient, case["grad_first"]) < 2e-6


@pytest.mark.parametrize("name", ("default", "wide", "iters2", "texture"))
def test_free_run(name, model):
    """Means, not maxima: flipped signs of gradients near zero grow."""
    case = load(f"optimize_{name}")
    distillation = teacher(model, **VARIANTS[name])
    contents = None if name == "texture" else case["start"]
    pairs = PAIR.expand(len(case["start"]), -1)
    steps = []
    distillation.after_step = lambda x, style, content: steps.append((x.clone(), style.mean()))
    timesteps = case["timesteps"].tolist()
    result = distillation.distil(case["start"], contents, case["z_style"], pairs, timesteps)
    assert (result - case["latents"][-1]).abs().mean() < 2.5e-3
    for (_, loss), expected in zip(steps, case["style_loss"], strict=True):
        assert float(loss) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "settings"), [("default", {}), ("nocontent_late", {"learning_rate": 0.015})]
)
def test_sampling(name, settings, model):
    case = load(f"sample_{name}")
    late = name == "nocontent_late"
    distillation = teacher(model, num_steps=5, iterations=2, **settings)
    noises = iter(case["noise"])
    purposes = []

    def noise(step, purpose):
        purposes.append(purpose)
        return next(noises)

    ddim, after = [], []
    distillation.after_step = lambda x, *_: after.append(x.clone())
    distillation.sample(
        case["start"],
        None if late else case["z_content"],
        case["z_style"],
        PAIR,
        noise,
        start_time=500 if late else 999,
        after_ddim=lambda x: ddim.append(x.clone()),
    )
    kinds = ["adain", "style"] if late else ["adain", "style", "content"]
    assert purposes == kinds * (3 if late else 5)
    assert next(noises, None) is None
    # The mildest mistakes (noise in another order, features at the step before) cost 1e-2.
    torch.testing.assert_close(torch.stack(ddim), case["ddim"], rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.stack(after), case["after"], rtol=0, atol=1e-3)


def test_a_tile_gives_each_pair_what_it_gets_alone(model):
    """Two contents and two styles together, in calls of two rows, and one by one."""
    generator = torch.Generator().manual_seed(0)
    contents, styles = torch.randn(2, 2, 4, 16, 16, generator=generator)
    pairs = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    distillation = teacher(model, num_steps=2)
    distillation.rows_per_call = 2
    start = contents[pairs[:, 0]] + 0.1 * torch.randn(4, 4, 16, 16, generator=generator)
    together = distillation.distil(start, contents, styles, pairs, [601, 1])
    for row, (content, style) in enumerate(pairs.tolist()):
        alone = distillation.distil(
            start[row : row + 1],
            contents[content : content + 1],
            styles[style : style + 1],
            PAIR,
            [601, 1],
        )
        # Signs of gradients near zero may flip: a step of 0.05 at a few places.
        assert (together[row] - alone[0]).abs().mean() < 1e-3


def test_masks_divide_a_tile_by_its_rows(model):
    """Each row by its own mask, as alone; a region takes part only in its own."""
    generator = torch.Generator().manual_seed(0)
    contents, styles = torch.randn(2, 2, 4, 16, 16, generator=generator)
    pairs = torch.tensor([[0, 0], [1, 0], [0, 1]])
    start = contents[pairs[:, 0]] + 0.1 * torch.randn(3, 4, 16, 16, generator=generator)
    left = (torch.arange(16) < 8).long().expand(16, 16)
    masks = Masks(torch.stack([left, 1 - left, left]), torch.stack([left, torch.ones_like(left)]))
    masks.results[2] = 1  # the second style has one region alone
    distillation = teacher(model, num_steps=2)
    distillation.rows_per_call = 2

    def distil(rows, masks):
        return distillation.distil(start[rows], contents, styles, pairs[rows], [601, 1], masks)

    together = distil([0, 1, 2], masks)
    for row in range(3):
        alone = distil([row], Masks(masks.results[[row]], masks.styles))
        assert (together[row] - alone[0]).abs().mean() < 1e-3
    unmasked = distil([0, 1, 2], None)
    apart = (together - unmasked).abs().mean((1, 2, 3))
    assert apart[2] < 1e-3 < 1e-2 < apart[:2].min()


def test_a_region_that_the_style_lacks(model):
    latents = torch.zeros(1, 4, 16, 16)
    masks = Masks(torch.full((1, 16, 16), 2), torch.ones(1, 16, 16, dtype=torch.long))
    with pytest.raises(InputError, match="row 0 has the label 2"):
        teacher(model).distil(latents, latents, latents, PAIR, [1], masks)
