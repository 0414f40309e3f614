"""Damaged videos, as a command decodes them."""

import subprocess

import imageio_ffmpeg
import pytest
from attacks import Silent
from mutations import damaged_bytes

from student_jax.inference.video import open_video

pytestmark = pytest.mark.slow


def count_frames(path):
    with open_video(path) as (_, frames):
        return sum(1 for _ in frames)


# imageio-ffmpeg does not close its pipes when a video is at its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_videos(attack, tmp_path):
    clips = []
    for suffix in (".mkv", ".avi", ".webm", ".mp4"):
        clips.append(tmp_path / f"clip{suffix}")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "lavfi"]
        command += ["-i", "testsrc2=size=96x64:rate=25:duration=4", "-movflags", "faststart"]
        subprocess.run([*command, clips[-1]], check=True)
    whole = {clip: count_frames(clip) for clip in clips}

    def attempt(rng):
        clip = rng.choice(clips)
        copy = tmp_path / f"copy{clip.suffix}"
        copy.write_bytes(damaged_bytes(clip.read_bytes(), rng))
        frames = count_frames(copy)
        if frames < whole[clip]:
            raise Silent(f"{clip.name} gave {frames} of {whole[clip]} frames")

    attack(50, attempt)
