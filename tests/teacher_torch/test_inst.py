"""InST as a teacher of the dump, on tiny random models."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from teacher_torch.dump import DumpConfig, dump
from teacher_torch.inst import InSTConfig, InSTTeacher, InversionModule, training
from teacher_torch.inst.adapter import open_inst
from teacher_torch.inst.clip import released_input
from teacher_torch.inst.files import load_embedding
from teacher_torch.inst.training import Training
from teacher_torch.latent_diffusion import encode, load_components
from teacher_torch.pixels import to_model_range
from teacher_torch.teacher import Key, Prepared, Runtime
from triplets import InputError, TripletDataset, write_image

WIDTH = 8
"""Of the tiny model's words."""
DIRECT = InSTConfig(
    learned="direct",
    training_steps=6,
    batch=2,
    learning_rate=0.1,
    together=2,
    num_steps=4,
    guidance=2.0,
    adain=True,
)
MODULE = InSTConfig(training_steps=4, learning_rate=0.01, together=2, num_steps=4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 2 contents and 3 styles."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind, count in (("content", 2), ("style", 3)):
        (root / kind).mkdir()
        for i in range(count):
            small = rng.integers(0, 256, (8, 8, 3), np.uint8)
            write_image(root / kind / f"{kind}{i}.png", small.repeat(8, 0).repeat(8, 1))
    return root


def clip_folder(root, width):
    torch.manual_seed(1)
    settings = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(settings).save_pretrained(root)
    return str(root)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"), WIDTH)


@pytest.fixture
def module_model(pipeline_folder):
    return str(pipeline_folder[0] / "full")


def config(pictures, model, out, method=DIRECT, **changes):
    sources = (str(pictures / "content"), str(pictures / "style"))
    return DumpConfig(*sources, out, teacher="inst", model=str(model), method=method, **changes)


def runtime(model):
    return Runtime(str(model), torch.device("cpu"), torch.float32)


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return to_model_range(rng.integers(0, 256, (count, 64, 64, 3), np.uint8))


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(pictures, model_folder, tmp_path_factory):
    """A dump of the direct variant."""
    out = tmp_path_factory.mktemp("whole") / "dump"
    dump(config(pictures, model_folder, out))
    return out


def test_dump(whole):
    dataset = TripletDataset(whole)
    assert len(dataset) == 6 and dataset.verify() == []
    settings = dataset.manifest["settings"]
    assert settings["teacher"] == "inst" and settings["tile"] == [2, 1]
    assert settings["inst"]["training_steps"] == 6 and "clip" not in settings["inst"]
    assert {p.name for p in (whole / "prepared").iterdir()} == {"style-00000", "style-00001"}
    first = Prepared.load(whole / "prepared" / "style-00000" / "tensors.safetensors").tensors
    assert first["condition"].shape == (2, 3, 8) and first["latents"].shape == (2, 4, 8, 8)
    assert (first["condition"][0] - first["condition"][1]).abs().max() > 0.1


@pytest.mark.parametrize("stop", [9, 33])
def test_an_interrupted_training_goes_on(
    stop, whole, pictures, model_folder, tmp_path, monkeypatch
):
    """Stopped in the first group's training or in the second's, it ends in the same bytes."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    broken = config(pictures, model_folder, tmp_path / "broken")
    steps, step = [], Training._step

    def counted(self, number, *arguments):
        if len(steps) * 4 > stop:
            raise KeyboardInterrupt
        steps.append(number)
        return step(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", counted)
        with pytest.raises(KeyboardInterrupt):
            dump(broken)
        taken = steps.copy()
        stop = 1000
        # What is half trained is there, under no name that is ever used.
        kept = [p.name for p in (broken.out / "prepared").iterdir() if p.name.startswith(".")]
        assert f".style-{len(taken) // 6:05d}.unfinished" in kept
        dump(broken)
    assert steps == [0, 1, 2, 3, 4, 5] * 2  # no step is taken twice
    assert files(broken.out) == files(whole)


def test_a_damaged_state_is_made_anew(components, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    teacher = InSTTeacher(components, DIRECT)
    images, keys = random_images(2), [Key(0, style=name) for name in "ab"]
    unbroken = teacher.prepare("style", images, keys).tensors["condition"]
    teacher.unfinished = tmp_path
    teacher.prepare("style", images, keys)
    state = tmp_path / training.STATE
    state.write_bytes(state.read_bytes()[:-7])
    again = teacher.prepare("style", images, keys).tensors["condition"]
    torch.testing.assert_close(again, unbroken, rtol=0, atol=0)


def test_grouped_training_is_separate_training(components):
    """Losses are summed and draws are a style's own, so company changes nothing but rounding."""
    images, keys = random_images(3), [Key(0, style=name) for name in "abc"]
    teacher = InSTTeacher(components, DIRECT)
    grouped = teacher.prepare("style", images, keys).tensors["condition"]
    teacher.rows_per_call = 4  # and so does the number of calls
    in_calls = teacher.prepare("style", images, keys).tensors["condition"]
    torch.testing.assert_close(in_calls, grouped, rtol=0, atol=1e-3)
    for i, key in enumerate(keys):
        alone = teacher.prepare("style", images[i, None], [key]).tensors["condition"]
        # Adam divides small gradients by their own size, and so amplifies their rounding.
        torch.testing.assert_close(alone[0], grouped[i], rtol=0, atol=1e-3)
        assert (alone[0] - components.null_text_embedding[0]).abs().max() > 0.1


def test_grouped_modules_are_separate_modules(module_model, clip):
    teacher = open_inst(replace(MODULE, clip=clip), runtime(module_model))
    images, keys = random_images(2), [Key(0, style=name) for name in "ab"]
    grouped = teacher.prepare("style", images, keys).tensors
    alone = teacher.prepare("style", images[1:], keys[1:]).tensors
    torch.testing.assert_close(alone["embedding"][0], grouped["embedding"][1], rtol=0, atol=1e-4)
    untrained = InversionModule(WIDTH, keys[1].generator("module"))
    with torch.no_grad():
        start = untrained(teacher._embed(images[1:]))
    assert (alone["embedding"] - start).abs().max() > 1e-3
    assert grouped["condition"].shape == (2, 77, WIDTH)


def draws_of(components, settings, key):
    """Noises and timesteps of each step of a training."""
    seen = []
    teacher = InSTTeacher(components, settings)

    def losses(clean, noise, timesteps, conditions):
        seen.append((noise, timesteps))
        return conditions.square().sum((1, 2))

    teacher._training.losses = losses
    teacher.prepare("style", random_images(1), [key])
    return seen


def test_draws_of_a_training(components):
    """They are a style's own, one timestep from each share of the schedule, repeated if so set."""
    settings = replace(DIRECT, batch=4, training_steps=5)
    key = Key(0, style="a")
    ever_new = draws_of(components, settings, key)
    for noise, timesteps in ever_new:
        assert [t // 250 for t in timesteps] == [0, 1, 2, 3]
        assert len(noise) == 4
    assert len({tuple(timesteps) for _, timesteps in ever_new}) == 5
    repeated = draws_of(components, replace(settings, draws=2), key)
    for step, (noise, timesteps) in enumerate(repeated):
        assert timesteps == ever_new[step % 2][1]
        assert torch.equal(noise, ever_new[step % 2][0])
    others = draws_of(components, settings, Key(0, style="b"))
    assert not torch.equal(others[0][0], ever_new[0][0])
    single = draws_of(components, replace(settings, batch=1, training_steps=200), key)
    timesteps = [t for _, (t,) in single]
    assert min(timesteps) < 50 and max(timesteps) > 950 and 400 < np.mean(timesteps) < 600


def test_training_lowers_the_loss(components):
    """On the noises of other steps, which it has not seen."""
    settings = replace(DIRECT, training_steps=40, batch=4, learning_rate=0.05)
    images, key = random_images(1), Key(0, style="a")
    teacher = InSTTeacher(components, settings)
    learned = teacher.prepare("style", images, [key]).tensors["condition"]
    generator = torch.Generator().manual_seed(5)
    clean = encode(components.vae, images).mean.expand(32, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.randint(1000, (32,), generator=generator).tolist()
    null = components.null_text_embedding
    with torch.no_grad():
        before, after = (
            teacher._training.losses(clean, noise, timesteps, c.expand(32, -1, -1)).mean()
            for c in (null, learned)
        )
    assert after < before


def test_dump_of_the_module(pictures, module_model, clip, tmp_path):
    made = config(pictures, module_model, tmp_path / "dump", replace(MODULE, clip=clip))
    dump(made)
    dataset = TripletDataset(made.out)
    assert len(dataset) == 6 and dataset.verify() == []
    assert len(dataset.manifest["settings"]["towers_sha256"]) == 64
    # What was learned is a textual inversion, which stylises alike.
    folder = tmp_path / "embeddings"
    folder.mkdir()
    for path, group in zip(sorted((made.out / "prepared").iterdir()), ((0, 1), (2,)), strict=True):
        vectors = Prepared.load(path / "tensors.safetensors").tensors["embedding"]
        for i, vector in zip(group, vectors, strict=True):
            save_file({"<style>": vector.clone()}, folder / f"style{i}.safetensors")
    given = replace(MODULE, clip="./none", embeddings=folder)
    again = config(pictures, module_model, tmp_path / "again", given)
    dump(again)
    for one, other in zip(dataset, TripletDataset(again.out), strict=True):
        assert (one.stylised == other.stylised).all()
    assert not (again.out / "prepared" / ".style-00000.unfinished").exists()

    (folder / "style1.safetensors").unlink()
    lacking = replace(again, out=tmp_path / "lacking")
    with pytest.raises(
        InputError, match=r'nothing there for "style1\.png"; expected a file style1'
    ):
        dump(lacking)
    assert not lacking.out.exists()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_work_is_what_the_calls_report(guidance, components):
    teacher = InSTTeacher(components, replace(DIRECT, guidance=guidance))
    teacher.rows_per_call = 3
    rows = []
    teacher.after_call = rows.append
    images = random_images(2)
    prepared = {
        role: teacher.prepare(role, images, [Key(0, **{role: str(i)}) for i in range(2)])
        for role in ("content", "style")
    }
    assert sum(rows) == teacher.preparation_work("style", 2) == 2 * 6 * 2 * 2
    assert teacher.preparation_work("content", 2) == 0
    rows.clear()
    pairs = torch.tensor([[0, 0], [1, 0], [1, 1]])
    made = list(teacher.stylise(prepared["content"], prepared["style"], pairs, []))
    assert len(made) == 3 and made[0].shape == (3, 64, 64)
    # Strength 0.7 of 4 steps is 2.
    assert sum(rows) == teacher.work(2, 2, 3) == 3 * (1 + 2 * (2 if guidance != 1 else 1))
    assert max(rows) <= 3


def test_a_pair_is_the_same_in_any_company(components):
    """A content keeps its noise for all styles, and rows do not touch."""
    teacher = InSTTeacher(components, DIRECT)
    contents, styles = (
        teacher.prepare(role, random_images(2, seed), [Key(0, **{role: str(i)}) for i in range(2)])
        for seed, role in enumerate(("content", "style"))
    )
    pairs = torch.tensor([[0, 1], [1, 0], [0, 0]])
    together = list(teacher.stylise(contents, styles, pairs, []))
    assert (together[0] - together[2]).abs().max() > 1e-3  # of the same content
    for picture, (content, style) in zip(together, pairs.tolist(), strict=True):
        alone = teacher.stylise(contents[content], styles[style], torch.zeros(1, 2).long(), [])
        torch.testing.assert_close(next(alone), picture, rtol=0, atol=1e-4)
    other_seed = teacher.prepare("content", random_images(2), [Key(1, content="0")] * 2)
    assert not torch.equal(other_seed.tensors["noise"], contents.tensors["noise"])


def test_memory_counts_gradients_and_the_text_encoder(components, module_model, clip):
    direct = InSTTeacher(components, DIRECT).memory(64, 2, 1, 2)
    teacher = open_inst(replace(MODULE, clip=clip), runtime(module_model))
    module = teacher.memory(64, 2, 1, 2)
    text = sum(p.nbytes for p in teacher._prompt.encoder.parameters())
    assert module.weights == direct.weights + text and module.row == direct.row
    # Of 8 numbers a module has 2 x 512 x 8 live weights, and a layer of 8 x 9 behind them.
    live = 4 * (2 * 512 * 8 + 8 + 8 * 9)
    assert module.step == 2 * (4 * live + 15 * 77 * 8 * 4)
    assert direct.step == 2 * 4 * 4 * 3 * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision(dtype, model_folder):
    """Gradients are scaled, and what is learned and the latents stay float32."""
    teacher = InSTTeacher(load_components(str(model_folder), dtype=dtype), DIRECT)
    content, style = (
        teacher.prepare(role, random_images(1), [Key(0, **{role: "a"})])
        for role in ("content", "style")
    )
    assert style.tensors["condition"].dtype == content.tensors["latents"].dtype == torch.float32
    null = teacher.components.null_text_embedding.float()
    assert (style.tensors["condition"] - null).abs().min() > 1e-3
    picture = next(teacher.stylise(content, style, torch.zeros(1, 2).long(), []))
    assert picture.isfinite().all() and picture.dtype == torch.float32


def test_gradients_that_overflow_end_the_dump(components):
    settings = replace(DIRECT, training_steps=1)
    teacher = InSTTeacher(components, settings)
    teacher._training.losses = lambda clean, noise, timesteps, c: c.sum((1, 2)) * torch.inf
    with pytest.raises(InputError, match=r"overflow in float32: use --dtype bfloat16"):
        teacher.prepare("style", random_images(1), [Key(0, style="a")])


def test_what_clip_sees():
    image = np.array([[[[0, 1, 127], [128, 254, 255]]]], np.uint8)
    expected = np.array([[[[255, 0, 0], [0, 0, 1]]]], np.uint8)
    assert (released_input(image) == expected).all()


class CrossAttention(nn.Module):
    """The authors' layers, by name."""

    def __init__(self, width, inner=512):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in "qkv")
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(0.05))


class Attentions(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width), CrossAttention(width)
        self.net = nn.Sequential(nn.Dropout(0.05), nn.Linear(width, width))


class Another(nn.Module):
    pass


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


@pytest.fixture
def save_theirs(monkeypatch):
    """Saves a checkpoint as the authors' program does, with the names of their modules."""

    def save(path, attention):
        with monkeypatch.context() as patch:
            for name, kind in (("embedding_manager", Attentions), ("attention", CrossAttention)):
                module = ModuleType(f"ldm.modules.{name}")
                setattr(module, kind.__name__, kind)
                patch.setitem(sys.modules, module.__name__, module)
                patch.setattr(kind, "__module__", module.__name__)
            for name in ("ldm", "ldm.modules"):
                patch.setitem(sys.modules, name, ModuleType(name))
            content = {"string_to_token": {"*": torch.tensor(265)}, "attention": attention}
            torch.save(content, path)

    return save


def test_the_authors_checkpoint(save_theirs, tmp_path):
    theirs = Attentions(WIDTH)
    save_theirs(tmp_path / "embeddings.pt", theirs)
    assert "ldm.modules.embedding_manager" not in sys.modules
    ours = load_embedding(tmp_path / "embeddings.pt", WIDTH)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, WIDTH)
    hidden = theirs.attn2.to_out[0](theirs.attn2.to_v(x))
    torch.testing.assert_close(ours(x), theirs.net[1](hidden))


