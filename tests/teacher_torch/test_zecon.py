"""ZeCon as a teacher of the dump, on tiny random models."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

from teacher_torch.denoisers import Denoiser, Prediction, open_denoiser
from teacher_torch.dump import DumpConfig, dump, dump_config_type
from teacher_torch.guides import Guide
from teacher_torch.teacher import Key, Prepared, Runtime
from teacher_torch.zecon import ZeCon, ZeConConfig
from teacher_torch.zecon.adapter import KeyedDraws, open_zecon, prompt
from teacher_torch.zecon.guidance import Content, Target
from teacher_torch.zecon.losses import contrastive_loss, range_loss, spherical_distance
from teacher_torch.zecon.patches import cut_patches, draw_patches
from teacher_torch.zecon.prompts import PromptsConfig, file_name, make_style_pictures
from triplets import InputError, TripletDataset, read_image, write_image

TINY = replace(
    ZeConConfig.vgg_statistics(), num_steps=4, skip=2, patches=2, patch_px=32, vgg_weight=1.0
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 2 contents and 2 styles, which are named as prompts."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind, names in (("content", "ab"), ("style", ("oil_painting", "mosaic"))):
        (root / kind).mkdir()
        for name in names:
            small = rng.integers(0, 256, (8, 8, 3), np.uint8)
            write_image(root / kind / f"{name}.png", small.repeat(8, 0).repeat(8, 1))
    return root


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory):
    """A random guided-diffusion model of the smallest size, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adm") / "model"
    levels = 4
    network = UNet2DModel(
        sample_size=64,
        out_channels=6,
        block_out_channels=(8,) * levels,
        down_block_types=("ResnetDownsampleBlock2D",) * levels,
        up_block_types=("ResnetUpsampleBlock2D",) * levels,
        attention_head_dim=8,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        add_attention=False,
    )
    network.save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP of the smallest size, with a tokenizer that knows letters."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip") / "model"
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32)
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 32,
            "bos_token_id": vocabulary["<|startoftext|>"],
            "eos_token_id": vocabulary["<|endoftext|>"],
            "pad_token_id": vocabulary["<|endoftext|>"],
        },
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(pictures, model, out, method=TINY, **changes):
    sources = (str(pictures / "content"), str(pictures / "style"))
    return DumpConfig(
        *sources, out, teacher="zecon", model=str(model), method=method, tile=(2, 1), **changes
    )


def opened(model, method=TINY):
    return open_zecon(method, Runtime(str(model), torch.device("cpu"), torch.float32))


def stylised(root):
    return np.stack([triplet.stylised for triplet in TripletDataset(root)])


