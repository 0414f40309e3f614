import csv
import dataclasses
import functools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from teacher_torch import StyleID, StyleIDConfig
from teacher_torch.latent_diffusion import decode, encode, load_components
from teacher_torch.mini import pretrain
from teacher_torch.mini.checks import PERIOD, lattice
from teacher_torch.mini.condition import PictureCondition, null_condition, picture_statistics
from teacher_torch.mini.crops import NativeCrops, central_crop
from teacher_torch.mini.latents import LatentPool
from teacher_torch.mini.networks import build_autoencoder, standardise_latents
from teacher_torch.mini.perceptual import VGG16
from teacher_torch.mini.pretrain import PretrainConfig, decay_start, learning_rate_factor
from triplets import ImageError, InputError, in_test_split


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of 40 pictures, of which some are held out by the hash of their names."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind in ("photos", "paintings"):
        (root / kind).mkdir()
        for i in range(40):
            small = rng.integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(small).resize((80, 80)).save(root / kind / f"{kind}{i}.png")
    return root / "photos", root / "paintings"


def config(folders, workdir):
    return PretrainConfig(
        *folders,
        workdir=workdir,
        out=workdir / "model",
        image_size=64,
        autoencoder_steps=3,
        autoencoder_batch=2,
        autoencoder_crop=32,
        latent_pool=4,
        unet_steps=5,
        unet_batch=2,
        checkpoint_every=1,
        evaluation_pictures=2,
    )


@pytest.fixture
def small_networks(monkeypatch):
    """The structure of the networks, with a hundredth of their weights."""
    for name, width in (("build_autoencoder", (8, 8, 8, 8)), ("build_unet", (32, 32, 32, 32))):
        full = getattr(pretrain, name)()
        settings = {key: value for key, value in full.config.items() if not key.startswith("_")}
        settings |= {"block_out_channels": width, "norm_num_groups": 4}
        monkeypatch.setattr(pretrain, name, functools.partial(type(full), **settings))


def weights(path):
    components = load_components(str(path))
    return [v for m in (components.unet, components.vae) for v in m.state_dict().values()]


