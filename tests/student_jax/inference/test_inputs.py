import io
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from student_jax.inference import inputs
from student_jax.inference.inputs import (
    Input,
    find_inputs,
    kinds_by_name,
    looks_weighted,
    mask_file,
    split_weight,
)
from triplets import ImageError, InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    Image.new("RGB", (64, 60), "red").save(tmp_path / "a.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("L", (64, 64), 90).save(tmp_path / "below" / "b.png")
    (tmp_path / "clip.MP4").write_bytes(b"nothing")
    return tmp_path


def test_folders_patterns_files_and_videos(folder):
    found, unusable = find_inputs((str(folder), f"{folder}/*.MP4", "-"))
    assert [(one.id, one.kind) for one in found] == [
        ("a.jpg", "picture"),
        ("a.png", "picture"),
        ("below/b.png", "picture"),
        ("clip.MP4", "video"),
        ("stdin", "picture"),
    ]
    assert found[2].path == folder / "below" / "b.png" and found[2].label == str(found[2].path)
    assert not unusable


def test_what_is_named_twice_is_done_once(folder):
    twice, _ = find_inputs((str(folder / "a.jpg"), str(folder / "a*")))
    assert [one.id for one in twice] == ["a.jpg", "a.png"]


def test_unusable_inputs_come_with_a_sentence(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.png"
    elsewhere.touch()
    (folder / "link.png").symlink_to(elsewhere)
    _, unusable = find_inputs(("missing.jpg", "no*.jpg", str(folder)))
    assert [name for name, _ in unusable] == ["missing.jpg", "no*.jpg", "clip.MP4", "link.png"]
    messages = (
        "'missing.jpg' does not exist",
        "'no*.jpg' matches nothing",
        "'clip.MP4' is not a JPEG",  # videos are named one by one
        "'link.png' is a link",
    )
    for (_, error), message in zip(unusable, messages, strict=True):
        assert error.startswith(message)
    assert unusable[1].error.endswith(".") and unusable[2].error.endswith(".")


def test_kinds_by_name_alone():
    assert kinds_by_name(("no/a.jpg", "folder", "tfds:a:train[:5]", "-")) == {"picture"}
    assert kinds_by_name(("no/*.MP4", "clip.mov")) == {"video"}
    assert kinds_by_name(("no/*.jpg", "clip.mov")) == {"picture", "video"}
    assert kinds_by_name(("no/*", "no/a.*")) == {None}


def test_weights_of_styles(tmp_path):
    assert split_weight("a.jpg:0.7") == ("a.jpg", 0.7)
    assert split_weight("C:/a.jpg:.5") == ("C:/a.jpg", 0.5)
    assert split_weight("a.jpg") == ("a.jpg", None)
    assert split_weight("tfds:imagenette:5") == ("tfds:imagenette:5", None)
    assert looks_weighted("a.jpg:2") and not looks_weighted("a.jpg")
    assert not looks_weighted("tfds:imagenette:5")
    (tmp_path / "scan 12:30").touch()
    spec = str(tmp_path / "scan 12:30")
    assert looks_weighted(spec) and split_weight(spec) == (spec, None)


def test_masks_are_found_by_the_ids_of_contents(folder):
    masks = folder / "masks"
    (masks / "below").mkdir(parents=True)
    (masks / "below" / "b.jpg").touch()
    content = Input("below/b.png", "b.png")
    assert mask_file(content, masks) == masks / "below" / "b.jpg"
    assert mask_file(content, folder / "a.png") == folder / "a.png"
    with pytest.raises(InputError, match=r"'c' has no mask; expected '.*masks/c\.png' or another"):
        mask_file(Input("c.jpg", "c"), masks)


def test_pictures_come_smaller_and_with_their_colour_profile(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (128, 96), "red").save(tmp_path / "a.jpg", icc_profile=profile)
    Image.new("RGB", (128, 96), "red").save(tmp_path / "b.png")
    first, second = find_inputs((str(tmp_path),))[0]
    picture = first.load(48)
    assert picture.pixels.shape == (48, 64, 3) and picture.profile == profile
    assert second.load().pixels.shape == (96, 128, 3) and second.load().profile is None


class Stream:
    def __init__(self, encoded):
        self.buffer = io.BytesIO(encoded)


def test_standard_input(monkeypatch):
    encoded = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(encoded, "PNG")
    [stream], _ = find_inputs(("-",))
    monkeypatch.setattr("sys.stdin", Stream(encoded.getvalue()))
    assert stream.load().pixels.shape == (10, 20, 3)
    monkeypatch.setattr("sys.stdin", Stream(b"nothing"))
    with pytest.raises(ImageError, match="cannot read 'standard input'"):
        stream.load()
    monkeypatch.setattr(inputs, "MAX_FILE_BYTES", 2**20)
    monkeypatch.setattr("sys.stdin", Stream(bytes(2**20 + 1)))
    with pytest.raises(ImageError, match=r"standard input has more than 1 MiB\."):
        stream.load()


def test_a_file_that_has_gone():
    with pytest.raises(ImageError, match=r"cannot read 'gone\.png': No such file"):
        Input("gone.png", "gone.png", Path("gone.png")).load()


def test_a_name_that_no_file_can_have(folder):
    """The others are done."""
    long = f"{'x' * 300}.jpg"
    inputs, unusable = find_inputs((long, f"*{long}", str(folder)))
    assert inputs and [one.name for one in unusable[:1]] == [long]
    assert "too long" in unusable[0].error
