"""Stylising videos: frame by frame, with less flicker, and with the sound kept."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from student_jax.inference.pictures import Picture, mask_pixels, resize
from student_jax.inference.stylist import EncodedStyle, Stylist
from triplets import InputError, float_from_uint8, uint8_from_float

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")

STILL = 0.05
"""Change of a pixel's content, in [0, 1], at which the previous frame has lost most of its say."""


class Video(NamedTuple):
    """What was written."""

    frames: int
    height: int
    width: int
    flicker: float
    """Mean absolute change between frames where the content stands still, in [0, 1]."""
    flicker_before: float
    """The same without smoothing."""

    def __str__(self) -> str:
        return (
            f"{self.frames} frames of {self.width} x {self.height} px; flicker "
            f"{255 * self.flicker:.2f} grey levels, {255 * self.flicker_before:.2f} unsmoothed"
        )


class Smoother:
    """A running average over time that only still regions take part in.

    A pixel keeps the share smoothing * exp(-(change / STILL)^2) of its last result, where change is
    that of its content: moving things leave no trails.

    Args:
        smoothing: one share, or one for each pixel; 0 to below 1.
    """

    def __init__(self, smoothing: float | Float32[np.ndarray, "h w 1"]):
        self._smoothing = np.float32(smoothing)
        self._content = self._result = self._raw = None
        self._changes = {"before": [], "after": []}

    def __call__(
        self, content: Float32[np.ndarray, "h w 3"], stylised: Float32[np.ndarray, "h w 3"]
    ) -> Float32[np.ndarray, "h w 3"]:
        """The next frame, smoothed."""
        result = stylised
        if self._content is not None:
            change = np.abs(content - self._content).max(axis=-1, keepdims=True)
            keep = self._smoothing * np.exp(-((change / STILL) ** 2))
            result = stylised + keep * (self._result - stylised)
            still = change[..., 0] < STILL / 2
            if still.any():
                pairs = (("before", stylised, self._raw), ("after", result, self._result))
                for name, new, old in pairs:
                    self._changes[name].append(float(np.abs(new - old)[still].mean()))
        self._content, self._result, self._raw = content, result, stylised
        return result

    def flicker(self, name: str) -> float:
        """Mean absolute change of still pixels from frame to frame, "before" or "after"."""
        return float(np.mean(self._changes[name])) if self._changes[name] else 0.0


def stylise_video(
    stylist: Stylist,
    path: Path,
    style: EncodedStyle,
    out: Path,
    *,
    strength: float = 1.0,
    preserve_colour: bool = False,
    mask: Picture | None = None,
    smoothing: float = 0.5,
    size: int | None = None,
) -> Video:
    """Stylise every frame of a video; frame rate and sound stay. Needs imageio-ffmpeg.

    Args:
        mask: share of the effect that each pixel of every frame gets; see `pictures.mask_pixels`.
        smoothing: see `Smoother`.
        size: shorter side to which larger frames are reduced.

    Raises:
        InputError: imageio-ffmpeg is missing, the file is no readable video, or the mask does not
            suit it.
    """
    # It would start ffmpeg through os.fork, which JAX warns of because it may deadlock, to keep
    # Ctrl-C from ffmpeg. Ctrl-C may as well end both: an unfinished video is removed.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise InputError(
            'videos need imageio-ffmpeg: pip install "style-distil[video]".'
        ) from error
    count = 0
    with _opened(imageio_ffmpeg, path) as (meta, frames), _written_whole(out) as temporary:
        width, height = meta["size"]
        scale = 1.0 if size is None else min(1.0, size / min(width, height))
        # The codec halves the colour channels: sides must be even.
        shape = [max(2, 2 * round(side * scale / 2)) for side in (height, width)]
        share = None if mask is None else mask_pixels(mask, (*shape, 3))
        # What has no effect stays as the camera saw it.
        smoother = Smoother(smoothing if share is None else smoothing * share)
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (shape[1], shape[0]),
            fps=meta["fps"],
            quality=8,
            macro_block_size=2,
            audio_path=str(path) if meta.get("audio_codec") else None,
            audio_codec="aac",
        )
        writer.send(None)
        try:
            for frame in frames:
                pixels = np.frombuffer(frame, np.uint8).reshape(height, width, 3)
                content = resize(float_from_uint8(pixels), *shape)
                stylised = stylist(
                    content,
                    style,
                    strength,
                    preserve_colour=preserve_colour,
                    mask=None if share is None else share[..., 0],
                )
                writer.send(np.ascontiguousarray(uint8_from_float(smoother(content, stylised))))
                count += 1
        finally:
            writer.close()
    return Video(count, *shape, smoother.flicker("after"), smoother.flicker("before"))


@contextlib.contextmanager
def _opened(imageio_ffmpeg, path: Path) -> Iterator[tuple[dict, Iterator[bytes]]]:
    frames = imageio_ffmpeg.read_frames(str(path))
    try:
        meta = next(frames)
    except (OSError, StopIteration, RuntimeError, KeyError) as error:
        reason = str(error).strip().rpartition("\n")[-1]
        raise InputError(f"cannot read the video {str(path)!r}: {reason}") from error
    try:
        yield meta, frames
    finally:
        frames.close()


@contextlib.contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A file beside `out` that takes its place when the block ends without an error."""
    temporary = out.with_name(f".{secrets.token_hex(4)}{out.suffix}")
    try:
        yield temporary
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