def test_dump_continues_in_the_same_bytes(pictures, model_folder, tmp_path, monkeypatch):
    whole = config(pictures, model_folder, tmp_path / "whole")
    dump(whole)
    dataset = TripletDataset(whole.out)
    assert len(dataset) == 4 and dataset.verify() == []
    settings = dataset.manifest["settings"]
    assert settings["zecon"]["guide"] == "vgg16" and len(settings["guide_sha256"]) == 64
    assert (
        settings["method"] == "patch-contrastive guidance with VGG style statistics (after ZeCon)"
    )
    broken = config(pictures, model_folder, tmp_path / "broken")
    sample, calls = ZeCon.sample, []

    def fail_at_the_second(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ZeCon, "sample", fail_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            dump(broken)
    dump(broken)
    assert (stylised(broken.out) == stylised(whole.out)).all()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("inversion", ["ddpm", "ddim"])
def test_batches_give_each_pair_what_it_gets_alone(sampler, inversion, picture_model):
    method = replace(
        TINY, sampler=sampler, inversion=inversion, range_weight=1.0, global_weight=1.0
    )
    teacher = opened(picture_model, replace(method, directional_weight=1.0, distortion=0.5))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    contents = teacher.prepare("content", images[:2], [Key(0, content=c) for c in "ab"])
    styles = teacher.prepare("style", images[2:], [Key(0, style="s")])
    pairs, keys = torch.tensor([[1, 0], [0, 0]]), [Key(0, "b", "s"), Key(0, "a", "s")]
    together = list(teacher.stylise(contents, styles, pairs, keys))
    [alone] = teacher.stylise(contents, styles, pairs[1:], keys[1:])
    # Other batches round differently, and guidance amplifies it.
    assert (together[1] - alone).abs().mean() < 1e-3
    assert (together[0] - together[1]).abs().mean() > 1e-2


def test_work_is_what_the_calls_report(model_folder):
    teacher, rows = opened(model_folder), []
    teacher.after_call, teacher.rows_per_call = rows.append, 2
    contents = teacher.prepare("content", torch.zeros(3, 3, 64, 64), [])
    assert sum(rows) == teacher.preparation_work("content", 3) == 3 * 2
    rows.clear()
    styles = teacher.prepare("style", torch.zeros(1, 3, 64, 64), [Key(0, style="s")])
    assert sum(rows) == teacher.preparation_work("style", 1) == 0
    pairs = torch.tensor([[0, 0], [1, 0], [2, 0]])
    made = list(teacher.stylise(contents, styles, pairs, [Key(0, c, "s") for c in "abc"]))
    assert len(made) == 3 and made[0].shape == (3, 64, 64)
    assert sum(rows) == teacher.work(3, 1, 3) == 3 * 2 * 3


def test_guidance_draws_towards_the_style(model_folder):
    """The losses of the guide fall over repeated steps at the same level."""
    teacher = opened(model_folder, replace(TINY, mse_weight=0.0, zecon_weight=0.0, vgg_weight=0.0))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    content = teacher.prepare("content", images[:1], [Key(0, content="c")]).tensors
    style = teacher.prepare("style", images[1:], [Key(0, style="s")]).tensors
    draws = KeyedDraws([Key(0, "c", "s")], teacher.config)
    x, losses = content["inverted"], []
    for _ in range(12):
        target = Target(style["target"], content["embedding"])
        step = teacher.zecon.step(x, 1, content["clean"], target, draws)
        losses.append(float(sum(step.losses.values())))
        x = x - 0.05 * step.gradient / step.gradient.abs().mean()
    assert losses[-1] < losses[0]


class Constant(Denoiser):
    """A model that predicts the same noise everywhere; levels fall from 0.9 to 0.1."""

    native_size, side_multiple, learns_variance, feature_timestep = 4, 1, False, 0
    levels = tuple(np.linspace(0.9, 0.1, 1000).tolist())
    network = torch.nn.Linear(1, 1)

    def _spaced(self, steps):
        return tuple(round(i * 999 / (steps - 1)) for i in range(steps))

    def encode(self, images):
        return images

    def decode(self, states):
        return states

    def predict(self, states, timestep):
        level = self.levels[timestep]
        noise = torch.full_like(states, 0.5)
        return Prediction(states / level**0.5 - (1 / level - 1) ** 0.5 * noise, noise, None)

    def features(self, states, indices):
        raise NotImplementedError

    weights_sha256 = row_bytes = weights_bytes = state_shape = features


class Blind(Guide):
    modules = ()

    def embed(self, images):
        raise NotImplementedError

    picture_bytes = embed


NO_LOSSES = {
    f"{name}_weight": 0.0
    for name in ("global_patch", "directional_patch", "zecon", "mse", "vgg", "range")
}


class Ones:
    def noise(self, step, purpose, shape):
        return torch.ones(shape)

    def patches(self, step, purpose, picture_px):
        raise NotImplementedError

    positions = patches


def test_trap_the_inverted_latents_are_the_noise_of_a_second_noising():
    clean, inverted = torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.7)
    starts = {}
    for sampler in ("ddpm", "ddim"):
        for inversion in ("ddpm", "ddim"):
            settings = ZeConConfig(
                num_steps=4, skip=2, sampler=sampler, inversion=inversion, **NO_LOSSES
            )
            zecon = ZeCon(Constant(), Blind(), settings)
            start = zecon.initial(Content(clean, inverted), Ones())
            starts[inversion, sampler] = float(start.mean())
    low, high = zecon.levels[1], zecon.levels[2]  # of the first step, and one above
    assert starts["ddim", "ddpm"] == pytest.approx(low**0.5 * 0.2 + (1 - low) ** 0.5 * 0.7)
    assert starts["ddpm", "ddpm"] == pytest.approx(low**0.5 * 0.2 + (1 - low) ** 0.5)
    assert starts["ddim", "ddim"] == pytest.approx(0.7)
    assert starts["ddpm", "ddim"] == pytest.approx(high**0.5 * 0.2 + (1 - high) ** 0.5)


