"""Stylising videos: frame by frame, with less flicker, and with the sound kept."""

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from student_jax.inference.pictures import PictureLike, mask_pixels, resize
from student_jax.inference.stylist import EncodedStyle, Stylist
from triplets import InputError, float_from_uint8, uint8_from_float
from triplets.atomic import atomic_path

STILL = 0.05
"""Change of a pixel's content, in [0, 1], at which the previous frame's share has fallen to 1/e."""


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
    """A running average over time, of still regions only.

    A pixel keeps the share smoothing * exp(-(change / STILL)^2) of its previous result. The change
    is that of its content, so that moving things leave no trails.

    Args:
        smoothing: one share for all pixels, or one per pixel; 0 to below 1.
    """

    def __init__(self, smoothing: float | Float32[np.ndarray, "h w 1"]):
        self._smoothing = np.float32(smoothing)
        self._content = self._result = self._raw = None
        self._changes: dict[str, list[float]] = {"before": [], "after": []}

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

    def flicker(self, when: Literal["before", "after"]) -> float:
        """Mean absolute change of still pixels from frame to frame, before or after smoothing."""
        return float(np.mean(self._changes[when])) if self._changes[when] else 0.0


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
        InputError: imageio-ffmpeg is missing, the file is not a readable video, or the mask does
            not suit it.
        OSError: the result cannot be written.
    """
    ffmpeg = _imageio_ffmpeg()
    count = 0
    with _opened(ffmpeg, path) as (meta, frames), atomic_path(out) as temporary:
        width, height = meta["size"]
        scale = 1.0 if size is None else min(1.0, size / min(width, height))
        # The codec halves the colour channels: sides must be even.
        shape = [max(2, 2 * round(side * scale / 2)) for side in (height, width)]
        share = None if mask is None else mask_pixels(mask, (*shape, 3))
        # Pixels that the mask leaves out are not smoothed either.
        smoother = Smoother(smoothing if share is None else smoothing * share)
        writer = ffmpeg.write_frames(
            str(temporary),
            (shape[1], shape[0]),
            fps=meta["fps"],
            quality=8,
            macro_block_size=2,
            audio_path=str(path) if meta.get("audio_codec") else None,
            audio_codec="aac",
        )
        writer.send(None)
        with contextlib.closing(writer):
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
    return Video(count, *shape, smoother.flicker("after"), smoother.flicker("before"))


def _imageio_ffmpeg() -> ModuleType:
    # To keep Ctrl-C from ffmpeg, it would start it through os.fork, which JAX warns may deadlock.
    # Ctrl-C may as well end both: an unfinished video is removed.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise InputError(
            'videos need imageio-ffmpeg: pip install "style-distil[video]".'
        ) from error
    return imageio_ffmpeg


@contextlib.contextmanager
def _opened(
    ffmpeg: ModuleType, path: Path
) -> Iterator[tuple[dict[str, Any], Generator[bytes, None, None]]]:
    """What a video's header says, and its frames."""
    frames = ffmpeg.read_frames(str(path))
    try:
        meta = next(frames)
    except (OSError, StopIteration, RuntimeError, KeyError) as error:
        # The last line of what ffmpeg prints is the reason.
        reason = str(error).strip().rpartition("\n")[-1].rstrip(".") or type(error).__name__
        raise InputError(f"cannot read the video {str(path)!r}: {reason}.") from error
    with contextlib.closing(frames):
        yield meta, frames
