"""Stylising videos: frame by frame, with less flicker, and with the sound kept."""

import contextlib
import hashlib
import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from student_jax.inference.pictures import PictureLike, mask_pixels, resize
from student_jax.inference.stylist import EncodedStyle, Stylist
from student_jax.inference.video_parts import Parts
from triplets import InputError, float_from_uint8, uint8_from_float

STILL = 0.05
"""Change of a pixel's content, in [0, 1], at which the previous frame's share has fallen to 1/e."""

PART = 50
"""Frames that are encoded and kept together: so many at most are lost when a run is killed."""

# A file is taken for one of these containers or refused: others, such as playlists, name further
# files and addresses, which ffmpeg would open.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
_INPUT_OPTIONS = ["-format_whitelist", _CONTAINERS, "-protocol_whitelist", "file,pipe"]


class Video(NamedTuple):
    """What was written."""

    frames: int
    height: int
    width: int
    flicker: float
    """Mean absolute change between frames where the content stands still, in [0, 1]."""
    flicker_before: float
    """The same without smoothing."""
    kept: int
    """Frames that an earlier run made."""

    def __str__(self) -> str:
        kept = f", {self.kept} of them made by an earlier run" if self.kept else ""
        return (
            f"{self.frames} frames of {self.width} x {self.height} px{kept}; flicker "
            f"{255 * self.flicker:.2f} grey levels, {255 * self.flicker_before:.2f} unsmoothed"
        )


class Smoother:
    """A running average over time, of still regions only.

    A pixel keeps the share smoothing * exp(-(change / STILL)^2) of its previous result. The change
    is that of its content, so that moving things leave no trails.

    Args:
        smoothing: one share for all pixels, or one per pixel; 0 to below 1.
    """

    def __init__(self, smoothing: float | Float32[np.ndarray, "h w 1"]):
        self._smoothing = np.float32(smoothing)
        self.state: dict[str, np.ndarray] = {}
        """The last frame, and sums of changes until then; another smoother can go on from it."""

    def __call__(
        self, content: Float32[np.ndarray, "h w 3"], stylised: Float32[np.ndarray, "h w 3"]
    ) -> Float32[np.ndarray, "h w 3"]:
        """The next frame, smoothed."""
        result = stylised
        sums = np.zeros(3)
        if self.state:
            old, sums = self.state, self.state["sums"]
            change = np.abs(content - old["content"]).max(axis=-1, keepdims=True)
            keep = self._smoothing * np.exp(-((change / STILL) ** 2))
            result = stylised + keep * (old["result"] - stylised)
            still = change[..., 0] < STILL / 2
            if still.any():
                pairs = ((stylised, old["stylised"]), (result, old["result"]))
                before, after = (np.abs(new - old)[still].mean() for new, old in pairs)
                sums = sums + np.array([before, after, 1])
        self.state = {"content": content, "stylised": stylised, "result": result, "sums": sums}
        return result

    def flicker(self, when: Literal["before", "after"]) -> float:
        """Mean absolute change of still pixels from frame to frame, before or after smoothing."""
        before, after, count = self.state.get("sums", np.zeros(3))
        return float((before if when == "before" else after) / max(count, 1))


def stylise_video(
    stylist: Stylist,
    path: Path,
    style: EncodedStyle,
    out: Path,
    *,
    strength: float = 1.0,
    preserve_colour: bool = False,
    mask: PictureLike | None = None,
    smoothing: float = 0.5,
    size: int | None = None,
) -> Video:
    """Stylise every frame of a video; its frame rate and sound are kept. Needs imageio-ffmpeg.

    What is done is kept in a hidden folder beside `out`. If the run is killed, the same call goes
    on from there, with the same result.

    Args:
        stylist: the student.
        path: the video.
        style: the style of all frames.
        out: file of the result; the suffix chooses its format.
        strength: see `Stylist`.
        preserve_colour: see `Stylist`.
        mask: share of the effect that each pixel of every frame gets; see `pictures.mask_pixels`.
        smoothing: see `Smoother`.
        size: shorter side in pixels to which larger frames are reduced.

    Raises:
        InputError: imageio-ffmpeg is missing, the file is not a readable video or a damaged one, or
            the mask does not suit it.
        OSError: the result cannot be written.
    """
    ffmpeg = _imageio_ffmpeg()
    with open_video(path) as (meta, frames):
        width, height = meta["size"]
        scale = 1.0 if size is None else min(1.0, size / min(width, height))
        # The codec halves the colour channels: sides must be even.
        shape = [max(2, 2 * round(side * scale / 2)) for side in (height, width)]
        share = None if mask is None else mask_pixels(mask, (*shape, 3))
        # Pixels that the mask leaves out are not smoothed either.
        smoother = Smoother(smoothing if share is None else smoothing * share)
        settings = (strength, preserve_colour, smoothing, shape, share)
        key = _sha256(path, stylist.fingerprint(), style, settings)
        parts = Parts(ffmpeg, out, key, (shape[1], shape[0]), meta["fps"])
        smoother.state = dict(parts.state)
        count = kept = int(smoother.state.pop("frames", 0))
        frames = itertools.islice(frames, kept, None)
        with tqdm(
            desc=path.name,
            initial=kept,
            total=round(meta["fps"] * meta["duration"]) or None,
            unit="frame",
            leave=False,
            disable=None,
        ) as bar:
            for first in frames:
                with parts.part() as writer:
                    for frame in itertools.chain([first], itertools.islice(frames, PART - 1)):
                        pixels = np.frombuffer(frame, np.uint8).reshape(height, width, 3)
                        content = resize(float_from_uint8(pixels), *shape)
                        stylised = stylist(
                            content,
                            style,
                            strength,
                            preserve_colour=preserve_colour,
                            mask=None if share is None else share[..., 0],
                        )
                        smooth = smoother(content, stylised)
                        writer.send(np.ascontiguousarray(uint8_from_float(smooth)))
                        count += 1
                        bar.update()
                parts.finish({"frames": count, **smoother.state})
    if not count:
        raise InputError(f"cannot read the video {str(path)!r}: it has no frames.")
    parts.join(path if meta.get("audio_codec") else None, _INPUT_OPTIONS)
    return Video(count, *shape, smoother.flicker("after"), smoother.flicker("before"), kept)


