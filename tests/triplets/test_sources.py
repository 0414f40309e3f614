import io
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

from triplets import (
    DecodedImage,
    ImageError,
    ImageFolder,
    ImageSet,
    ImageSource,
    NativeCrops,
    SourceError,
    crop_and_resize,
    load_images,
    open_source,
    read_image,
)
from triplets.sources import Skipped


def save_picture(path, size=(30, 20), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.png", "a.png", "a.bmp", "deep/er/c.PNG", "B.png", "päivä kuva.png"):
        save_picture(folder / name)
    for name in (".hidden.png", ".git/d.png", "deep/._a.png"):
        save_picture(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_ids_are_sorted_relative_paths(photos):
    source = open_source(str(photos))
    assert source.ids == ["B.png", "a.bmp", "a.png", "b.png", "deep/er/c.PNG", "päivä kuva.png"]
    assert len(source) == 6
    assert source.skipped == []
    assert isinstance(source, ImageSource)
    decoded = source.load(2)
    assert isinstance(decoded, DecodedImage)
    assert decoded.original_size == (20, 30)
    np.testing.assert_array_equal(decoded.pixels, read_image(photos / "a.png"))


def test_pictures_are_found_by_their_content_and_others_are_named(photos):
    for name, of in (("d.jfif", "JPEG"), ("e", "PNG"), ("f.heic", "JPEG")):
        Image.new("RGB", (30, 20)).save(photos / name, format=of)
    others = ("g.heic", "h.avif", "i.jp2", "j.TGA", "k.mp4")
    for name in others:
        (photos / name).write_bytes(b"something")
    (photos / "l").write_bytes(b"\0\0\0\x18ftypheic")  # as telephones write it
    source = ImageFolder(photos)
    assert {"d.jfif", "e", "f.heic"} <= set(source.ids) and len(source) == 9
    assert [name for name, _ in source.skipped] == [*others, "l"]
    assert source.skipped[0].reason == "is not a JPEG, PNG, WebP, GIF, BMP or TIFF picture"
    assert source.load(source.ids.index("d.jfif")).original_size == (20, 30)


def test_names_that_are_not_utf8_are_left_out_and_named(photos):
    """A dataset could not be trained on, nor exported, with such ids."""
    name = os.fsdecode(b"caf\xe9.png")
    save_picture(photos / name)
    source = ImageFolder(photos)
    assert len(source) == 6
    assert source.skipped == [Skipped(r"caf\udce9.png", "has a name that is not UTF-8")]
    with pytest.raises(SourceError, match="not UTF-8; rename it"):
        open_source(str(photos / name))


def test_ids_do_not_depend_on_how_the_folder_is_spelt(photos, monkeypatch):
    expected = ImageFolder(photos).ids
    monkeypatch.chdir(photos.parent)
    assert ImageFolder("photos").ids == expected
    assert ImageFolder("./photos/deep/..").ids == expected
    os.symlink(photos, photos.parent / "link")
    assert ImageFolder("link").ids == expected


def test_links_that_leave_the_folder_are_named_and_not_followed(photos, tmp_path):
    save_picture(tmp_path / "secret" / "s.png")
    os.symlink(tmp_path / "secret" / "s.png", photos / "escape.png")
    os.symlink("../../secret/s.png", photos / "deep" / "relative.png")
    os.symlink(tmp_path / "secret", photos / "outside")
    os.symlink("a.png", photos / "inside.png")
    os.symlink("missing.png", photos / "broken.png")
    os.symlink("loop.png", photos / "loop.png")
    os.mkfifo(photos / "pipe.png")
    source = ImageFolder(photos)
    assert "inside.png" in source.ids
    assert source.skipped == [
        Skipped("broken.png", "is not a regular file"),
        Skipped("deep/relative.png", "is a link that leaves the folder"),
        Skipped("escape.png", "is a link that leaves the folder"),
        Skipped("loop.png", "is not a regular file"),
        Skipped("outside", "is a link to a folder, which is not followed"),
        Skipped("pipe.png", "is not a regular file"),
    ]
    assert not any("s.png" in name for name in source.ids)


def test_unusable_folders(tmp_path):
    with pytest.raises(SourceError, match="does not exist; expected pictures or a folder"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="got an empty name"):
        open_source("")
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="is not a folder; expected pictures or a folder"):
        ImageFolder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"holds no pictures \(\.jpg"):
        open_source(str(tmp_path / "empty"))
    os.symlink("/nowhere.png", tmp_path / "empty" / "link.png")
    with pytest.raises(SourceError, match=r"'link\.png' is a link that leaves the folder"):
        open_source(str(tmp_path / "empty"))