def test_interrupted_pretraining_ends_as_an_unbroken_one(
    folders, tmp_path, monkeypatch, small_networks
):
    whole = config(folders, tmp_path / "whole")
    pretrain.pretrain(whole)

    class Stop(Exception):
        pass

    factor = pretrain.learning_rate_factor
    broken = dataclasses.replace(whole, workdir=tmp_path / "broken", out=tmp_path / "broken/model")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(
            pretrain,
            "learning_rate_factor",
            lambda step, steps: (_ for _ in ()).throw(Stop()) if step == 3 else factor(step, steps),
        )
        pretrain.pretrain(broken)
    pretrain.pretrain(broken)
    for a, b in zip(weights(whole.out), weights(broken.out), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    for name in ("unet_batch", "autoencoder_steps"):
        other = dataclasses.replace(whole, **{name: getattr(whole, name) + 1})
        with pytest.raises(InputError, match="has --" + name.replace("_", "-")):
            pretrain.pretrain(other)

    # Of both stages the metrics tell the terms, and at the end the figures on held-out pictures.
    for stage, terms in (
        ("autoencoder", {"l1", "kl", "perceptual", "psnr_photos", "lattice_paintings"}),
        ("unet", {"v", "loss_own", "loss_same", "loss_null", "loss_other"}),
    ):
        lines = (whole.workdir / f"{stage}.jsonl").read_text().splitlines()
        assert terms <= set(json.loads(lines[-1]))

    # The model is a teacher, and its measures and contact sheet can be made.
    components = load_components(str(whole.out))
    styleid = StyleID(*components, StyleIDConfig(num_steps=3))
    content = styleid.invert(torch.zeros(1, 3, 64, 64))
    assert styleid.stylise(content, content).shape == (1, 3, 64, 64)
    assert components.scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(components.null_text_embedding, null_condition())
    assert PictureCondition.load(whole.out).mean.shape == (1920,)

    # A longer training takes the short one up where its rate began to fall, and ends as if it had
    # been long from the start.
    longer = dataclasses.replace(whole, unet_steps=7, latent_pool=6)
    pretrain.pretrain(longer)
    lines = (whole.workdir / "unet.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7]
    with pytest.raises(InputError, match=r"unet is at step 6 .* give 7 or more\."):
        pretrain.pretrain(dataclasses.replace(longer, unet_steps=6))


def test_pretraining_goes_on_with_another_model(folders, tmp_path, small_networks):
    torch.manual_seed(0)
    unet, autoencoder = pretrain.build_unet(), pretrain.build_autoencoder()
    autoencoder.register_to_config(scaling_factor=0.5)
    condition = PictureCondition(torch.zeros(1920), torch.ones(1920))
    first = tmp_path / "first"
    pretrain.save_model(first, unet, autoencoder, pretrain.build_scheduler(), condition)
    settings = config(folders, tmp_path / "work")
    further = dataclasses.replace(
        settings, init_from=first, autoencoder_steps=0, unet_steps=1, unet_lr=1e-6, dtype="float32"
    )
    pretrain.pretrain(further)
    before, after = (load_components(str(path)) for path in (first, further.out))
    assert after.vae.config.scaling_factor == 1.0
    configs = further.out.glob("*/config.json")
    assert not any(str(tmp_path) in file.read_text() for file in configs)
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = [encode(components.vae, images).mean for components in (before, after)]
    # Both are stored in float16, of which the weights before and after scaling round differently.
    torch.testing.assert_close(latents[0], latents[1], rtol=0, atol=5e-3)
    torch.testing.assert_close(
        *(decode(c.vae, z) for c, z in zip((before, after), latents, strict=True)),
        rtol=0,
        atol=5e-3,
    )
    weights = [components.unet.conv_in.weight for components in (before, after)]
    # The one step is small: it is the first of a warm-up of 200.
    assert (weights[0] - weights[1]).abs().max() < 1e-3
    torch.testing.assert_close(after.null_text_embedding, null_condition())

    # A model that predicts something else is refused before anything is done.
    noise = first / "scheduler" / "scheduler_config.json"
    noise.write_text(noise.read_text().replace("v_prediction", "epsilon"))
    other = dataclasses.replace(further, workdir=tmp_path / "other")
    with pytest.raises(InputError, match="16 input channels and epsilon; expected 64, 16 and v_pr"):
        pretrain.pretrain(other)
    with pytest.raises(InputError, match=r'--init-from "nowhere" holds no null_text'):
        pretrain.pretrain(dataclasses.replace(other, init_from=Path("nowhere")))
    assert not other.workdir.exists()
    with pytest.raises(ValueError, match="expected more than 0, or 0 with --init-from"):
        dataclasses.replace(settings, autoencoder_steps=0)


def crops_of(folders, seed=(0, 1), artists=None, size=32, min_scale=0.7):
    return NativeCrops(*folders, artists, size=size, min_scale=min_scale, seed=seed)


def test_crops_depend_on_seed_and_index_alone(folders):
    first, again = (crops_of(folders) for _ in range(2))
    assert first[5].shape == (3, 32, 32) and first[5].abs().max() <= 1
    torch.testing.assert_close(first[5], again[5])
    assert not torch.equal(first[5], first[7])
    assert not torch.equal(first[5], crops_of(folders, (1, 1))[5])


def test_held_out_pictures_are_never_trained_on(folders):
    crops = crops_of(folders)
    drawn = {crops.draw(index)[0] for index in range(1000)}
    for folder in folders:
        names = {file.name for file in folder.iterdir()}
        held_out = {name for name in names if in_test_split(name)}
        assert held_out
        for files in (crops.files, drawn):
            assert {file.name for file in files if file.parent == folder} == names - held_out


def test_crops_keep_the_native_scale(tmp_path):
    # Stripes of 4 px, 200 x 100: reduced, their spectrum would peak elsewhere.
    stripes = np.zeros((100, 200, 3), np.uint8)
    stripes[:, ::4], stripes[:, 1::4] = 200, 200
    for kind in ("photos", "paintings"):
        (tmp_path / kind).mkdir()
        Image.fromarray(stripes).save(tmp_path / kind / "a.png")
    folders = (tmp_path / "photos", tmp_path / "paintings")

    def frequency(crop):
        spectrum = torch.fft.rfft(crop.mean((0, 1)) - crop.mean()).abs()
        return spectrum.argmax().item() / crop.shape[-1]

    # Unreduced pictures have one stripe in 4 px; at the smallest scale, one in 0.7 x 4.
    native = [frequency(crops_of(folders, min_scale=1.0, size=64)[i]) for i in range(20)]
    reduced = [frequency(crops_of(folders, min_scale=0.7, size=64)[i]) for i in range(20)]
    # The smallest side that a crop may be cut with is 0.8 of the largest.
    assert all(0.8 * 0.25 - 0.02 <= f <= 0.25 + 0.02 for f in native)
    assert all(0.25 - 0.02 <= f <= 0.25 / 0.7 + 0.02 for f in reduced)
    assert max(reduced) > 0.3

    centre, corner = (central_crop(folders[0] / "a.png", 64, shift) for shift in (0.0, -1.0))
    expected = torch.from_numpy(stripes).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(centre, expected[:, 18:82, 68:132])
    torch.testing.assert_close(corner, expected[:, :64, :64])


def test_paintings_are_drawn_evenly_by_artist(folders, tmp_path):
    paintings = sorted(file.name for file in folders[1].iterdir() if not in_test_split(file.name))
    table = tmp_path / "artists.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "artist"])
        # One has nearly all, one a single painting; the last painting is not in the table.
        writer.writerows([f"hd/{name}", "busy"] for name in paintings[:-2])
        writer.writerow([f"hd/{paintings[-2]}", "rare"])
    crops = crops_of(folders, artists=table)
    drawn = [crops.draw(index)[0].name for index in range(1, 3001, 2)]
    counts = Counter(name if name in paintings[-2:] else "busy" for name in drawn)
    assert set(drawn) == set(paintings)
    assert all(430 < counts[key] < 570 for key in ("busy", *paintings[-2:]))
    # Photos take the other half of the indices, table or not.
    assert all(crops.draw(index)[0].parent == folders[0] for index in range(0, 100, 2))

    table.write_text("file,painter\na.jpg,someone\n")
    with pytest.raises(InputError, match="no column 'artist'"):
        crops_of(folders, artists=table)
    with pytest.raises(InputError, match="cannot be read"):
        crops_of(folders, artists=tmp_path / "none.csv")


def test_condition_tells_pictures_apart(folders):
    vgg, crops = VGG16(), crops_of(folders)
    images = torch.stack([crops[i] for i in range(6)])
    statistics = picture_statistics(vgg(images / 2 + 0.5))
    assert statistics.shape == (6, 1920)
    condition = PictureCondition(statistics.mean(0), statistics.std(0).clamp(min=1e-3))
    tokens = condition.of_pictures(vgg, images)
    assert tokens.shape == (6, 8, 64)
    # The projection is the same whenever it is made, and about keeps the deviation of 1.
    again = PictureCondition(condition.mean, condition.std).of_pictures(vgg, images)
    torch.testing.assert_close(tokens, again, rtol=0, atol=0)
    assert 0.5 < tokens.std() < 1.5
    assert (tokens[0] - tokens[1]).abs().mean() > 0.1
    # Where things are in a picture does not count, only what there is of them.
    features = {"relu1_1": torch.rand(2, 64, 8, 8)}
    torch.testing.assert_close(
        picture_statistics({"relu1_1": features["relu1_1"].flip(-1)}), picture_statistics(features)
    )
    assert null_condition().shape == (1, 8, 64)
    torch.testing.assert_close(null_condition(), null_condition(), rtol=0, atol=0)


def test_condition_survives_saving(tmp_path):
    condition = PictureCondition(torch.rand(1920), torch.rand(1920) + 0.5)
    condition.save(tmp_path)
    assert set(load_file(tmp_path / "condition.safetensors")) == {"mean", "std"}
    statistics = torch.rand(2, 1920)
    loaded = PictureCondition.load(tmp_path)
    torch.testing.assert_close(loaded(statistics), condition(statistics), rtol=0, atol=0)


def test_a_tenth_of_the_rows_is_trained_without_a_condition():
    seen = []

    class Unet(torch.nn.Module):
        def forward(self, noisy, timesteps, tokens):
            seen.append(tokens)
            return type("Output", (), {"sample": noisy})

    condition = PictureCondition(torch.zeros(1920), torch.ones(1920))
    loss = pretrain.diffusion_loss(pretrain.build_scheduler(), condition, 0.1)
    latents, statistics = torch.zeros(2000, 4, 1, 1), torch.ones(2000, 1920)
    for _ in range(2):
        loss(Unet(), torch.Generator().manual_seed(5), latents, statistics)
    null = (seen[0] == null_condition()).all((1, 2))
    assert 0.08 < null.float().mean() < 0.12
    expected = condition(statistics[:1]).expand_as(seen[0][~null])
    torch.testing.assert_close(seen[0][~null], expected)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def test_learning_rate_is_constant_before_it_falls():
    steps = 10_000
    assert learning_rate_factor(50, steps) == 0.25
    assert {learning_rate_factor(s, steps) for s in (200, 5000, decay_start(steps))} == {1.0}
    falling = [learning_rate_factor(s, steps) for s in range(decay_start(steps), steps + 1)]
    np.testing.assert_allclose(np.diff(falling), np.diff(falling)[0], rtol=1e-6)
    assert 0 < falling[-1] < 1e-3
    # However much longer the training will be, the steps before are the same.
    assert learning_rate_factor(8000, 40_000) == learning_rate_factor(8000, steps) == 1.0


def test_standardised_latents_decode_to_the_same_picture():
    torch.manual_seed(0)
    autoencoder = build_autoencoder().eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = torch.randn(16), torch.rand(16) + 0.5
    with torch.inference_mode():
        before = autoencoder.encode(images).latent_dist
        decoded = autoencoder.decode(before.mode()).sample
        standardise_latents(autoencoder, mean, std)
        after = autoencoder.encode(images).latent_dist
        shape = (1, 16, 1, 1)
        torch.testing.assert_close(
            after.mode(), (before.mode() - mean.view(shape)) / std.view(shape), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(after.std, before.std / std.view(shape), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            autoencoder.decode(after.mode()).sample, decoded, rtol=0, atol=1e-4
        )


def test_the_pool_grows_and_keeps_its_moments(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("teacher_torch.mini.latents.SHARD", 4)
    monkeypatch.setattr("teacher_torch.mini.latents.MOMENTS_OF", 4)
    parts = (build_autoencoder().eval(), VGG16(), crops_of(folders))
    small = LatentPool(tmp_path / "pool", *parts, size=4, seed=0)
    large = LatentPool(tmp_path / "pool", *parts, size=10, seed=0)
    at_once = LatentPool(tmp_path / "at_once", *parts, size=10, seed=0)
    for a, b, c in zip(small.moments, large.moments, at_once.moments, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        torch.testing.assert_close(b, c, rtol=0, atol=0)
    for index in range(20):
        for a, b in zip(large[index], at_once[index], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    latents = torch.stack([small[i][0] for i in range(40)])
    assert latents.shape == (40, 16, 4, 4)
    assert abs(latents.mean()) < 0.3 and abs(latents.std() - 1) < 0.3


def test_lattice_shows_in_decibels():
    noise = torch.randn((4, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    grid = torch.zeros(128)
    grid[::PERIOD] = 1
    assert abs(lattice(noise)) < 1
    assert lattice(noise + grid) > 3
    assert lattice(noise + grid[:, None]) > 3


def test_folders_without_pictures_leave_nothing_behind(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    for photos, message in ((tmp_path / "empty", "holds no pictures"), ("nowhere", "not a folder")):
        with pytest.raises(InputError, match=message):
            pretrain.pretrain(config((Path(photos), folders[1]), tmp_path / "work"))
    assert not (tmp_path / "work").exists()
    with pytest.raises(InputError, match='--device "abacus" cannot be used here'):
        pretrain.pretrain(dataclasses.replace(config(folders, tmp_path / "work"), device="abacus"))


def test_a_damaged_picture_is_named_before_the_training(folders, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(folders[0], photos)
    damaged = max(file for file in photos.iterdir() if not in_test_split(file.name))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(ImageError, match=damaged.name):
        pretrain.pretrain(config((photos, folders[1]), tmp_path / "work"))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 100}, "image_size is 100; expected a multiple of 64"),
        ({"autoencoder_crop": 30}, "autoencoder_crop is 30; expected a multiple of 8"),
        ({"unet_steps": 0}, "unet_steps is 0; expected more than 0"),
        ({"min_scale": 1.5}, "min_scale is 1.5; expected 0 to 1"),
        ({"null_share": -0.1}, "null_share is -0.1; expected 0 to 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense(folders, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config(folders, tmp_path), **changes)