def _sha256(path: Path, *values: Any) -> str:
    """Of a file's bytes, and of all numbers, arrays and words in nested tuples and lists."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for leaf in jax.tree.leaves(values):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _imageio_ffmpeg() -> ModuleType:
    # To keep Ctrl-C from ffmpeg, it would start it through os.fork, which JAX warns may deadlock.
    # Ctrl-C may as well end both: an unfinished part is removed.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise InputError(
            'videos need imageio-ffmpeg: pip install "style-distil[video]".'
        ) from error
    return imageio_ffmpeg


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[tuple[dict[str, Any], Iterator[bytes]]]:
    """What a video's header says, as imageio-ffmpeg reads it, and its frames; "fps" is a fraction.

    The whole video is decoded once before, because a damaged one gives fewer frames or other ones.

    Raises:
        InputError: imageio-ffmpeg is missing, or the file is not a video or a damaged one.
    """
    ffmpeg = _imageio_ffmpeg()
    with _readable(path):
        complaint = _first_complaint(ffmpeg, path)
    if complaint:
        raise InputError(
            f"cannot read the video {str(path)!r}, which is damaged or in another format: "
            f"{complaint}; repair it, for example with ffmpeg -i {path.name} repaired.mp4."
        )
    frames = ffmpeg.read_frames(f"file:{path}", input_params=_INPUT_OPTIONS)
    with _readable(path):
        meta = next(frames)
    if not meta["fps"]:
        raise InputError(f"cannot read the video {str(path)!r}: it has no frame rate.")
    meta["fps"] = _exact_rate(meta["fps"])

    def read() -> Iterator[bytes]:
        while True:
            with _readable(path):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    with contextlib.closing(frames):
        yield meta, read()


def _exact_rate(fps: float) -> Fraction:
    """The rate that is printed with two digits: 24000/1001 for 23.98, with which sound drifts."""
    ntsc = Fraction(1000 * round(fps), 1001)
    is_ntsc = fps != round(fps) and abs(fps - ntsc) < 0.005
    return ntsc if is_ntsc else Fraction(fps).limit_denominator(100)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # imageio-ffmpeg parses what ffmpeg prints, and so raises anything
        # The last line of what ffmpeg prints is the reason.
        reason = str(error).strip().rpartition("\n")[-1].rstrip(".") or type(error).__name__
        raise InputError(f"cannot read the video {str(path)!r}: {reason}.") from error


def _first_complaint(ffmpeg: ModuleType, path: Path) -> str:
    """What is first found to be wrong with a video, without a full stop; empty if nothing is."""
    if not _chunks_follow_each_other(path):
        return "a part of the file is missing"
    command = [ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *_INPUT_OPTIONS]
    command += ["-i", f"file:{path}", "-sn", "-dn", "-f", "null", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        line = process.stderr.readline(1000).decode(errors="replace")
        process.kill()
    # Without the name and the address of the decoder, as in "[h264 @ 0x55e08fe7c180] ".
    return re.sub(r"^\[[^]]* @ [^]]*\] ", "", line.strip()).rstrip(".")


def _chunks_follow_each_other(path: Path) -> bool:
    """Whether the chunks of an AVI file lead from one to the next to its end; true of all others.

    ffmpeg searches for the next chunk in silence where one should be, and so drops frames. A chunk
    of RIFF is an identifier of four letters, the number of the bytes that follow, little-endian,
    and these bytes, padded to an even number; those of RIFF and LIST are chunks after four letters.
    """
    length, position, end = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while position < length:
            file.seek(position)
            head = file.read(8)
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if name == b"RIFF":
                end = position + 8 + size
            if position >= end:
                return True  # what comes after the last RIFF is of no concern
            if len(head) < 8 or not name.decode("latin-1").isprintable() or end > length:
                return False
            position += 12 if name in (b"RIFF", b"LIST") else 8 + size + size % 2
    return position <= length + 1
