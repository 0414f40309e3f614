import dataclasses
import glob
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from student_jax.inference.command import stylise_files
from student_jax.inference.stylist import Stylist
from triplets import InputError, read_image

STYLIZE = Path(__file__).parents[3] / "scripts" / "stylize.py"


def results(config):
    return {path.name: read_image(path).shape for path in Path(config.out).iterdir()}


def test_folder_of_contents(files, capsys):
    stylise_files(files)
    assert results(files) == {"a--style.png": (60, 64, 3), "below_b--style.png": (64, 64, 3)}
    assert "2 pictures written" in capsys.readouterr().out


def test_a_bad_input_does_not_stop_the_others(files, capsys):
    content = files.content[0]
    Path(content, "broken.png").write_bytes(b"nothing")
    config = dataclasses.replace(files, content=(content, "missing.jpg", "no*.jpg"), json=True)
    with pytest.raises(InputError, match=r"3 of 5 failed; .* 'missing\.jpg' does not exist"):
        stylise_files(config)
    report = json.loads(capsys.readouterr().out)
    assert (report["written"], report["kept"], report["failed"]) == (2, 0, 3)
    written = next(r for r in report["results"] if r["content"].endswith("a.jpg"))
    assert (written["status"], written["width"], written["height"]) == ("written", 64, 60)
    assert Path(written["out"]).exists() and written["seconds"] > 0
    assert report["error"].startswith("3 of 5 failed")
    assert any("broken.png" in r["error"] for r in report["results"])


def test_a_name_too_long_for_its_result_does_not_stop_the_others(files, capsys):
    content = Path(files.content[0], "below", f"{'x' * 240}.png")
    Image.new("RGB", (64, 64)).save(content)
    with pytest.raises(InputError, match=r"1 of 3 failed; the first: cannot write .*too long"):
        stylise_files(dataclasses.replace(files, json=True))
    report = json.loads(capsys.readouterr().out)
    assert (report["written"], report["failed"], len(report["results"])) == (2, 1, 3)


@pytest.mark.parametrize("ended", [KeyboardInterrupt(), MemoryError()])
def test_json_comes_whatever_ends_the_command(files, capsys, monkeypatch, ended):
    """With what was done until then."""

    def plan(stylist, height, width, style):
        if height == 64:
            raise ended
        return original(stylist, height, width, style)

    original = Stylist.plan
    monkeypatch.setattr(Stylist, "plan", plan)
    with pytest.raises(type(ended)):
        stylise_files(dataclasses.replace(files, json=True))
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == 1 and report["error"] == f"{type(ended).__name__}."


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({"content": ("missing.jpg",)}, 1, "no usable content in 'missing.jpg'."),
        ({"checkpoint": "nowhere"}, 0, "not the workdir of a training run"),
        ({"checkpoint": "mini", "step": 5}, 0, '"mini" is a single student without step 5'),
    ],
)
def test_json_when_no_result_is_possible(files, capsys, changes, count, message):
    with pytest.raises(InputError) as error:
        stylise_files(dataclasses.replace(files, json=True, **changes))
    report = json.loads(capsys.readouterr().out)
    assert report["error"] == str(error.value) and message in report["error"]
    assert (report["written"], report["kept"], report["failed"]) == (0, 0, count)
    assert len(report["results"]) == count


def test_results_are_kept_unless_told_otherwise(files, capsys):
    Path(files.out).mkdir()
    old = Path(files.out, "a--style.png")
    Image.new("RGB", (2, 2)).save(old)
    stylise_files(files)
    assert read_image(old).shape == (2, 2, 3)
    assert "1 were there already" in capsys.readouterr().out
    stylise_files(dataclasses.replace(files, overwrite=True))
    assert read_image(old).shape == (60, 64, 3)


def test_patterns_mixtures_sizes_and_profiles(files):
    """JPEG by pattern, turned upright and smaller, with the profile of the content."""
    root = Path(files.out).parent
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = Image.new("RGB", (128, 96), "red")
    photo.getexif()[0x0112] = 6
    photo.save(root / "photo.jpg", exif=photo.getexif(), icc_profile=profile)
    style = files.style[0]
    Image.new("RGB", (64, 64), "green").save(root / "other.png")
    config = dataclasses.replace(
        files,
        content=(str(root / "ph*.jpg"),),
        style=(f"{style}:0.7", f"{root / 'other.png'}:0.3"),
        out=str(root / "new" / "{content}_{style}.webp"),
        size=64,
    )
    stylise_files(config)
    with Image.open(root / "new" / "photo_style+other.webp") as picture:
        assert picture.size == (64, 85) and picture.info["icc_profile"] == profile
        assert 0x0112 not in picture.getexif()