def test_trap_the_result_is_the_last_prediction_not_the_last_sample():
    settings = ZeConConfig(num_steps=4, skip=2, **(NO_LOSSES | {"mse_weight": 5.0}))
    zecon = ZeCon(Constant(), Blind(), settings)
    content = Content(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
    steps = {}
    final = zecon.sample(content, no_target(), Ones(), lambda i, s: steps.update({i: s}))
    assert torch.equal(final, steps[0].clean)
    assert (steps[0].gradient.abs() > 0).all()  # guided, to no effect on the result
    assert not torch.equal(steps[0].sample, steps[0].clean)


def no_target():
    return Target(torch.zeros(1, 1), torch.ones(1, 1))


def test_ddim_without_guidance_follows_the_inversion_back():
    """With noise that is the same everywhere, DDIM is exact, but for the start's odd level."""
    settings = ZeConConfig(num_steps=4, skip=2, sampler="ddim", **NO_LOSSES)
    zecon = ZeCon(Constant(), Blind(), settings)
    clean = torch.full((1, 3, 4, 4), 0.2)
    a = zecon.levels[:3]
    x0 = (0.2 - (1 - a[0]) ** 0.5 * 0.5) / a[0] ** 0.5  # the picture is taken to be at level 0
    at = [level**0.5 * x0 + (1 - level) ** 0.5 * 0.5 for level in a]
    inverted = zecon.invert(clean)
    torch.testing.assert_close(inverted, torch.full_like(clean, at[2]))
    # Fed at the level below: what is predicted is off by that.
    expected = (at[2] - (1 - a[1]) ** 0.5 * 0.5) / a[1] ** 0.5
    final = zecon.sample(Content(clean, inverted), no_target(), Ones())
    torch.testing.assert_close(final, torch.full_like(clean, expected))


def test_trap_of_the_shift():
    """Patches shift downwards alone; kornia makes (0, 0.1) of a bare 0.1, and nothing for x."""
    numbers = draw_patches(torch.Generator().manual_seed(0), 200, (64, 64), 128, (0.01, 0.3), 0.7)
    assert numbers.shift.min() >= 0 and 12 < numbers.shift.max() <= 12.8
    assert numbers.angle.abs().max() <= 15
    x1, y1, x2, y2 = numbers.crop[0].T
    assert (x1 >= 0).all() and (x2 < 64).all() and (y2 < 64).all() and (y1 >= 0).all()
    share = ((x2 - x1 + 1) * (y2 - y1 + 1) / 64**2).float()
    assert share.max() < 0.33 and share.mean() == pytest.approx(0.155, abs=0.02)
    corner = numbers.corners[0, :, 0]  # top left moves right and down
    assert corner.min() >= 0 and corner.max() <= 0.7 * 64
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 20] = 1  # a horizontal line
    whole = draw_patches(torch.Generator().manual_seed(0), 1, (64, 64), 0, None, 0.0)
    whole = replace(whole, angle=torch.zeros(1, 1), shift=torch.full((1, 1), 5.0))
    moved = cut_patches(image, whole, 64)[0, 0, :, 32]
    assert moved.argmax() == 25


