import json

import numpy as np
import pytest
import torch
from PIL import Image

from teacher_torch import StyleID
from teacher_torch.mini.measure import MeasureConfig, load_test_pictures, measure_model, psnr
from triplets import InputError


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


def test_psnr_of_known_pictures():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[0] = 51  # a fifth of the range everywhere: -20 log10(0.2)
    b[1, 0, 0, 0] = 255  # one number of 48 wrong by all of it: 10 log10(48)
    assert psnr(a, b) == pytest.approx([13.9794, 16.8124], abs=1e-4)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"autoencoder_limit": 0}, {"inversion_limit": 0}]
)
def test_measures_that_make_no_sense(folders, tmp_path, changes):
    with pytest.raises(InputError, match="is 0; expected"):
        MeasureConfig(*folders, out=tmp_path, **changes)


def test_folders_without_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=folder.name):
            load_test_pictures(folder, 64, 2)


def test_measures_of_a_model(folders, model_folder, tmp_path, capsys):
    config = MeasureConfig(
        *folders,
        out=tmp_path,
        model=str(model_folder),
        steps=3,
        autoencoder_limit=2,
        inversion_limit=1,
    )
    measure_model(config)
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "measures.md").read_text().strip()
    figures = json.loads((tmp_path / "measures.json").read_text())
    assert list(figures) == [
        "autoencoder PSNR, photos (dB)",
        "autoencoder PSNR, paintings (dB)",
        "inversion and back PSNR, photos (dB)",
        "inversion and back PSNR, paintings (dB)",
    ]
    for name, value in figures.items():
        assert f"| {name} | {value:.1f} |" in printed


def test_a_perfect_model_is_measured_as_such(folders, model_folder, tmp_path, monkeypatch):
    """The figures compare the pictures with what the model made of these, and nothing else."""
    encoded = []

    def encode(self, images):
        encoded.append(images)
        return images

    monkeypatch.setattr(StyleID, "encode", encode)
    monkeypatch.setattr(StyleID, "decode", lambda self, latents: latents + 2 / 255)  # a level off
    monkeypatch.setattr(StyleID, "invert", encode)
    monkeypatch.setattr(StyleID, "stylise", lambda self, content, style: content + 2 * 2 / 255)
    measure_model(MeasureConfig(*folders, out=tmp_path, model=str(model_folder)))
    figures = json.loads((tmp_path / "measures.json").read_text())
    for name, value in figures.items():
        levels = 1 if name.startswith("autoencoder") else 2
        # White stays white, so that the error is a little smaller.
        assert value == pytest.approx(20 * np.log10(255 / levels), abs=0.3), name
    assert all(images.abs().max() <= 1 and images.shape[1:] == (3, 64, 64) for images in encoded)
    assert isinstance(encoded[0], torch.Tensor)
