"""Damaged pictures and datasets, by everything that reads them."""

import io
import shutil

import numpy as np
import pytest
from attacks import Silent
from mutations import damaged, damaged_bytes
from PIL import Image

from student_jax.training.data import load_sources
from triplets import DatasetError, ImageSet, TripletDataset, TripletWriter, decode_image
from triplets.preview import describe

pytestmark = pytest.mark.slow

SIZE = 16


@pytest.fixture(scope="module")
def pictures():
    """One picture in all formats and some of their ways to store pixels."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 10, 4), np.uint8)
    pixels = Image.fromarray(small.repeat(8, axis=0).repeat(8, axis=1), "RGBA")
    encoded = []
    for kind, mode, options in (
        ("JPEG", "RGB", {}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", pixels.size)]}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "F", {}),
    ):
        file = io.BytesIO()
        picture = (
            pixels.convert("L").convert(mode) if mode in ("I;16", "F") else pixels.convert(mode)
        )
        picture.save(file, kind, **options)
        encoded.append(file.getvalue())
    return encoded


def test_pictures(attack, pictures):
    def attempt(rng):
        encoded = damaged_bytes(rng.choice(pictures), rng)
        decode_image(io.BytesIO(encoded), name="x", at_least=rng.choice((None, 16)))

    attack(1000, attempt)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile") / "triplets"
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    contents, styles = images[:5], images[5:]
    writer = TripletWriter(
        root,
        contents=ImageSet(contents, [f"photo{i}.jpg" for i in range(5)], [(SIZE, SIZE)] * 5),
        styles=ImageSet(styles, [f"painting{i}.jpg" for i in range(4)], [(SIZE, SIZE)] * 4),
        pairs=np.indices((5, 4)).reshape(2, -1).T,
        settings={"seed": 7},
        shard_size=8,
    )
    for shard in writer.missing_shards():
        rows = writer.shard_pairs(shard)
        writer.write_shard(shard, contents[rows[:, 0]] // 2 + styles[rows[:, 1]] // 2)
    return root


@pytest.fixture
def damaged_dataset(dataset, tmp_path):
    """A function that makes a copy with damage to one file."""

    def make(rng):
        root = tmp_path / "copy"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(dataset, root)
        path = rng.choice(sorted(path for path in root.rglob("*") if path.is_file()))
        if rng.random() < 0.05:
            path.unlink()
        else:
            path.write_bytes(damaged(path.name, path.read_bytes(), rng))
        return root

    return make


def read(root):
    """All that a training sees."""
    return [
        [*map(np.ndarray.tobytes, triplet[:3]), *triplet[3:]] for triplet in TripletDataset(root)
    ]


def test_datasets_verified(attack, damaged_dataset, dataset):
    whole = read(dataset)

    def attempt(rng):
        root = damaged_dataset(rng)
        for fault in TripletDataset(root).verify():
            raise DatasetError(fault)
        if read(root) != whole:
            raise Silent("verify found nothing, and other triplets are read")

    attack(200, attempt)


def test_datasets_read(attack, damaged_dataset):
    def attempt(rng):
        opened = TripletDataset(damaged_dataset(rng))
        list(opened)
        assert len(opened.fingerprint) == 64

    attack(150, attempt)


def test_datasets_previewed(attack, damaged_dataset):
    attack(100, lambda rng: print(describe(TripletDataset(damaged_dataset(rng)), 4)))


def test_datasets_trained_on(attack, damaged_dataset):
    def attempt(rng):
        sources, validation = load_sources([str(damaged_dataset(rng))], None, 0.2)
        for triplets in (*sources, validation):
            for i in range(len(triplets)):
                triplets[i]

    attack(50, attempt)