def test_the_authors_checkpoint_in_a_dump(
    save_theirs, pictures, module_model, clip, tmp_path, monkeypatch
):
    """It needs the picture and CLIP: the module makes the word of them."""
    folder = tmp_path / "embeddings"
    folder.mkdir()
    for i in range(3):
        save_theirs(folder / f"style{i}.pt", Attentions(WIDTH))
    given = replace(MODULE, clip=clip, clip_input="released", embeddings=folder)
    teacher = open_inst(given, runtime(module_model))
    images = random_images(1)
    word = teacher.prepare("style", images, [Key(0, style="style1.png")]).tensors["embedding"]
    module = load_embedding(folder / "style1.pt", WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(word, module(teacher._embed(images)))
    assert teacher.preparation_work("style", 3) == 0
    with pytest.raises(InputError, match=r'--clip "\./none": no such folder'):
        open_inst(replace(given, clip="./none"), runtime(module_model))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"attention": Attentions(WIDTH + 1)}, "an inversion module of other tensors"),
        ({"attention": {"net.1.weight": torch.zeros(3)}}, "a dict"),
        ([torch.zeros(WIDTH)], "a list"),
        ({"a": torch.zeros(WIDTH), "b": torch.zeros(WIDTH)}, r"\[8\] and \[8\]"),
        ({"clip_l": torch.zeros(4, WIDTH)}, r"\[4, 8\]"),
        ({"a": torch.zeros(WIDTH + 1)}, r"\[9\]"),
        ({"step": 3}, "no tensors"),
    ],
)
def test_a_checkpoint_of_something_else(content, found, save_theirs, tmp_path):
    path = tmp_path / "embeddings.pt"
    if isinstance(content, dict) and isinstance(content.get("attention"), Attentions):
        save_theirs(path, content["attention"])
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=f"holds {found}; expected InST's embeddings") as error:
        load_embedding(path, WIDTH)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize("harmful", [Another(), Harmful()])
