import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from flax import nnx
from PIL import Image, ImageCms

from student_jax import STTR
from student_jax.inference.command import (
    StyliseConfig,
    _expand,
    _jobs,
    _names,
    _place,
    stylise_files,
)
from student_jax.inference.video import Smoother
from student_jax.weights.folder import save_pretrained
from triplets import InputError, read_image

STYLIZE = Path(__file__).parents[3] / "scripts" / "stylize.py"


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    save_pretrained(STTR(tiny_model, rngs=nnx.Rngs(1)), folder)
    return str(folder)


@pytest.fixture
def files(checkpoint, tmp_path):
    """Two contents, one in a folder below, and a style."""
    (tmp_path / "content" / "below").mkdir(parents=True)
    Image.new("RGB", (64, 60), "red").save(tmp_path / "content" / "a.jpg")
    Image.new("L", (64, 64), 90).save(tmp_path / "content" / "below" / "b.png")
    Image.new("RGB", (600, 300), "blue").save(tmp_path / "style.png")
    return StyliseConfig(
        (str(tmp_path / "content"),),
        (str(tmp_path / "style.png"),),
        str(tmp_path / "out"),
        checkpoint=checkpoint,
        style_size=64,
    )


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
    command += ["--style", files.style[0], "--style-size", "64", "--out", "-"]
    done = subprocess.run(command, input=encoded.getvalue(), capture_output=True, check=True)
    with Image.open(io.BytesIO(done.stdout)) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert b"1 pictures written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, ""),
        (["--strength", "3"], 2, "strength is 3.0; expected 0 to 1"),
        (["--content", "missing.jpg"], 1, "no usable content in 'missing.jpg'"),
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
        ({"style": (f"{style}:0.5", "b.jpg")}, "expected all or none"),
        ({"json": True, "out": "-"}, "both go to standard output"),
        ({"out": "{content}.gif"}, "a file or pattern that ends in"),
        ({"out": "result.tiff"}, "a file or pattern that ends in"),
        ({"size": 0}, "size is 0"),
        ({"out": "out/a.mp4"}, r"expected a picture to end in \.png"),
        ({"out": "out/{content}.mp4"}, r"expected a picture to end in \.png"),
        ({"content": ("clip.mp4",), "out": "a.png"}, r"expected a video to end in \.mp4"),
        ({"content": ("clip.mp4",), "out": "-"}, "videos cannot go to standard output"),
        ({"out": "out/{foo}_{content}.png"}, r"out has \{foo\}; expected only \{content\} and"),
        ({"out": "out/{name}"}, r"out has \{name\}"),
        ({"out": ""}, "out is empty"),
        ({"content": ("",)}, "out is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(files, **fields)


def test_results_never_replace_inputs_or_each_other(files):
    contents, _ = _expand(files.content)
    paths = {content.path for content in contents}
    pattern = dataclasses.replace(files, out=f"{files.content[0]}/{{content}}.jpg")
    with pytest.raises(InputError, match=r"a\.jpg is one of the inputs"):
        _jobs(pattern, contents, ["style"], paths)
    single = dataclasses.replace(files, out="one.png")
    with pytest.raises(InputError, match=r"would both be one\.png"):
        _jobs(single, contents, ["style"], paths)


def test_names_of_results(files):
    content = Path(files.content[0])
    Image.new("RGB", (64, 64)).save(content / "a.png")
    assert _names(_expand(files.content)[0]) == ["a.jpg", "a.png", "below_b.png"]
    twice, _ = _expand((str(content / "a.jpg"), str(content / "a*")))
    assert [one.id for one in twice] == ["a.jpg", "a.png"]  # named twice, done once
    assert _place("out", "a", "s", video=False) == Path("out/a--s.png")
    assert _place("o/{style}/{content}.webp", "a", "s", video=False) == Path("o/s/a.webp")
    assert _place("{content}.png", "a", "s", video=True) == Path("a.mp4")


def test_a_style_that_cannot_be_read(files):
    broken = Path(files.content[0]) / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no usable style"):
        stylise_files(dataclasses.replace(files, style=(str(broken),)))


def test_video_keeps_length_rate_size_and_sound(files, monkeypatch, recwarn):
    root = Path(files.out).parent
    silent, clip = root / "silent.mp4", root / "clip.mp4"
    monkeypatch.setenv("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    writer = imageio_ffmpeg.write_frames(str(silent), (64, 64), fps=8, macro_block_size=2)
    writer.send(None)
    for i in range(6):
        frame = np.full((64, 64, 3), 80, np.uint8)
        frame[8 * i : 8 * i + 8] = 200
        writer.send(frame)
    writer.close()
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", silent]
    ffmpeg += ["-f", "lavfi", "-i", "sine=frequency=440:duration=0.75", "-shortest", clip]
    subprocess.run(ffmpeg, check=True)
    monkeypatch.delenv("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT")
    Image.new("L", (32, 32), 0).save(root / "nothing.png")
    mask = str(root / "nothing.png")
    stylise_files(dataclasses.replace(files, content=(str(clip),), mask=mask))
    assert not [w for w in recwarn if "os.fork" in str(w.message)]
    reader = imageio_ffmpeg.read_frames(str(root / "out" / "clip--style.mp4"))
    meta = next(reader)
    assert meta["size"] == (64, 64) and meta["fps"] == 8 and meta.get("audio_codec")
    frames = [np.frombuffer(frame, np.uint8).reshape(64, 64, 3) for frame in reader]
    assert len(frames) == 6
    for i, frame in enumerate(frames):  # the mask leaves them alone; encoded twice
        expected = np.full(64, 80)
        expected[8 * i : 8 * i + 8] = 200
        assert np.abs(frame.mean(axis=(1, 2)) - expected).mean() < 6
    assert [path.name for path in (root / "out").iterdir()] == ["clip--style.mp4"]
    clip.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read the video"):
        stylise_files(dataclasses.replace(files, content=(str(clip),), overwrite=True))


def test_smoothing_steadies_what_stands_still_only():
    """A still content whose stylised frames jitter, then one that changes everywhere."""
    rng = np.random.default_rng(0)
    content = np.full((8, 8, 3), 0.5, np.float32)
    smoother = Smoother(0.8)
    for _ in range(30):
        smoother(content, rng.random((8, 8, 3), np.float32))
    # A running average y' = 0.8 y + 0.2 x of noise changes by 0.2 (x - y): about a sixth.
    assert smoother.flicker("after") < 0.5 * smoother.flicker("before")
    partly = Smoother(np.float32([[[0.8]], [[0]]]).repeat(4, 0).repeat(8, 1))
    first, second = rng.random((2, 8, 8, 3), np.float32)
    partly(content, first)
    result = partly(content, second)
    np.testing.assert_allclose(result[:4], 0.8 * first[:4] + 0.2 * second[:4], atol=1e-6)
    np.testing.assert_array_equal(result[4:], second[4:])
    moved = rng.random((8, 8, 3), np.float32)
    np.testing.assert_allclose(smoother(1 - content / 5, moved), moved, atol=1e-5)
