"""ZeCon against fixtures of the authors' program on tiny recipe networks.

The fixtures hold results in float64; tolerances are those of REFERENCE of the fixtures, some times
what an independent float32 program differs by. The mistakes that it lists cost 1e-2 and more of the
gradient's mean, where 1.7e-6 is what float32 costs.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from zecon_recipe import (
    CONFIG,
    NETS,
    clip_guide,
    load,
    normal32,
    picture_denoiser,
    to_model_range,
    vgg_slices,
    weight,
)

from teacher_torch.denoisers import module_sha256
from teacher_torch.zecon.config import ZeConConfig
from teacher_torch.zecon.guidance import FEATURES, Content, Target, ZeCon
from teacher_torch.zecon.losses import (
    contrastive_loss,
    directional_distance,
    range_loss,
    spherical_distance,
)
from teacher_torch.zecon.patches import PatchNumbers, cut_patches

RANDOM = load("zecon_random")
PURPOSES = ("sampler", "directional_patch", "zecon", "mse", "vgg")
LOSSES = ("global_patch", "directional_patch", "zecon", "mse", "vgg", "range")
WEIGHTS = {
    f"{name}_weight": CONFIG["weights"][theirs]
    for name, theirs in zip(
        LOSSES, ("clip_global_patch", "clip_dir_patch", "zecon", "mse", "vgg", "range"), strict=True
    )
}
STEPS, START = CONFIG["steps"], CONFIG["steps"] - CONFIG["skip"] - 1


class Recorded:
    """The fixture's draws."""

    def noise(self, step, purpose, shape):
        return normal32(f"noise.{5 * (START - step) + PURPOSES.index(purpose)}", *shape)

    def patches(self, step, purpose, picture_px):
        column = ("global_patch", "directional_patch").index(purpose)
        crop, angle, shift, corners = (
            torch.from_numpy(RANDOM[name][START - step, column])[None]
            for name in ("crop", "angle", "ty", "end")
        )
        return PatchNumbers(crop.long(), angle, shift, corners)

    def positions(self, step, layer, count):
        chosen = RANDOM[f"ids_layer{layer}"][START - step]
        assert len(chosen) == min(256, count)
        return torch.from_numpy(chosen).long()[None]


@pytest.fixture(scope="module")
def denoiser():
    return picture_denoiser()


@pytest.fixture(scope="module")
def zecon(denoiser, tmp_path_factory):
    config = ZeConConfig(patches=CONFIG["n_patch"], num_steps=STEPS, skip=CONFIG["skip"], **WEIGHTS)
    return ZeCon(denoiser, clip_guide(), config, vgg_slices(tmp_path_factory.mktemp("vgg")))


@pytest.fixture(scope="module")
def clean():
    return to_model_range(RANDOM["content_u8"])


@pytest.fixture(scope="module")
def target():
    return Target(normal32("text.tgt", 1, 32), normal32("text.src", 1, 32))


def close(actual, expected, tolerance, relative=0.0):
    expected = torch.from_numpy(np.asarray(expected))
    torch.testing.assert_close(actual.to(expected.dtype), expected, atol=tolerance, rtol=relative)


def test_recipe():
    for name, (total, absolute) in zip(NETS["keys"], NETS["sums"], strict=True):
        values = weight(str(name)).astype(np.float64)
        if values.ndim == 4 and name.startswith("vgg."):
            values /= CONFIG["vgg_gain"]  # it comes after the sums, in float32
        assert values.sum() == pytest.approx(total, rel=1e-6, abs=1e-5), name
        assert np.abs(values).sum() == pytest.approx(absolute, rel=1e-6), name


def test_networks(denoiser, zecon):
    x = normal32("x", 1, 3, 64, 64)
    with torch.no_grad():
        for timestep in (0, 489):
            output = denoiser.network(x, timestep).sample
            close(output, NETS[f"out_t{timestep}"], 3e-5)
            prediction = denoiser.predict(x, timestep)
            close(torch.cat([prediction.noise, prediction.variance], 1), output, 3e-5)
        for i, features in zip(FEATURES, denoiser.features(x, FEATURES), strict=True):
            close(features[:, ::8], NETS[f"feat{i}_stride8"], 3e-5)
        y = normal32("y", 2, 3, 32, 32)
        model = zecon.guide.model
        close(model(pixel_values=y).image_embeds, NETS["clip_embed"], 3e-5)
        pixels = (y * zecon.guide._std + zecon.guide._mean) * 2 - 1
        close(zecon.guide.embed(pixels), NETS["clip_embed"], 3e-5)
        # Fed as it is: the module's own normalisation is undone.
        features = zecon.vgg(x * zecon.vgg.std + zecon.vgg.mean)
    close(features["relu1_1"][:, ::4, ::2, ::2], NETS["vgg_relu1_1_stride4"], 3e-5)
    close(features["relu2_1"][:, ::4], NETS["vgg_relu2_1_stride4"], 3e-5)


def contrasted():
    case = load("zecon_patch_loss")
    shapes = json.loads(str(case["config"]))["shapes"]
    queries = [normal32(f"nce.q{i}", 1, *shape) for i, shape in enumerate(shapes)]
    other = [normal32(f"nce.k{i}", 1, *shape) for i, shape in enumerate(shapes)]
    keys = [0.7 * q + 0.7 * k for q, k in zip(queries, other, strict=True)]
    ids = [torch.from_numpy(case[f"ids{i}"]).long()[None] for i in range(len(shapes))]
    return case, [q.requires_grad_() for q in queries], keys, ids