def test_no_checkpoint_is_executed(harmful, tmp_path):
    path = tmp_path / "embeddings.pt"
    torch.save({"attention": harmful}, path)
    with pytest.raises(InputError, match=r"\(it holds a [\w.]+\); expected InST's") as error:
        load_embedding(path, WIDTH)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"a": 1})])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_checkpoint(content, suffix, tmp_path):
    path = tmp_path / f"embeddings{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"expected InST's embeddings.pt or") as error:
        load_embedding(path, WIDTH)
    assert "\n" not in str(error.value)


def test_textual_inversions(tmp_path):
    vector = torch.randn(WIDTH)
    torch.save({"<style>": vector}, tmp_path / "diffusers.bin")
    save_file({"emb": vector[None]}, tmp_path / "row.safetensors")
    old = {"string_to_token": {"*": 265}, "string_to_param": {"*": vector[None]}, "name": "x"}
    torch.save(old, tmp_path / "old.pt")
    for name in ("diffusers.bin", "row.safetensors", "old.pt"):
        assert torch.equal(load_embedding(tmp_path / name, WIDTH), vector)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a painting"}, r'prompt is "a painting"; expected a text with the word \*'),
        ({"strength": 0.0}, "strength is 0.0; expected more than 0"),
        ({"strength": 1.0}, "strength is 1.0; expected more than 0, at most 0.999"),
        ({"strength": 0.01}, "strength 0.01 of 50 steps is none; expected a .* least 0.02"),
        ({"num_steps": 30}, "num_steps is 30; expected a number that divides 1000"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"guidance": float("inf")}, "guidance is inf"),
        ({"training_steps": 0}, "training_steps is 0; expected at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"together": 0}, "together is 0"),
        ({"draws": 0}, "draws is 0; expected at least 1, or None"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"learned": "direct", "embeddings": Path("x")}, "which reads no embeddings"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError, match=message) as error:
        InSTConfig(**settings)
    assert str(error.value).endswith(".")