def test_mask_for_all_contents(files, capsys):
    root = Path(files.out).parent
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 32, 16))
    mask.save(root / "mask.png")
    config = dataclasses.replace(files, mask=str(root / "mask.png"), json=True)
    with pytest.raises(
        InputError, match=r"1 of 2 failed; .* the mask '.*mask\.png' has 32 x 32 px"
    ):
        stylise_files(config)
    (good,) = (r for r in json.loads(capsys.readouterr().out)["results"] if not r["error"])
    assert good["mask"] == str(root / "mask.png")
    lower = read_image(good["out"])[34:]  # of 64 rows; the edge is blurred
    assert (lower == 90).all()


def test_a_file_where_the_folder_should_be(files):
    Path(files.out).write_text("mine")
    with pytest.raises(InputError, match=r"cannot write '.*a--style\.png': its folder is a file"):
        stylise_files(files)
    assert Path(files.out).read_text() == "mine"


def test_masks_by_the_names_of_contents(files):
    masks = Path(files.out).parent / "masks"
    (masks / "below").mkdir(parents=True)
    Image.new("L", (64, 64), 0).save(masks / "below" / "b.jpg")
    config = dataclasses.replace(files, mask=str(masks))
    with pytest.raises(InputError, match=r"a\.jpg' has no mask; expected '.*masks/a\.png'"):
        stylise_files(config)
    assert (read_image(Path(files.out, "below_b--style.png")) == 90).all()
    content = (f"{files.content[0]}/below/b.png",)
    config = dataclasses.replace(
        config, content=content, out=str(masks / "below" / "{content}.jpg")
    )
    with pytest.raises(InputError, match=r"b\.jpg is one of the inputs"):
        stylise_files(config)


def test_standard_input_to_standard_output(files, tmp_path):
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(encoded, "PNG")
    command = [sys.executable, STYLIZE, "--checkpoint", files.checkpoint, "--content", "-"]
    command += ["--style", files.style[0], "--style-scale", "64", "--out", "-"]
    done = subprocess.run(command, input=encoded.getvalue(), capture_output=True, check=True)
    with Image.open(io.BytesIO(done.stdout)) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert b"1 pictures written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, ""),
        (["--strength", "3"], 2, "strength is 3.0; expected 0 to 1"),
        (["--content", "missing.jpg"], 1, "no usable content in 'missing.jpg'."),
    ],
)
def test_exit_status(files, arguments, status, message):
    command = [sys.executable, STYLIZE, "--checkpoint", files.checkpoint]
    if arguments:
        command += ["--content", files.content[0], "--style", files.style[0], "--out", files.out]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if arguments:
        assert message in " ".join((done.stdout + done.stderr).replace("│", " ").split())


