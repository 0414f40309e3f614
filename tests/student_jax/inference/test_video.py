import copy
import dataclasses
import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from student_jax.inference import video
from student_jax.inference.command import stylise_files
from student_jax.inference.inputs import VIDEO_SUFFIXES
from student_jax.inference.stylist import Stylist
from student_jax.inference.video import Smoother, open_video, stylise_video
from student_jax.inference.video_parts import Parts
from triplets import InputError


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


def _clip(path, *options):
    """A clip of 50 frames with sound, as ffmpeg writes it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "lavfi", "-i"]
    command += ["testsrc2=size=96x64:rate=25:duration=2", "-f", "lavfi", "-i"]
    command += ["sine=frequency=440:duration=2", *options, path]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("damage", ["cut", "hole"])
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".webm", ".mp4"])
def test_a_damaged_video_is_refused(tmp_path, suffix, damage):
    """It would otherwise be written with fewer frames, and nobody be told."""
    # The index comes first, so that nobody misses it where the end is cut off.
    options = ("-movflags", "faststart") if suffix == ".mp4" else ()
    clip = _clip(tmp_path / f"clip{suffix}", *options)
    encoded = clip.read_bytes()
    half = len(encoded) // 2
    damaged = {"cut": encoded[:half], "hole": encoded[:half] + bytes(3000) + encoded[half + 3000 :]}
    clip.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=r"cannot read the video.*damaged"), open_video(clip):
        pass


def test_a_damaged_video_is_a_failed_input(files):
    clip = _clip(Path(files.out).parent / "clip.mkv")
    clip.write_bytes(clip.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"1 of 1 failed.*damaged.*ended prematurely"):
        stylise_files(dataclasses.replace(files, content=(str(clip),)))
    assert not list((Path(files.out)).iterdir())


# imageio-ffmpeg does not close its pipes when a video is at its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_frames_may_be_at_any_time(tmp_path):
    """An uneven frame rate does not make a video a damaged one."""
    uneven = _clip(tmp_path / "uneven.mkv", "-vf", "select='not(mod(n,3))'", "-fps_mode", "vfr")
    with open_video(uneven) as (meta, frames):
        assert meta["size"] == (96, 64)
        assert len(list(frames)) > 40  # those that are missing are repeated


def test_a_playlist_is_no_video(tmp_path):
    """ffmpeg would open the files and addresses that a playlist names."""
    clip = _clip(tmp_path / "clip.mp4")
    playlist = clip.with_name("list.mp4")
    playlist.write_text(f"ffconcat version 1.0\nfile '{clip.name}'\n")
    with pytest.raises(InputError, match="cannot read the video"), open_video(playlist):
        pass


def _frames(path):
    with open_video(path) as (meta, frames):
        return meta, [np.frombuffer(frame, np.uint8) for frame in frames]


@pytest.fixture(scope="module")
def stylist(checkpoint):
    return Stylist.from_pretrained(checkpoint, style_scale=64)


@pytest.fixture(scope="module")
def style(stylist):
    return stylist.encode_style(np.random.default_rng(0).random((64, 64, 3), np.float32))


# imageio-ffmpeg does not close its pipes when a video is at its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_run_goes_on(stylist, style, tmp_path, monkeypatch):
    """With the same frames, each made once more at most; with another strength it starts anew."""
    clip = _clip(tmp_path / "clip.mp4", "-frames:v", "10", "-t", "0.4")
    monkeypatch.setattr(video, "PART", 4)
    whole, out = tmp_path / "whole.mp4", tmp_path / "out" / "result.mp4"
    out.parent.mkdir()
    stylise_video(stylist, clip, style, whole, smoothing=0.8)
    calls = []

    class Killed(Stylist):
        def __call__(self, *args, **options):
            calls.append(1)
            if len(calls) == 7:
                raise KeyboardInterrupt
            return super().__call__(*args, **options)

    killed = copy.copy(stylist)
    killed.__class__ = Killed
    with pytest.raises(KeyboardInterrupt):
        stylise_video(killed, clip, style, out, smoothing=0.8)
    (left,) = out.parent.iterdir()
    assert sorted(path.name for path in left.iterdir()) == ["000000.mp4", "state.npz"]
    state = (left / "state.npz").read_bytes()
    for damaged in (state[:1000], state[:-200] + bytes(200), b""):
        (left / "state.npz").write_bytes(damaged)
        assert not Parts(imageio_ffmpeg, out, left.name.split(".")[3], (96, 64), Fraction(25)).state
    (left / "state.npz").write_bytes(state)
    part = (left / "000000.mp4").read_bytes()
    (left / "000000.mp4").write_bytes(part[:-100])
    assert not Parts(imageio_ffmpeg, out, left.name.split(".")[3], (96, 64), Fraction(25)).state
    (left / "000000.mp4").write_bytes(part)
    stylise_video(killed, clip, style, out, smoothing=0.8, strength=0.5)
    assert len(calls) == 7 + 10
    made = stylise_video(killed, clip, style, out, smoothing=0.8)
    assert len(calls) == 7 + 10 + 6 and made.frames == 10 and made.kept == 4
    assert list(out.parent.iterdir()) == [out]
    np.testing.assert_array_equal(_frames(out)[1], _frames(whole)[1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_format_keeps_length_rate_and_sound(stylist, style, tmp_path, monkeypatch, suffix):
    rate = Fraction(24000, 1001)
    clip = _clip(tmp_path / "clip.mkv", "-r", str(rate), "-frames:v", "10")
    monkeypatch.setattr(video, "PART", 4)
    out = tmp_path / f"out{suffix}"
    stylise_video(stylist, clip, style, out)
    meta, frames = _frames(out)
    assert len(frames) == 10 and meta["fps"] == rate and meta["audio_codec"]


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
