"""A video that is made in parts, so that a killed run loses little."""

import contextlib
import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Generator, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from triplets import InputError
from triplets.atomic import atomic_path, atomic_write


class Codecs(NamedTuple):
    """How a format holds pictures and sound, in ffmpeg's words."""

    picture: str | None
    """None: H.264, by whichever encoder there is."""
    quality: int | None
    options: tuple[str, ...]
    """For the encoder of pictures."""
    sound: str


# Without frames that refer to later ones (-bf), whose delay would differ from part to part: such
# parts cannot be joined evenly.
_H264 = Codecs(None, 8, ("-bf", "0"), "aac")
_VP9 = Codecs("libvpx-vp9", None, ("-crf", "24", "-b:v", "0", "-cpu-used", "4"), "libopus")

# AVI has no place for the silence with which encoders of sound begin, and would repeat a frame.
_CODECS = {".webm": _VP9, ".avi": _H264._replace(sound="pcm_s16le")}


class Parts:
    """The encoded parts of a video, in a hidden folder beside its file until all are there.

    Args:
        ffmpeg: the module imageio_ffmpeg.
        out: the file of the video; the suffix chooses its format.
        key: differs for videos that differ. What an earlier run with the same key left is kept.
        size: width and height in pixels, both even.
        fps: frames per second.
    """

    def __init__(
        self, ffmpeg: ModuleType, out: Path, key: str, size: tuple[int, int], fps: Fraction
    ):
        self._ffmpeg, self._out, self._size, self._fps = ffmpeg, out, size, fps
        self._folder = out.with_name(f".{out.name}.{key[:16]}.parts")
        self._codecs = _CODECS.get(out.suffix.lower(), _H264)
        self._checksums: list[str] = []
        self.state: dict[str, np.ndarray] = {}
        """What an earlier run gave to `finish` last; empty if there was none."""
        try:
            with np.load(self._state_file) as file:
                state = dict(file)
            checksums = state.pop("parts").tolist()
            whole = [self._checksum(i) for i in range(len(checksums))] == checksums
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return  # nothing there, or damaged: all parts are made anew
        if whole:  # ffmpeg would join damaged parts to a shorter video
            self.state, self._checksums = state, checksums

    @contextlib.contextmanager
    def part(self) -> Iterator[Generator[None, Any, None]]:
        """A writer for the frames of the next part: send it [h w 3] of uint8.

        Raises:
            OSError: it cannot be written.
        """
        self._folder.mkdir(exist_ok=True)
        index = len(self._checksums)
        with atomic_path(self._file(index)) as temporary:
            writer = self._ffmpeg.write_frames(
                str(temporary),
                self._size,
                fps=self._fps,
                codec=self._codecs.picture,
                quality=self._codecs.quality,
                output_params=list(self._codecs.options),
                macro_block_size=2,
            )
            writer.send(None)
            with contextlib.closing(writer):
                yield writer
        self._checksums.append(self._checksum(index))

    def finish(self, state: Mapping[str, Any]) -> None:
        """Note that the last part is whole, and what the work needs to go on from there."""
        with atomic_write(self._state_file) as file:
            np.savez(file, parts=np.array(self._checksums), **state)

    def join(self, sound_of: Path | None, options: list[str]) -> None:
        """Make one file of all parts, with the sound of another one, and remove them.

        Args:
            sound_of: a file with sound.
            options: for ffmpeg, to read it.

        Raises:
            InputError: ffmpeg cannot write that.
        """
        names = self._folder / "parts.txt"
        names.write_text(
            "".join(f"file '{self._file(i).name}'\n" for i in range(len(self._checksums)))
        )
        command = [self._ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-v", "error"]
        command += ["-f", "concat", "-i", f"file:{names}"]
        if sound_of is not None:
            command += [*options, "-i", f"file:{sound_of}", "-map", "0:v:0", "-map", "1:a:0"]
            command += ["-c:a", self._codecs.sound]
        with atomic_path(self._out) as temporary:
            done = subprocess.run(
                [*command, "-c:v", "copy", "-r", str(self._fps), f"file:{temporary}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            if done.returncode:
                reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[-1]
                raise InputError(f"cannot write {str(self._out)!r}: {reason.rstrip('.')}.")
        shutil.rmtree(self._folder)

    @property
    def _state_file(self) -> Path:
        return self._folder / "state.npz"

    def _checksum(self, i: int) -> str:
        with self._file(i).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _file(self, i: int) -> Path:
        # MP4, whatever the result's format: it keeps the times of all frame rates.
        return self._folder / f"{i:06d}.mp4"
