"""StyleDiffusion as a teacher of the dump, on a tiny random model with VGG16 statistics."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from teacher_torch.dump import DumpConfig, dump, dump_config_type
from teacher_torch.style_diffusion import StyleDiffusion, StyleDiffusionConfig
from teacher_torch.style_diffusion.adapter import StyleDiffusionTeacher, open_style_diffusion
from teacher_torch.style_diffusion.disentangling import luma, points
from teacher_torch.teacher import Key, Runtime
from triplets import InputError, TripletDataset, open_source, write_image

TINY = StyleDiffusionConfig(
    guide="vgg16",
    forward_steps=3,
    removal_steps=3,
    reverse_steps=2,
    rounds=1,
    style_passes=1,
    content_passes=1,
    learning_rate=1e-3,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 2 contents, 2 styles and 1 content for tuning."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind, count in (("content", 2), ("style", 2), ("tuning", 1)):
        (root / kind).mkdir()
        for i in range(count):
            small = rng.integers(0, 256, (8, 8, 3), np.uint8)
            write_image(root / kind / f"{kind}{i}.png", small.repeat(8, 0).repeat(8, 1))
    return root


def config(pictures, model_folder, out, **changes):
    method = replace(TINY, tuning_contents=str(pictures / "tuning"), **changes)
    return DumpConfig(
        str(pictures / "content"),
        str(pictures / "style"),
        out,
        teacher="style_diffusion",
        model=str(model_folder),
        method=method,
    )


def stylised(root):
    return np.stack([triplet.stylised for triplet in TripletDataset(root)])


@pytest.fixture(scope="module")
def whole(pictures, model_folder, tmp_path_factory):
    whole = config(pictures, model_folder, tmp_path_factory.mktemp("dump") / "whole")
    dump(whole)
    return whole


def test_dump_goes_style_by_style_and_leaves_no_networks(whole):
    dataset = TripletDataset(whole.out)
    assert dataset.verify() == [] and len(dataset) == 4
    assert [pair.style_id for pair in dataset] == ["style0.png"] * 2 + ["style1.png"] * 2
    settings = dataset.manifest["settings"]
    assert settings["style_diffusion"]["guide"] == "vgg16"
    assert settings["method"] == "per-style fine-tuning with VGG statistics (after StyleDiffusion)"
    assert settings["tile"] == [2, 1]
    assert not (whole.out / "prepared").exists()


def test_states_are_kept_on_request(pictures, model_folder, tmp_path, whole):
    kept = config(pictures, model_folder, tmp_path / "kept", keep_states=True)
    dump(kept)
    names = {path.name for path in (kept.out / "prepared").iterdir()}
    assert names == {"style-00000", "style-00001"}
    described = json.loads((kept.out / "prepared" / "style-00001" / "prepared.json").read_text())
    assert described["ids"] == ["style1.png"]
    assert (stylised(kept.out) == stylised(whole.out)).all()
    # Without the flag the same dataset goes on, and what is not needed goes.
    dump(config(pictures, model_folder, kept.out))
    assert not (kept.out / "prepared").exists()


@pytest.mark.parametrize("place", ["tuning", "pairs"])
def test_dump_continues_in_the_same_bytes(
    place, pictures, model_folder, tmp_path, whole, monkeypatch
):
    """Interrupted while the second style is tuned, or while its pairs are made."""
    broken = config(pictures, model_folder, tmp_path / "broken")
    name = "_pass" if place == "tuning" else "transfer"
    function, calls, tuned = getattr(StyleDiffusion, name), [], []

    def fail_late(self, *arguments):
        calls.append(1)
        if len(calls) == (4 if place == "tuning" else 2):
            raise KeyboardInterrupt
        return function(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StyleDiffusion, name, fail_late)
        with pytest.raises(KeyboardInterrupt):
            dump(broken)
    tune = StyleDiffusion.tune
    with monkeypatch.context() as patch:
        patch.setattr(StyleDiffusion, "tune", lambda self, *a: (tuned.append(1), tune(self, *a))[1])
        dump(broken)
    assert len(tuned) == (1 if place == "tuning" else 0)  # what was published is used
    assert (stylised(broken.out) == stylised(whole.out)).all()
    assert not (broken.out / "prepared").exists()


def test_ranks_share_networks_until_the_last_pair(pictures, model_folder, tmp_path, whole):
    """Of one style in two shards, each of another rank, the network goes after the second."""
    ranks = [
        replace(
            config(pictures, model_folder, tmp_path / "ranks"), rank=rank, world_size=2, tile=(1, 2)
        )
        for rank in (0, 1)
    ]
    dump(ranks[0])
    assert len(list((tmp_path / "ranks" / "prepared").iterdir())) == 2
    dump(ranks[1])
    assert not (tmp_path / "ranks" / "prepared").exists()
    pictures_of = [
        {(t.content_id, t.style_id): t.stylised for t in TripletDataset(root)}
        for root in (tmp_path / "ranks", whole.out)
    ]
    assert all(
        np.abs(pictures_of[1][pair].astype(int) - picture).max() <= 1  # of other batches
        for pair, picture in pictures_of[0].items()
    )


@pytest.fixture
def teacher(pictures, model_folder):
    runtime = Runtime(str(model_folder), torch.device("cpu"), torch.float32)
    method = replace(TINY, tuning_contents=str(pictures / "tuning"))
    return open_style_diffusion(method, runtime)


def test_work_is_what_the_calls_report(teacher):
    rows = []
    teacher.after_call = rows.append
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    contents = teacher.prepare("content", images, [])
    assert sum(rows) == teacher.preparation_work("content", 2) == 2 * (2 + 3 + 2)
    rows.clear()
    style = teacher.prepare("style", images[:1], [Key(0, style="a")])
    assert sum(rows) == teacher.preparation_work("style", 1) == 7 + 2 * 4
    rows.clear()
    made = list(teacher.stylise(contents, style, torch.tensor([[1, 0], [0, 0]]), []))
    assert len(made) == 2 and made[0].shape == (3, 64, 64)
    assert sum(rows) == teacher.work(2, 1, 2) == 4


def test_each_style_uses_its_own_network(teacher):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    content = teacher.prepare("content", images[:1], [])
    styles = [teacher.prepare("style", images[i, None], []) for i in (1, 2)]
    together = type(styles[0]).cat(styles)
    both = list(teacher.stylise(content, together, torch.tensor([[0, 1], [0, 0]]), []))
    assert (both[0] - both[1]).abs().mean() > 1e-4
    [alone] = teacher.stylise(content, styles[1], torch.tensor([[0, 0]]), [])
    torch.testing.assert_close(alone, both[0])


def test_tuning_learns_the_style(teacher):
    """More Adam steps reconstruct the style better, and the pre-trained network stays as it is."""
    before = teacher.denoiser.weights_sha256()
    config = replace(teacher.config, style_passes=12)
    method = StyleDiffusion(teacher.denoiser, teacher.guide, config)
    style = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    losses = []
    contents = teacher._tuning_contents(64)
    method.tune(style, method.remove(style), contents, losses.append)
    assert losses[22] < 0.97 * losses[0]  # the same timestep, 11 passes later
    assert teacher.denoiser.weights_sha256() == before


def test_tuning_that_diverges_is_one_sentence(teacher):
    teacher.method.config = replace(TINY, learning_rate=1e30)
    with pytest.raises(InputError, match=r"give a smaller --learning-rate than 1e\+30, .*\.$"):
        teacher.prepare("style", torch.zeros(1, 3, 64, 64), [Key(0, style="s")])


def test_published_settings():
    assert StyleDiffusionConfig.paper().adam_steps == 3000
    assert StyleDiffusionConfig.paper().removal_rows == 39 + 40 + 39
    assert points(301, 6) == (0, 60, 120, 180, 240, 301)


def test_luma_of_known_colours():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    assert ((luma(red) + 1) * 127.5).round().flatten().tolist() == [76.0] * 3  # 0.299 x 255


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("removal_time", 0),
        ("transfer_time", 1000),
        ("reverse_steps", 303),
        ("forward_steps", 1),
        ("rounds", 0),
        ("learning_rate", 0.0),
        ("l1_weight", -1.0),
    ],
)
def test_bad_settings_are_one_sentence(setting, value):
    with pytest.raises(InputError, match="expected") as error:
        StyleDiffusionConfig(**{setting: value})
    assert str(error.value).endswith(".")


def test_bad_input_before_any_work(pictures, model_folder, tmp_path):
    good = config(pictures, model_folder, tmp_path / "out")
    for changes, words in (
        ({"dtype": "float16"}, "--dtype float32"),
        ({"method": replace(TINY, guide="clip", clip=str(tmp_path))}, "--guide vgg16"),
        ({"method": replace(TINY, guide="clip", clip="nowhere")}, "no such folder"),
        ({"method": replace(TINY, tuning_contents=str(tmp_path / "no"))}, "does not exist"),
        ({"model": str(pictures / "style" / "style0.png")}, r"teacher_torch\.adm"),
    ):
        with pytest.raises(InputError, match=words) as error:
            dump(replace(good, **changes))
        assert str(error.value).count(". ") == 0 and str(error.value).endswith(".")
    assert not (tmp_path / "out").exists()


def test_flags(pictures, tmp_path):
    kind = dump_config_type("style_diffusion", "paper")
    assert kind("a", "b", tmp_path, teacher="style_diffusion").method.adam_steps == 3000
    source = open_source(str(pictures / "tuning"))
    assert len(source) == 1 and StyleDiffusionTeacher.persistent == ("style",)