def test_contrastive_loss():
    case, queries, keys, ids = contrasted()
    for i, expected in enumerate(case["per_layer"]):
        of_layer = contrastive_loss(queries[i : i + 1], keys[i : i + 1], ids[i : i + 1])
        close(of_layer[0], expected, 3e-7, 1e-6)  # float32 costs 1.5e-7
    total = contrastive_loss(queries, keys, ids)
    close(total[0], case["total"], 0, 1e-6)
    for i, gradient in enumerate(torch.autograd.grad(total.sum(), queries)):
        close(gradient, case[f"grad{i}"], 1e-7)


def test_minus_ten_is_the_plain_cross_entropy():
    """The authors' form, written out: the row without its diagonal, the diagonal in front."""
    _, queries, keys, ids = contrasted()
    total = 0.0
    for q, k, chosen in zip(queries, keys, ids, strict=True):
        q, k = (x.detach().double().flatten(2)[0, :, chosen[0]].T for x in (q, k))
        q, k = (x / (x.norm(dim=1, keepdim=True) + 1e-7) for x in (q, k))
        products = q @ k.T
        others = products.masked_fill(torch.eye(len(q)).bool(), -10)
        rows = torch.cat([products.diagonal()[:, None], others], 1) / 0.07
        total += F.cross_entropy(rows, torch.zeros(len(q), dtype=torch.long))
    close(contrastive_loss(queries, keys, ids)[0].detach(), total, 0, 1e-6)


def test_losses_of_embeddings():
    case = load("zecon_clip_losses")
    x, y = (normal32(f"emb.{name}", 8, 32).requires_grad_() for name in "xy")
    tx, ty = (normal32(f"emb.{name}", 1, 32) for name in ("tx", "ty"))
    spherical = spherical_distance(x, tx)
    close(spherical, case["spherical"], 1e-6)
    (gradient,) = torch.autograd.grad(spherical.mean(), x)
    close(gradient, case["grad_spherical"], 1e-6)
    directional = directional_distance(x - y, tx - ty)
    close(directional, case["directional"], 1e-6)
    (gradient,) = torch.autograd.grad(directional.mean(), x)
    close(gradient, case["grad_directional"], 1e-6)
    close(range_loss(normal32("range", 2, 3, 4, 4)), case["range"], 1e-6)


def test_patches(clean):
    case = load("zecon_augment")
    numbers = Recorded().patches(START, "global_patch", (64, 64))
    size = CONFIG["crop_size"]
    pixels = cut_patches(clean, numbers, size)
    moved = PatchNumbers(numbers.crop, numbers.angle, numbers.shift, None)
    close(cut_patches(clean, moved, size)[:1, :, ::4, ::4], case["affine0_stride4"], 2e-5)
    close(pixels[:1, :, ::4, ::4], case["perspective0_stride4"], 2e-5)
    close(F.adaptive_avg_pool2d(pixels, 32), case["patches"], 2e-5)


def test_pooling_from_128_to_224():
    """Overlapping bins of one or two pixels, not bilinear."""
    row = torch.arange(128.0).expand(1, 1, 128, 128)
    expected = load("zecon_augment")["pool_128_to_224_row"]
    close(F.adaptive_avg_pool2d(row, 224)[0, 0, 0], expected, 2e-5)


@pytest.mark.parametrize("j", [0, 12])
def test_step(j, zecon, clean, target):
    case = load("zecon_step")
    x, index = torch.from_numpy(case[f"step{j}_x"]), START - j
    step = zecon.step(x, index, clean, target, Recorded())
    for name, expected in zip(LOSSES, case[f"step{j}_losses"], strict=True):
        assert float(step.losses[name]) == pytest.approx(expected, rel=1e-4), name
    # The fixture's gradient is the guidance, downhill.
    close(-step.gradient, case[f"step{j}_grad"], 3e-4)
    close(step.clean, case[f"step{j}_pred"], 3e-4)
    close(step.sample, case[f"step{j}_sample"], 1e-4)
    if j == 0:
        with torch.no_grad():
            prediction = zecon.denoiser.predict(x, zecon.timesteps[index])
        mean, variance = zecon.posterior(x, prediction, index)
        close(mean, case["step0_mean"], 3e-5)
        close(variance, case["step0_var"], 3e-6)


def test_run(zecon, clean, target):
    """From the content to the result; single pixels jump at kinks, so the mean is judged."""
    case = load("zecon_run_ddpm")
    inverted = zecon.invert(clean)
    close(inverted, case["inverted"], 1e-5)
    content = Content(clean, inverted)
    close(zecon.initial(content, Recorded()), case["start"], 1e-5)
    steps = {}
    final = zecon.sample(content, target, Recorded(), lambda i, step: steps.update({i: step}))
    for j, expected in enumerate(case["losses"]):
        losses = [float(steps[START - j].losses[name]) for name in LOSSES]
        np.testing.assert_allclose(losses, expected, rtol=1e-3)
    difference = (final - torch.from_numpy(case["final_pred"])).abs()
    assert difference.mean() < 5e-5 and difference.max() < 1e-2
    difference = (steps[START - 6].sample - torch.from_numpy(case["sample6"])).abs()
    assert difference.mean() < 5e-5
    saved = ((final.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()
    assert (np.abs(saved.astype(int) - case["saved_uint8"]) <= 1).all()


def test_timesteps_are_those_of_guided_diffusion(denoiser):
    timesteps = denoiser.timesteps(50)
    assert timesteps[:5] == (0, 20, 41, 61, 82) and timesteps[24] == 489 and timesteps[49] == 999
    assert len(module_sha256(denoiser.network)) == 64
