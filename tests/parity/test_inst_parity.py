"""InST against fixtures that the authors' program made on tiny recipe networks.

The fixtures hold the authors' results in float64. Tolerances are those of the fixtures' reference,
some times the deviation of the authors' own float32 runs; it lists what each mistake costs.
"""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from inst_recipe import (
    CONFIG,
    image_tower,
    inversion_module,
    load,
    old_names,
    text_encoder,
    tokenizer,
)
from styleid_recipe import components, to_model_range

from teacher_torch.inst import InSTConfig, Stylisation
from teacher_torch.inst.clip import PromptWithStyle, released_input
from teacher_torch.inst.module import DROPOUT
from teacher_torch.inst.stylisation import adain
from teacher_torch.inst.training import Training
from teacher_torch.latent_diffusion import Posterior, decode, encode
from teacher_torch.teacher import Key

PROMPTS = {"star": "*", "prompt": "a photo in the style of * oil"}
WAYS = {"authors": "released", "intended": "picture"}
SAMPLES = {
    "default": InSTConfig.notebook(),
    "noadain": replace(InSTConfig.notebook(), adain=False),
    "noguide": replace(InSTConfig.notebook(), guidance=1.0),
    "intended": replace(InSTConfig.notebook(), clip_input="picture"),
}


def close(actual, expected, atol, rtol=0):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


@pytest.fixture(scope="module")
def model():
    unet, vae, scheduler, _ = components()
    return unet.requires_grad_(False), vae, scheduler


@pytest.fixture(scope="module")
def text():
    return text_encoder()


@pytest.fixture(scope="module")
def embeddings():
    """The placeholder's embedding of the fixtures' style picture, by what CLIP sees of it."""
    style = load("condition_tiny")["style_u8"][None]
    seen = {"released": released_input(style), "picture": style}
    with torch.no_grad():
        return {name: inversion_module()(image_tower()(x)) for name, x in seen.items()}


def test_weights_follow_the_recipe(text):
    check = load("weights_check")
    expected = dict(
        zip(check["keys"], zip(check["sum"], check["abssum"], strict=True), strict=True)
    )
    shapes = dict(zip(check["keys"], check["shapes"], strict=True))
    module, tower = inversion_module(), image_tower().model
    found = {f"inst.{key}": value for key, value in module.state_dict().items()}
    for part, prefix, network in (("vision", "clip", tower), ("text", "text", text.encoder)):
        names = old_names(network, part)
        found |= {
            f"{prefix}.{names[key]}": value
            for key, value in network.state_dict().items()
            if value.is_floating_point()
        }
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert list(value.shape) == json.loads(shapes[name])
        value = value.double()
        # Drawn in float64, kept in float32.
        close([value.sum(), value.abs().sum()], expected[name], 1e-4)


def test_module_of_the_true_width():
    """Three rows at once; the mean gradient of a linear map does not depend on the others."""
    case = load("attention_768")
    module = inversion_module(768).requires_grad_()
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    assert shapes == json.loads(str(case["keys"]))
    embeds = tensor(case["image_embeds"]).requires_grad_()
    words = module(embeds)
    close(words.detach(), case["embedding"], 1e-6)
    masks = tuple(tensor(case[f"mask_{name}"])[None] for name in ("attn2_out", "net"))
    close(module(embeds, masks).detach(), case["embedding_masked"], 1e-6)
    close(module.collapsed()[1], case["collapsed_bias"], 1e-6)

    (words * tensor(case["upstream"])).sum().backward()
    gradient = case["grad_image_embeds"]
    close(embeds.grad, gradient, 1e-5 * np.abs(gradient).max())
    live = module.live()
    for name, parameter in module.named_parameters():
        norm = case[f"gradnorm/{name}"]
        assert (norm > 0) == (name in live), name
        if name in live:
            close(parameter.grad.norm(), norm, 0, rtol=1e-5)


def test_the_module_is_the_map_that_it_collapses_to():
    module = inversion_module(768).double()
    x = torch.randn(2, 768, generator=torch.Generator().manual_seed(0)).double()
    matrix, bias = module.collapsed()
    close(module(x).detach(), x @ matrix.T + bias, 1e-12)


def test_tokens():
    case = load("condition_tiny")
    words = tokenizer()
    for name, prompt in (*PROMPTS.items(), ("empty", "")):
        ids = words(prompt, padding="max_length", max_length=77).input_ids
        close(ids, case[f"ids_{name}"], 0)


@pytest.mark.parametrize("way", WAYS)
def test_condition(way, text, embeddings):
    case = load("condition_tiny")
    style = case["style_u8"][None]
    seen = released_input(style) if WAYS[way] == "released" else style
    close(seen[0], case[f"clip_u8_{way}"], 0)
    tower = image_tower()
    close(tower.pixel_values(seen), case[f"pixel_values_{way}"], 1e-6)
    close(tower(seen), case[f"image_embeds_{way}"], 1e-6)
    embedding = embeddings[WAYS[way]]
    close(embedding, case[f"embedding_{way}"], 1e-6)
    for name, prompt in PROMPTS.items():
        close(PromptWithStyle(text, prompt)(embedding), case[f"cond_{name}_{way}"], 1e-5)
    close(text([""]), case["cond_empty_authors"], 1e-5)