def test_usage_that_cannot_work(files):
    style = files.style[0]
    for fields, message in (
        ({"style": (f"{style}:0.5", "b.jpg")}, r"expected all or none\."),
        ({"json": True, "out": "-"}, "both go to standard output"),
        ({"out": "{content}.gif"}, "a file or pattern that ends in"),
        ({"out": "result.tiff"}, "a file or pattern that ends in"),
        ({"out": "result.tiff", "content": ("*",)}, "a file or pattern that ends in"),
        ({"size": 0}, "size is 0"),
        ({"max_memory": float("inf")}, "max_memory is inf; expected a number of GiB"),
        ({"out": "out/a.mp4"}, r"expected a picture to end in \.png"),
        ({"out": "out/{content}.mp4"}, r"expected a picture to end in \.png"),
        ({"content": ("clip.mp4",), "out": "a.png"}, r"expected a video to end in \.mp4"),
        ({"content": ("clip.mp4",), "out": "-"}, "videos cannot go to standard output"),
        ({"content": ("*.mp4", "a.jpg"), "out": "-"}, "videos cannot go to standard output"),
        ({"out": "out/{foo}_{content}.png"}, r"out has \{foo\}; expected only \{content\} and"),
        ({"out": "out/{name}"}, r"out has \{name\}"),
        ({"out": ""}, "out is empty"),
        ({"content": ("",)}, "out is empty"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            dataclasses.replace(files, **fields)
        assert str(error.value).endswith(".")


def test_settings_are_checked_without_a_look_at_files(files, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the settings looked at files")

    for module, name in ((os, "stat"), (os, "scandir"), (os.path, "exists"), (glob, "glob")):
        monkeypatch.setattr(module, name, refuse)
    changed = {"content": ("photos/*", "a.jpg"), "style": ("a:0.5",), "out": "{content}.png"}
    config = dataclasses.replace(files, mask="mask.png", checkpoint="somewhere", **changed)
    monkeypatch.undo()
    assert config.content == ("photos/*", "a.jpg")


def test_videos_that_only_a_look_at_files_finds(files):
    clips = Path(files.out).parent / "clips"
    clips.mkdir()
    Path(clips, "clip.mp4").write_bytes(b"nothing")
    for out, message in (
        ("-", r"videos cannot go to standard output; expected a folder or file\."),
        ("{content}.png", r"out is '\{content\}\.png'; expected a video to end in \.mp4"),
    ):
        config = dataclasses.replace(files, content=(f"{clips}/*",), out=out)
        with pytest.raises(InputError, match=message):
            stylise_files(config)


def test_some_styles_with_weights_beside_a_file_that_looks_so(files, monkeypatch):
    monkeypatch.chdir(Path(files.out).parent)
    Path("scan 12:30").mkdir()
    Image.new("RGB", (64, 64), "green").save(Path("scan 12:30", "green.png"))
    stylise_files(dataclasses.replace(files, style=("scan 12:30",)))
    assert "a--green.png" in results(files)
    with pytest.raises(InputError, match=r"some styles have weights .* expected all or none\."):
        stylise_files(dataclasses.replace(files, style=("scan 12:30", "style.png:0.5")))


def test_mixtures_need_one_readable_picture_for_each_weight(files):
    style, root = files.style[0], Path(files.out).parent
    (root / "broken.png").write_bytes(b"nothing")
    (root / "two").mkdir()
    for name in ("x.png", "y.png"):
        Image.new("RGB", (64, 64)).save(root / "two" / name)
    for second, message in (
        (root / "broken.png", "one readable picture for each weight"),
        (root / "two", "one readable picture for each weight"),
        (style, "one readable picture for each weight"),
        (root / "missing.png", "a mixture needs all of its styles"),
    ):
        with pytest.raises(InputError, match=message):
            stylise_files(dataclasses.replace(files, style=(f"{style}:0.5", f"{second}:0.5")))


def test_each_content_is_decoded_once_and_each_result_planned_once(files, monkeypatch):
    root = Path(files.out).parent
    Image.new("RGB", (64, 64), "green").save(root / "other.png")
    Image.new("L", (64, 64), 255).save(root / "mask.png")
    config = dataclasses.replace(
        files,
        content=(f"{files.content[0]}/below/b.png",),
        style=(files.style[0], str(root / "other.png")),
        mask=str(root / "mask.png"),
    )
    opened, planned = [], []
    read, plan = Image.open, Stylist.plan
    monkeypatch.setattr(Image, "open", lambda file, **o: opened.append(file) or read(file, **o))
    monkeypatch.setattr(Stylist, "plan", lambda self, *a: planned.append(a[:2]) or plan(self, *a))
    first = stylise_files(config)
    assert sorted(Path(file).name for file in opened) == [
        *("b.png", "mask.png", "other.png", "style.png"),
    ]
    assert planned == [(64, 64)] * 2
    opened.clear()
    assert [result.status for result in stylise_files(config)] == ["kept", "kept"]
    assert sorted(Path(file).name for file in opened) == ["other.png", "style.png"]
    assert [result.status for result in first] == ["written", "written"]


def test_a_style_that_cannot_be_read(files):
    broken = Path(files.content[0]) / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no usable style"):
        stylise_files(dataclasses.replace(files, style=(str(broken),)))