def test_losses_by_hand():
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert float(spherical_distance(x, y)) == pytest.approx((np.pi / 2) ** 2 / 2)
    assert float(range_loss(torch.full((1, 3, 1, 1), 1.5))) == pytest.approx(0.25)
    features = torch.eye(2).view(1, 2, 1, 2)  # two positions, orthogonal
    ids = torch.tensor([[0, 1]])
    expected = np.log1p(np.exp(-1 / 0.07))
    loss = contrastive_loss([features] * 5, [features] * 5, [ids] * 5)  # summed over layers
    assert float(loss) == pytest.approx(5 * expected, abs=1e-6)


def test_text_guide(pictures, model_folder, clip_folder, tmp_path):
    method = replace(TINY, guide="clip_text", clip=str(clip_folder), source_prompt="photo")
    teacher = opened(model_folder, method)
    keys = [Key(0, style=name) for name in ("sub/oil_painting.png", "mosaic.png")]
    made = teacher.prepare("style", torch.zeros(2, 3, 64, 64), keys).tensors
    with torch.no_grad():
        expected = teacher.guide.embed_texts(["oil painting", "mosaic"])
    torch.testing.assert_close(made["target"], expected)
    assert made["source"].shape == (2, 8) and torch.equal(*made["source"])
    assert not torch.equal(*made["target"])
    dump(config(pictures, model_folder, tmp_path / "out", method))
    assert TripletDataset(tmp_path / "out").manifest["settings"]["method"] == "ZeCon"


def test_prompts_are_file_names():
    assert prompt("a/b/oil_painting of flowers.jpg") == "oil painting of flowers"


def test_image_guide(model_folder, clip_folder):
    method = replace(TINY, guide="clip_image", clip=str(clip_folder))
    teacher = opened(model_folder, method)
    assert teacher.settings()["method"] == "ZeCon, image-guided variant"
    made = teacher.prepare("style", torch.zeros(1, 3, 64, 64), [Key(0, style="s")])
    assert isinstance(made, Prepared) and made.tensors["target"].shape == (1, 8)


def test_bad_input_before_any_work(pictures, model_folder, picture_model, clip_folder, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, other)
    vision = tmp_path / "vision"
    of_pictures = CLIPModel.from_pretrained(clip_folder).config.vision_config
    CLIPVisionModelWithProjection(of_pictures).save_pretrained(vision)
    good = config(pictures, model_folder, tmp_path / "out")
    for changes, words in (
        ({"method": replace(TINY, guide="clip_text", clip=str(tmp_path / "no"))}, "--clip"),
        ({"method": replace(TINY, guide="clip_image", clip=str(model_folder))}, "--clip"),
        ({"method": replace(TINY, guide="clip_text", clip=str(vision))}, "text encoder"),
        ({"method": replace(TINY, vgg19=other)}, "--vgg19"),
        ({"method": replace(TINY, vgg19=tmp_path / "no")}, "--vgg19"),
        ({"model": str(other)}, r"teacher_torch\.adm"),
        ({"size": 60}, "multiple"),
    ):
        with pytest.raises(InputError, match=words) as error:
            dump(replace(good, **changes))
        assert str(error.value).endswith(".") and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_overflow_is_one_sentence(model_folder):
    teacher = opened(model_folder)
    target = Target(torch.full((1, 1920), float("nan")), torch.zeros(1, 1920))
    draws = KeyedDraws([Key(0, "c", "s")], teacher.config)
    states = torch.zeros(1, 4, 8, 8)
    with pytest.raises(InputError, match="overflows in float32: use --dtype bfloat16"):
        teacher.zecon.step(states, 1, states, target, draws)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_steps", 1),
        ("skip", 0),
        ("skip", 50),
        ("source_prompt", " "),
        ("patches", 0),
        ("patch_areas", (0.3, 0.1)),
        ("distortion", 1.5),
        ("zecon_weight", -1.0),
    ],
)
def test_bad_settings_are_one_sentence(setting, value):
    with pytest.raises(InputError, match="expected") as error:
        ZeConConfig(**{setting: value})
    assert str(error.value).endswith(".")


