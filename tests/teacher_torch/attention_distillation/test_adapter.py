"""Attention distillation as a teacher of the dump, on a tiny random model."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from teacher_torch.attention_distillation import (
    AttentionDistillation,
    AttentionDistillationConfig,
    AttentionDistillationTeacher,
)
from teacher_torch.dump import DumpConfig, dump
from teacher_torch.pixels import to_model_range, to_uint8
from triplets import InputError, TripletDataset, write_image

STARTS = ("content", "styleid")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 3 contents and 2 styles."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind, count in (("content", 3), ("style", 2)):
        for i in range(count):
            small = rng.integers(0, 256, (8, 8, 3), np.uint8)
            (root / kind).mkdir(exist_ok=True)
            write_image(root / kind / f"{kind}{i}.png", small.repeat(8, 0).repeat(8, 1))
    return root


def config(pictures, model_folder, out, start="styleid"):
    return DumpConfig(
        str(pictures / "content"),
        str(pictures / "style"),
        out,
        teacher="attention_distillation",
        model=str(model_folder),
        method=AttentionDistillationConfig(num_steps=2, start=start, styleid_steps=3),
        tile=2,
    )


def stylised(root):
    return np.stack([triplet.stylised for triplet in TripletDataset(root)])


@pytest.mark.parametrize("start", STARTS)
def test_dump_continues_in_the_same_bytes(start, pictures, model_folder, tmp_path, monkeypatch):
    whole = config(pictures, model_folder, tmp_path / "whole", start)
    dump(whole)
    dataset = TripletDataset(whole.out)
    assert len(dataset) == 6 and dataset.verify() == []
    settings = dataset.manifest["settings"]
    assert settings["teacher"] == "attention_distillation"
    assert settings["attention_distillation"]["start"] == start

    broken = config(pictures, model_folder, tmp_path / "broken", start)
    distil = AttentionDistillation.distil
    calls = []

    def fail_at_the_second(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return distil(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AttentionDistillation, "distil", fail_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            dump(broken)
    dump(broken)
    assert (stylised(broken.out) == stylised(whole.out)).all()


def test_a_pair_is_distilled_towards_its_own_style(components):
    """Distilled for one style, latents attend as that style would have them, not as another."""
    settings = AttentionDistillationConfig(num_steps=20, start="content")
    teacher = AttentionDistillationTeacher(components, settings)
    generator = torch.Generator().manual_seed(0)
    content, *styles = torch.randn(3, 1, 4, 8, 8, generator=generator)
    pair = torch.zeros(1, 2, dtype=torch.long)
    losses = []
    teacher._distillation.after_step = lambda x, style, _: losses.append(float(style))
    for style in styles:
        teacher._distillation.distil(content, content, style, pair, [201] * 20)
    assert losses[19] < 0.9 * losses[0] and losses[39] < 0.9 * losses[20]


def test_work_is_what_the_calls_report(components):
    """The plan's rows are those that the hook counts, of inversion, sampling and distillation."""
    for start in STARTS:
        settings = AttentionDistillationConfig(num_steps=3, start=start, styleid_steps=4)
        teacher = AttentionDistillationTeacher(components, settings)
        teacher.rows_per_call = 2
        rows = []
        teacher.after_call = rows.append
        images = to_model_range(np.zeros((2, 64, 64, 3), np.uint8))
        contents = teacher.prepare("content", images, [])
        styles = teacher.prepare("style", images[:1], [])
        assert sum(rows) == sum(
            teacher.preparation_work(role, n) for role, n in (("content", 2), ("style", 1))
        )
        rows.clear()
        pairs = torch.tensor([[0, 0], [1, 0]])
        made = list(teacher.stylise(contents, styles, pairs, []))
        assert len(made) == 2 and made[0].shape == (3, 64, 64)
        assert sum(rows) == teacher.work(2, 1, 2)


def test_full_memory_halves_the_rows_per_call(pictures, model_folder, tmp_path, monkeypatch):
    whole = config(pictures, model_folder, tmp_path / "whole")
    dump(whole)
    forward = UNet2DConditionModel.forward

    def forward_in_little_memory(self, sample, *arguments, **keywords):
        if len(sample) > 2 and torch.is_grad_enabled():
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return forward(self, sample, *arguments, **keywords)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward_in_little_memory)
    little = config(pictures, model_folder, tmp_path / "little")
    dump(little)
    # Other calls round differently, and signs of small gradients flip: a few grey levels.
    difference = np.abs(stylised(little.out).astype(int) - stylised(whole.out))
    assert difference.mean() < 1


def test_rows_of_a_gradient_take_ten_times_the_memory(components):
    teacher = AttentionDistillationTeacher(components, AttentionDistillationConfig())
    plain = teacher._start.memory(64, 2, 2, 4)
    assert teacher.memory(64, 2, 2, 4).row == 10 * plain.row


def test_order_of_pairs_is_kept(components):
    """Pairs that are not sorted by style come out in their own order."""
    settings = AttentionDistillationConfig(num_steps=2, start="content")
    teacher = AttentionDistillationTeacher(components, settings)
    rng = np.random.default_rng(1)
    images = to_model_range(rng.integers(0, 256, (4, 64, 64, 3), np.uint8))
    contents, styles = (
        teacher.prepare(role, images[i : i + 2], []) for i, role in ((0, "content"), (2, "style"))
    )
    pairs = torch.tensor([[0, 1], [1, 0], [0, 0]])
    made = [to_uint8(x[None]) for x in teacher.stylise(contents, styles, pairs, [])]
    for picture, pair in zip(made, pairs.tolist(), strict=True):
        alone = teacher.stylise(contents[pair[0]], styles[pair[1]], torch.zeros(1, 2).long(), [])
        difference = picture.astype(int) - to_uint8(next(alone)[None])
        assert np.abs(difference).mean() < 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_steps", 0),
        ("iterations", 0),
        ("learning_rate", -1.0),
        ("content_weight", -0.1),
        ("style_scale", 0.0),
        ("layers", (2, 6)),
        ("layers", (6, 6)),
        ("layers", ()),
        ("styleid_steps", 1),
        ("gamma", 2.0),
    ],
)
def test_bad_settings_are_one_sentence(setting, value):
    with pytest.raises(InputError, match=r"expected|repeats") as error:
        AttentionDistillationConfig(**{setting: value})
    assert str(error.value).endswith(".")