def test_steps_are_rounded_down_as_the_authors_do():
    assert (InSTConfig().sampling_steps, InSTConfig().noise_timestep) == (35, 700)
    assert InSTConfig(strength=0.58).sampling_steps == 28  # 0.58 x 50 is 28.999... in binary


def test_what_is_missing_shows_before_any_work(
    pictures, model_folder, module_model, clip, tmp_path
):
    def message(model, **settings):
        settings = {"clip": clip, **settings}
        made = config(pictures, model, tmp_path / "out", replace(MODULE, **settings))
        with pytest.raises(InputError) as error:
            dump(made)
        assert not made.out.exists()
        text = str(error.value)
        assert text.endswith(".") and "\n" not in text
        return text

    assert "has no text encoder" in message("mini") and "--preset direct" in message("mini")
    assert "has no text encoder" in message(model_folder)
    assert '--clip "./clip": no such folder' in message(module_model, clip="./clip")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "cannot be loaded" in message(module_model, clip=str(empty))
    assert "holds no image tower" in message(module_model, clip=f"{module_model}/text_encoder")
    wide = clip_folder(tmp_path / "wide", 16)
    assert "gives 16 numbers" in message(module_model, clip=wide)
    assert "is part of another word" in message(module_model, prompt="in oil,*, thick")
    assert "holds no files of embeddings" in message(module_model, embeddings=empty)


def test_a_schedule_of_another_length(components):
    short = components._replace(scheduler=DDIMScheduler(num_train_timesteps=100))
    with pytest.raises(InputError, match="schedule of 100 timesteps; InST expects 1000"):
        InSTTeacher(short, DIRECT)


def test_settings_are_json(components):
    settings = InSTTeacher(components, InSTConfig.direct()).settings()
    assert json.loads(json.dumps(settings)) == settings