def test_bad_pictures_are_skipped_by_name_and_reason(tmp_path):
    for index in range(3):
        save_picture(tmp_path / f"good{index}.png", size=(40 + index, 50))
    (tmp_path / "fake.jpg").write_text("text")
    save_picture(tmp_path / "tiny.png", size=(100, 15))
    whole = (tmp_path / "good0.png").read_bytes()
    (tmp_path / "gone.png").write_bytes(whole[:60])
    os.symlink("/outside.png", tmp_path / "link.png")

    images, skipped = load_images(ImageFolder(tmp_path), 32)
    assert images.ids == ["good0.png", "good1.png", "good2.png"]
    assert images.original_sizes == [(50, 40), (50, 41), (50, 42)]
    assert images.images.shape == (3, 32, 32, 3)
    assert [name for name, _ in skipped] == ["link.png", "fake.jpg", "gone.png", "tiny.png"]
    assert "no JPEG" in skipped[1].reason
    assert "its shorter side needs 16" in skipped[3].reason


def test_load_images_prepares_pictures_as_the_teacher_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images, _ = load_images(ImageFolder(tmp_path), 24)
    np.testing.assert_array_equal(images.images[0], crop_and_resize(pixels, 24))


def test_load_images_limit(tmp_path):
    (tmp_path / "a.png").write_text("text")
    for name in ("b.png", "c.png", "d.png"):
        save_picture(tmp_path / name)
    images, skipped = load_images(ImageFolder(tmp_path), 16, limit=2)
    assert images.ids == ["b.png", "c.png"]
    assert [name for name, _ in skipped] == ["a.png"]
    assert len(load_images(ImageFolder(tmp_path), 16, limit=99)[0]) == 3
    with pytest.raises(SourceError, match="at least 1"):
        load_images(ImageFolder(tmp_path), 16, limit=0)


def test_crops_are_cut_at_the_resolution_of_the_picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    save_picture(tmp_path / "small.png", size=(31, 80))
    crops = NativeCrops(side=32, per_picture=3, seed=5)
    images, skipped = load_images(ImageFolder(tmp_path), 32, crops=crops)

    assert len(images) == len(set(images.ids)) == 3
    for name, square in zip(images.ids, images.images, strict=True):
        left, top = (int(x) for x in name.removeprefix("a.png[32x32+").removesuffix("]").split("+"))
        np.testing.assert_array_equal(square, pixels[top : top + 32, left : left + 32])
    assert set(images.original_sizes) == {(60, 90)}
    assert [name for name, _ in skipped] == ["small.png"]
    assert "crops of 32 pixels need more" in skipped[0].reason

    # Each is decided by its picture's id and the seed, whatever else the folder holds.
    (tmp_path / "small.png").unlink()
    save_picture(tmp_path / "0.png", size=(40, 40))
    again, _ = load_images(ImageFolder(tmp_path), 16, crops=crops)
    assert [name for name in again.ids if name.startswith("a.png")] == images.ids
    other, _ = load_images(ImageFolder(tmp_path), 32, crops=NativeCrops(32, 3, seed=6))
    assert set(other.ids).isdisjoint(images.ids)


def test_a_picture_gives_no_crop_twice():
    assert sorted(NativeCrops(side=16, per_picture=9).corners("a", 17, 18)) == [
        (left, top) for left in range(3) for top in range(2)
    ]
    with pytest.raises(SourceError, match="at least one of each picture"):
        NativeCrops(side=16, per_picture=0)


def test_a_folder_of_bad_pictures_is_one_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("text")
    with pytest.raises(SourceError, match=r"none of the 2 pictures can be used.*b\.png"):
        load_images(ImageFolder(tmp_path), 16)


