"""What is bundled is there, is readable, and says where it is from and under which licence."""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from triplets import ImageFolder
from triplets.bundled import SAMPLES, WEIGHTS


def rows(folder) -> dict[str, list[str]]:
    """The cells of the table in SOURCES.md by their file."""
    lines = (folder / "SOURCES.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {name: rest for name, *rest in cells[2:]}


@pytest.mark.parametrize(("folder", "suffix"), [(SAMPLES, "jpg"), (WEIGHTS, "safetensors")])
def test_every_file_has_a_source_and_a_licence(folder, suffix):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob(f"*.{suffix}")}
    assert files and files == set(rows(folder))
    for what, source, licence in rows(folder).values():
        assert what and source
        assert re.search(r"public domain|CC0|CC BY|BSD", licence)


@pytest.mark.parametrize("kind", ["content", "style"])
def test_samples_are_pictures_of_at_most_640_px(kind):
    pictures = ImageFolder(SAMPLES / kind)
    assert len(pictures) >= 5 and not pictures.skipped
    for index in range(len(pictures)):
        assert max(pictures.load(index).original_size) <= 640


def test_weights_are_finite_and_their_licences_are_with_them():
    for path in WEIGHTS.glob("*.safetensors"):
        for name, array in load_file(path).items():
            assert array.dtype == (np.float32 if name.startswith("lin") else np.float16)
            assert np.isfinite(array).all()
    texts = (WEIGHTS / "LICENSES.txt").read_text()
    assert "Richard Zhang" in texts and "Soumith Chintala" in texts
    assert texts.count("Redistributions in binary form must reproduce") == 2