def test_published_weights_and_flags():
    paper = dump_config_type("zecon", "paper")("a", "b", "c", teacher="zecon").method
    names = ("global", "global_patch", "directional", "directional_patch", "zecon", "mse", "vgg")
    assert [paper.weight(name) for name in names] == [0, 10000, 0, 20000, 500, 5000, 100]
    assert paper.range_weight == 50 and (paper.num_steps, paper.skip, paper.patches) == (50, 25, 32)
    assert (paper.inversion, paper.sampler, paper.distortion) == ("ddim", "ddpm", 0.7)


def test_memory_grows_with_rows_and_patches(model_folder):
    few = opened(model_folder).memory(64, 1, 1, 1)
    many = opened(model_folder, replace(TINY, patches=20)).memory(64, 1, 1, 1)
    assert many.row > few.row > 0 and few.weights > 0


def test_picture_model_is_recognised(picture_model):
    denoiser = open_denoiser(Runtime(str(picture_model), torch.device("cpu"), torch.float32))
    assert denoiser.learns_variance and denoiser.native_size == 64
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(denoiser.decode(denoiser.encode(images)), images)
    assert re.fullmatch("[0-9a-f]{64}", denoiser.weights_sha256())


def test_style_pictures_of_prompts(pictures, model_folder, clip_folder, tmp_path, monkeypatch):
    """Sheets of what a prompt makes, or the user's picture; a dump takes them as its styles."""
    method = replace(TINY, guide="clip_text", clip=str(clip_folder), source_prompt="photo")
    settings = PromptsConfig(
        ("oil painting", "mosaic"),
        tmp_path / "prompts",
        (f"mosaic={pictures}/content/a.png",),
        content=str(pictures / "content"),
        model=str(model_folder),
        size=64,
        method=method,
    )
    make_style_pictures(settings)
    given = read_image(tmp_path / "prompts" / "mosaic.png")
    assert (given == read_image(pictures / "content" / "a.png")).all()
    sheet = read_image(tmp_path / "prompts" / "oil_painting.png")
    dump(
        replace(
            config(pictures, model_folder, tmp_path / "out", method, pairs="all"),
            style=str(tmp_path / "prompts"),
        )
    )
    dataset = TripletDataset(tmp_path / "out")
    of_oil = [triplet.stylised for triplet in dataset if triplet.style_id == "oil_painting.png"]
    middle = slice(16, 48)
    # The cells are the middles of what the dump makes, but for rounding of other batches.
    for picture, corner in zip(of_oil, (sheet[:32, :32], sheet[:32, 32:]), strict=True):
        difference = picture[middle, middle].astype(int) - corner
        assert np.abs(difference).mean() < 2
    assert (sheet[:32] == sheet[32:]).all()  # two contents, each twice

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("teacher_torch.zecon.prompts.open_zecon", never)
    make_style_pictures(settings)  # all there


def test_prompts_have_names():
    for text in ("oil painting of flowers", "a. b", "Gogh, 1889"):
        assert prompt(file_name(text)) == text
    out = Path("out")
    for text in ("", " a", "a_b", "a/b", "a\\b", ".", "a\nb"):
        with pytest.raises(InputError, match="expected words without slashes"):
            PromptsConfig((text,), out)
    for pair in ("oil", "tin=a.png"):
        with pytest.raises(InputError, match="expected PROMPT=FILE"):
            PromptsConfig(("oil",), out, (pair,))
    with pytest.raises(InputError, match="there is no such file"):
        PromptsConfig(("oil",), out, ("oil=none.png",)).pictures()
    with pytest.raises(InputError, match="different ones"):
        PromptsConfig(("oil", "oil"), out)
    with pytest.raises(InputError, match="knows no prompts"):
        PromptsConfig(("oil",), out, method=ZeConConfig.clip_image())