def test_image_set_checks_its_fields():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    sizes = [(4, 4), (4, 4)]
    assert len(ImageSet(images, ["a", "b"], sizes)) == 2
    with pytest.raises(ValueError, match="ids must be unique, got 'a' twice"):
        ImageSet(images, ["a", "a"], sizes)
    with pytest.raises(ValueError, match="got 1 ids and 2 sizes"):
        ImageSet(images, ["a"], sizes)
    with pytest.raises(ValueError, match=r"expected uint8 images \[n h w 3\], got float32"):
        ImageSet(images.astype(np.float32), ["a", "b"], sizes)
    with pytest.raises(ValueError, match="expected uint8 images"):
        ImageSet(images[0], ["a", "b"], sizes)


class FakeImage:
    pass


class FakeText:
    pass


def fake_tfds(features: dict, records: list) -> types.ModuleType:
    """What `TFDSImages` uses of tensorflow_datasets, over a list of records."""
    module = types.ModuleType("tensorflow_datasets")
    module.features = types.SimpleNamespace(Image=FakeImage)
    module.decode = types.SimpleNamespace(SkipDecoding=lambda: "encoded")
    module.calls = []

    def builder(name):
        if name == "unprepared":
            raise ModuleNotFoundError("No module named 'tensorflow'\nlong explanation")
        return types.SimpleNamespace(info=types.SimpleNamespace(features=features))

    def data_source(name, *, split, decoders):
        if split == "nosplit":
            raise ValueError("Unknown split 'nosplit'.")
        module.calls.append((name, split, decoders))
        return records

    module.builder, module.data_source = builder, data_source
    return module


def encoded_picture(width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 20), "blue").save(buffer, "PNG")
    return buffer.getvalue()


def test_tfds_source(monkeypatch):
    records = [
        {"picture": encoded_picture(30)},
        {"picture": b"broken"},
        {"picture": encoded_picture(40)},
    ]
    tfds = fake_tfds({"label": FakeText(), "picture": FakeImage()}, records)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", tfds)
    source = open_source("tfds:flowers/big:1.0.0:train[:3]")
    assert tfds.calls == [("flowers/big:1.0.0", "train[:3]", {"picture": "encoded"})]
    assert source.ids == [f"flowers/big:1.0.0:train[:3]:{index}" for index in range(3)]
    assert isinstance(source, ImageSource)
    with pytest.raises(ImageError, match=r"train\[:3\]:1"):
        source.load(1)
    images, skipped = load_images(source, 16)
    assert images.original_sizes == [(20, 30), (20, 40)]
    assert [name for name, _ in skipped] == ["flowers/big:1.0.0:train[:3]:1"]


@pytest.mark.parametrize(
    ("spec", "name", "split"),
    [
        ("tfds:flowers:train", "flowers", "train"),
        ("tfds:coco/2017:1.1.0:validation", "coco/2017:1.1.0", "validation"),
        ("tfds:flowers:train[10%:20%]+test[:5]", "flowers", "train[10%:20%]+test[:5]"),
    ],
)
def test_tfds_specs(monkeypatch, spec, name, split):
    tfds = fake_tfds({"image": FakeImage(), "mask": FakeImage()}, [{"image": encoded_picture(30)}])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", tfds)
    open_source(spec)
    assert tfds.calls == [(name, split, {"image": "encoded"})]


@pytest.mark.parametrize("spec", ["tfds:", "tfds:flowers", "tfds:flowers:", "tfds::train"])
def test_malformed_tfds_specs(spec):
    with pytest.raises(SourceError, match="expected tfds:NAME:SPLIT"):
        open_source(spec)


def test_tfds_errors(monkeypatch):
    pictures = [{"image": encoded_picture(30)}]
    tfds = fake_tfds({"image": FakeImage()}, pictures)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", tfds)
    with pytest.raises(SourceError, match="Unknown split 'nosplit'"):
        open_source("tfds:flowers:nosplit")
    with pytest.raises(SourceError, match="prepare the dataset once with TensorFlow") as caught:
        open_source("tfds:unprepared:train")
    assert "\n" not in str(caught.value)
    for features, found in (
        ({"text": FakeText()}, "none"),
        ({"a": FakeImage(), "b": FakeImage()}, "a, b"),
    ):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(features, pictures))
        with pytest.raises(SourceError, match=f"expected one image feature, found {found}"):
            open_source("tfds:flowers:train")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds({"image": FakeImage()}, []))
    with pytest.raises(SourceError, match="holds no pictures"):
        open_source("tfds:flowers:train")


def test_missing_tensorflow_datasets_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(SourceError, match=r'pip install "style-distil\[tfds\]"'):
        open_source("tfds:flowers:train")
