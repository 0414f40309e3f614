import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from teacher_torch.pretrain import AugmentedCrops, PretrainConfig

from teacher_torch import StyleID, StyleIDConfig, pretrain
from teacher_torch.components import load_components
from teacher_torch.measure import MeasureConfig, load_held_out, measure_teacher
from triplets import ImageError, InputError, is_held_out


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
        unet_steps=2,
        unet_batch=2,
        checkpoint_every=1,
    )


def weights(path):
    components = load_components(str(path))
    return [v for m in (components.unet, components.vae) for v in m.state_dict().values()]


def test_interrupted_pretraining_ends_as_an_unbroken_one(folders, tmp_path, monkeypatch):
    whole = config(folders, tmp_path / "whole")
    pretrain.pretrain(whole)

    class Stop(Exception):
        pass

    factor = pretrain.learning_rate_factor
    monkeypatch.setattr(
        pretrain,
        "learning_rate_factor",
        lambda step, steps: (_ for _ in ()).throw(Stop()) if step == 3 else factor(step, steps),
    )
    broken = dataclasses.replace(whole, workdir=tmp_path / "broken", out=tmp_path / "broken/model")
    with pytest.raises(Stop):
        pretrain.pretrain(broken)
    monkeypatch.undo()
    pretrain.pretrain(broken)
    for a, b in zip(weights(whole.out), weights(broken.out), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    with pytest.raises(InputError, match="has --unet-steps"):
        pretrain.pretrain(dataclasses.replace(whole, unet_steps=whole.unet_steps + 1))

    # The model is a teacher, and its measures and contact sheet can be made.
    components = load_components(str(whole.out))
    styleid = StyleID(*components, StyleIDConfig(num_steps=3))
    content = styleid.invert(torch.zeros(1, 3, 64, 64))
    assert styleid.stylise(content, content).shape == (1, 3, 64, 64)
    assert components.scheduler.config.prediction_type == "v_prediction"


def test_crops_depend_on_seed_and_index_alone(folders):
    first, again = (AugmentedCrops(folders, 32, 0.5, (0, 1)) for _ in range(2))
    assert first[5].shape == (3, 32, 32) and first[5].abs().max() <= 1
    torch.testing.assert_close(first[5], again[5])
    assert not torch.equal(first[5], first[7])
    assert not torch.equal(first[5], AugmentedCrops(folders, 32, 0.5, (1, 1))[5])


def test_held_out_pictures_are_never_trained_on(folders):
    crops = AugmentedCrops(folders, 32, 0.5, (0, 1))
    for folder, group in zip(folders, crops.groups, strict=True):
        names = {file.name for file in folder.iterdir()}
        held_out = {name for name in names if is_held_out(name)}
        assert held_out and {file.name for file in group} == names - held_out


def test_folders_without_pictures_leave_nothing_behind(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    for photos, message in ((tmp_path / "empty", "holds no pictures"), ("nowhere", "no folder")):
        with pytest.raises(InputError, match=message):
            pretrain.pretrain(config((Path(photos), folders[1]), tmp_path / "work"))
        with pytest.raises(InputError, match=message):
            load_held_out(Path(photos), 64, 2)
    assert not (tmp_path / "work").exists()
    with pytest.raises(InputError, match='--device "abacus" cannot be used here'):
        pretrain.pretrain(dataclasses.replace(config(folders, tmp_path / "work"), device="abacus"))


def test_a_damaged_picture_is_named_before_the_training(folders, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(folders[0], photos)
    damaged = AugmentedCrops((photos,), 32, 0.5, (0, 1)).groups[0][-1]
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
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense(folders, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config(folders, tmp_path), **changes)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"pairs_side": 0}, {"autoencoder_limit": 0}])
def test_measures_that_make_no_sense(folders, tmp_path, changes):
    with pytest.raises(ValueError, match="is 0; expected"):
        MeasureConfig(*folders, out=tmp_path, **changes)


def test_measures_of_a_teacher(folders, model_folder, tmp_path, capsys):
    measure_teacher(
        MeasureConfig(
            *folders,
            out=tmp_path,
            teacher=str(model_folder),
            steps=3,
            pairs_side=2,
            autoencoder_limit=2,
            ablations=True,
        )
    )
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "measures.md").read_text().strip()
    record = json.loads((tmp_path / "measures.json").read_text())
    by_name = {row["setting"]: row for row in record["settings"]}
    moved = {name: row["gram_below_content"] for name, row in by_name.items()}
    assert list(moved) == [
        "paper, 3 steps",
        "gamma 0.3",
        "injection off",
        "AdaIN off",
        "both off",
    ]
    assert len(set(moved.values())) == len(moved)
    assert {"autoencoder PSNR, photos (dB)", "inversion and back PSNR, paintings (dB)"} <= set(
        record["figures"]
    )
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size == (3 * 68 + 4, 3 * 68 + 4)