def test_loss_and_gradients(model, text):
    case = load("training_tiny")
    unet, vae, scheduler = model
    clean = encode(vae, to_model_range(case["style_u8"])).mean.clone()
    close(clean, case["z"], 1e-4)
    embeds = image_tower()(released_input(case["style_u8"][None]))
    prompt, training = PromptWithStyle(text, "*"), Training(unet, scheduler, InSTConfig())
    noise = tensor(case["noise"])
    for t in (100, 700):
        module = inversion_module().requires_grad_()
        word = module(embeds)
        word.retain_grad()
        loss = training.losses(tensor(case["z"]), noise, [t], prompt(word))
        loss.sum().backward()
        close(loss.detach()[0], case[f"loss_t{t}"], 1e-5)
        close(word.grad[0], case[f"grad_embedding_t{t}"], 5e-7)
        live = module.live()
        for name, parameter in module.named_parameters():
            norm = case[f"gradnorm_t{t}/{name}"]
            assert (norm > 0) == (name in live), name
            if name in live:
                close(parameter.grad.norm(), norm, 0, rtol=1e-4)
        total = torch.stack([p.grad.norm() for p in live.values()]).norm()
        close(total, case[f"grad_norm_t{t}"], 0, rtol=1e-4)
        for name in ("net.1.weight", "attn2.to_v.weight"):
            close(live[name].grad, case[f"grad_t{t}/{name}"], 5e-7)


def test_five_steps(model, text, monkeypatch):
    """The whole training loop, with the fixture's timesteps and noises in place of random ones."""
    case = load("training_tiny")
    unet, _, scheduler = model
    embeds = image_tower()(released_input(case["style_u8"][None]))
    prompt, module = PromptWithStyle(text, "*"), inversion_module().requires_grad_()
    clean = tensor(case["z"])
    training = Training(unet, scheduler, InSTConfig(training_steps=5))
    losses, given = [], iter(enumerate(case["steps_t"].tolist()))
    training.after_step = lambda step, loss: losses.append(loss.item())
    of_rows = training.losses

    def with_the_fixtures_draws(mean, noise, timesteps, conditions):
        step, t = next(given)
        # Float32 first: that is how the fixture's program drew it.
        rng = np.random.default_rng(zlib.crc32(f"inst.train_noise.{step}".encode()))
        noise = tensor(rng.standard_normal((1, 4, 16, 16)).astype(np.float32))
        return of_rows(mean, noise, [t], conditions)

    monkeypatch.setattr(training, "losses", with_the_fixtures_draws)
    exact = Posterior(clean.repeat(2, 1, 1, 1), torch.zeros(2, *clean.shape[1:]))
    training.train(
        list(module.live().values()), lambda *_: prompt(module(embeds)), [exact], [Key(0)]
    )
    close(losses, case["steps_loss"], 1e-5)
    close(module(embeds).detach()[0], case["steps_embedding"], 3e-6)
    close(module.net["1"].weight.detach(), case["steps_net.1.weight"], 3e-6)
    # The authors' AdamW decays what has no gradient, too, which no output shows.
    start, end = (
        case[f"{when}_attn1.to_q.weight_sum"].astype(np.float64) for when in ("start", "steps")
    )
    close(end, start * (1 - 1e-4 * 0.01) ** 5, 1e-3)
    close(module.attn1["to_q"].weight.detach().abs().sum(), start, 1e-2)


@pytest.mark.parametrize("name", SAMPLES)
def test_sampling(name, model, text, embeddings):
    case, inputs = load(f"sample_{name}"), load("sample_default")
    unet, vae, scheduler = model
    config = SAMPLES[name]
    condition = PromptWithStyle(text, "*")(embeddings[config.clip_input])
    stylisation = Stylisation(unet, scheduler, text([""]), config)
    content, style = (
        encode(vae, to_model_range(inputs[f"{x}_u8"])).mean for x in ("content", "style")
    )
    if name == "default":
        close(content, case["z_content"], 5e-5)
        close(style, case["z_style"], 5e-5)
        close(condition, case["cond"], 1e-5)
        close(text([""]), case["uncond"], 1e-5)
    assert config.noise_timestep == case["t_noise"]
    assert sorted(stylisation.timesteps) == sorted(case["ts"].tolist())

    start = stylisation.start(content, style)
    close(start, case["init"], 5e-5)
    noise = tensor(inputs["noise"])
    noisy = stylisation.add_noise(start, noise)
    close(noisy, case["x_noisy"], 2e-5)
    close(stylisation.predict_noise(noisy, condition), case["eps"], 5e-6)
    x = inverted = stylisation.invert(start, noise, condition)
    close(inverted, case["z_enc"], 2e-5)
    trajectory = [inverted]
    for index in reversed(range(config.sampling_steps)):
        x, clean = stylisation.step(x, index, condition)
        trajectory.append(x)
    if name == "default":
        whole = stylisation.stylise(content, style, noise, condition)
        close(whole, x, 0)
        close(torch.stack(trajectory), case["traj"], 1e-4)
    close(clean, case["pred_x0"], 1e-4)
    assert stylisation.rows(1) == (36 if name == "noguide" else 71)

    close(x, case["latents"], 1e-4)
    image = decode(vae, x)
    close(image, case["image"], 3e-5)
    # Their program cuts decimals off.
    pixels = (image[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(pixels.astype(int) - case["saved_uint8"]).max() <= 1


def test_adain():
    case = load("adain")
    close(adain(tensor(case["content"]), tensor(case["style"])), case["out"], 1e-6)


def test_dropout():
    assert CONFIG["inversion"]["dropout"] == DROPOUT
