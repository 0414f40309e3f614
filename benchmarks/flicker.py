"""Flicker of stylised videos, with and without smoothing over time.

    python benchmarks/flicker.py
    python benchmarks/flicker.py --videos vtest.avi cup.mp4 bikes.mp4  # opencv-python-headless

Flicker is what remains between a frame and the previous one moved along with it: the warping error
of Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018, section 4, here as the mean
absolute difference in grey levels.

By default the clips are not filmed: each is a photograph seen by a camera that stands still, moves
slowly or zooms, with noise as of a sensor. So the motion is known. "off" is the mean absolute
difference from the stylised frame of a camera without noise: it grows where smoothing leaves
trails.

The motion of --videos is estimated on the content, by OpenCV's DIS optical flow in both directions.
Pixels where the two disagree, as where something comes into view or the scene changes, are not
judged; "judged" is the share of the others. "off" is the mean absolute difference of all pixels
from the frame without smoothing.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from PIL import Image

from student_jax.inference.pictures import resize
from student_jax.inference.stylist import Stylist
from student_jax.inference.video import Smoother, open_video
from triplets import float_from_uint8, read_image
from triplets.bundled import SAMPLES

MARGIN = 16
"""Pixels from the border that are not judged: the previous frame may not have seen them."""


class Camera(NamedTuple):
    """Motion from frame to frame."""

    name: str
    pan: tuple[float, float]
    """Right and down, in pixels."""
    zoom: float
    """Factor by which the view shrinks."""


CAMERAS = (
    Camera("still", (0, 0), 1),
    Camera("pan of 1/2 px a frame", (0.5, 0.2), 1),
    Camera("pan of 2 px a frame", (2, 0.7), 1),
    Camera("zoom of 0.3 % a frame", (0, 0), 0.997),
)


class View(NamedTuple):
    """What a frame shows: pixel (x, y) shows (left + scale * x, top + scale * y) of the photo."""

    left: float
    top: float
    scale: float

    def seen_from(self, other: "View") -> "View":
        """Where this frame's pixels are in another frame."""
        left, top = (self.left - other.left) / other.scale, (self.top - other.top) / other.scale
        return View(left, top, self.scale / other.scale)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    checkpoint: str = "mini"
    contents: tuple[str, ...] = ("coffee", "eilean_donan_castle")
    styles: tuple[str, ...] = ("van_gogh_harvest", "van_gogh_cafe_terrace_at_night")
    videos: tuple[Path, ...] = ()
    """Clips to measure instead of moving photographs: their first frames."""
    frames: int = 12
    side: int = 256
    """Of the photographs' clips, or the shorter side of the videos (px)."""
    noise: float = 2.0
    """Standard deviation in grey levels."""
    smoothing: tuple[float, ...] = (0.0, 0.5, 0.8)


def main(config: Config) -> None:
    """Measure all, and print a table."""
    if config.videos:
        _measure_videos(config)
    else:
        _measure_photos(config)


def _measure_videos(config: Config) -> None:
    stylist, styles = _stylist(config)
    head = [f"{x:g} | off" for x in config.smoothing]
    print(f"| clip | judged | content | {' | '.join(head)} |")
    print(f"| --- | --- | --- |{' --- | --- |' * len(config.smoothing)}")
    for path in config.videos:
        frames = _film(path, config)
        motions = [Motion.between(*pair) for pair in itertools.pairwise(frames)]
        figures = []
        for style in styles:
            results = [stylist(frame, style) for frame in frames]
            row = [_remaining(frames, motions)]
            for share in config.smoothing:
                smoother = Smoother(share)
                smooth = [smoother(*pair) for pair in zip(frames, results, strict=True)]
                row += [
                    _remaining(smooth, motions),
                    255 * np.abs(np.subtract(smooth, results)).mean(),
                ]
            figures.append(row)
        judged = np.mean([motion.visible.mean() for motion in motions])
        row = " | ".join(f"{x:.2f}" for x in np.mean(figures, 0))
        print(f"| {path.stem} | {judged:.0%} | {row} |", flush=True)


class Motion(NamedTuple):
    """Where the pixels of a frame were in the previous one."""

    position: np.ndarray
    """[h w 2]: right and down, in pixels."""
    visible: np.ndarray
    """[h w] of bool: whether the pixel was seen then, inside of the margin."""

    @classmethod
    def between(cls, old, new) -> "Motion":
        """As the optical flow of two frames says it.

        A pixel was seen if the way back leads to where it came from, by the tolerance of Sundaram
        et al., "Dense Point Trajectories by GPU-Accelerated Large Displacement Optical Flow",
        ECCV 2010, section 3.
        """
        import cv2

        estimate = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc
        grey = [
            cv2.cvtColor(np.rint(255 * x).astype(np.uint8), cv2.COLOR_RGB2GRAY) for x in (old, new)
        ]
        back, forth = estimate(grey[1], grey[0], None), estimate(grey[0], grey[1], None)
        height, width = grey[0].shape
        here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
        position = (here + back).astype(np.float32)
        returned = cv2.remap(forth, position, None, cv2.INTER_LINEAR)
        error, length = (
            (flow**2).sum(axis=-1) for flow in (back + returned, np.hypot(back, returned))
        )
        visible = np.zeros((height, width), bool)
        inside = (slice(MARGIN, -MARGIN),) * 2
        visible[inside] = (error < 0.01 * length + 0.5)[inside]
        return cls(position, visible)

    def moved(self, old):
        """The previous frame moved along."""
        import cv2

        return cv2.remap(old, self.position, None, cv2.INTER_CUBIC).clip(0, 1)


def _film(path: Path, config: Config) -> list:
    """The first frames of a clip, [h w 3] in [0, 1]."""
    with open_video(path) as (meta, frames):
        width, height = meta["size"]
        scale = min(1.0, config.side / min(width, height))
        return [
            resize(
                float_from_uint8(np.frombuffer(frame, np.uint8).reshape(height, width, 3)),
                round(scale * height),
                round(scale * width),
            )
            for frame in itertools.islice(frames, config.frames)
        ]


def _remaining(frames, motions: list[Motion]) -> float:
    pairs = zip(itertools.pairwise(frames), motions, strict=True)
    return 255 * np.mean(
        [
            np.abs(new - motion.moved(old))[motion.visible].mean()
            for (old, new), motion in pairs
            if motion.visible.any()
        ]
    )


def _stylist(config: Config):
    """The student, and the encoded styles."""
    stylist = Stylist.from_pretrained(config.checkpoint)
    styles = [stylist.encode_style(SAMPLES / "style" / f"{name}.jpg") for name in config.styles]
    return stylist, styles


def _measure_photos(config: Config) -> None:
    stylist, styles = _stylist(config)
    head = [f"{x:g} | off" for x in config.smoothing]
    print(f"| camera | content | {' | '.join(head)} |")
    print(f"| --- | --- |{' --- | --- |' * len(config.smoothing)}")
    for camera in CAMERAS:
        figures = []
        for name in config.contents:
            photo = float_from_uint8(read_image(SAMPLES / "content" / f"{name}.jpg"))
            views = _views(camera, photo, config)
            clean = [_look(photo, view, config.side) for view in views]
            rng = np.random.default_rng(0)
            noisy = [_expose(frame, config.noise, rng) for frame in clean]
            for style in styles:
                row = [_flicker(noisy, views)]
                results = [stylist(frame, style) for frame in noisy]
                wanted = [stylist(frame, style) for frame in clean]
                for share in config.smoothing:
                    smoother = Smoother(share)
                    smooth = [smoother(*pair) for pair in zip(noisy, results, strict=True)]
                    off = np.mean([_difference(*x) for x in zip(smooth, wanted, strict=True)])
                    row += [_flicker(smooth, views), off]
                figures.append(row)
        print(f"| {camera.name} | {' | '.join(f'{x:.2f}' for x in np.mean(figures, 0))} |")


def _views(camera: Camera, photo, config: Config) -> list[View]:
    height, width = photo.shape[:2]
    views, scale = [], 1.0
    x, y = (width - config.frames * camera.pan[0]) / 2, (height - config.frames * camera.pan[1]) / 2
    for _ in range(config.frames):
        half = scale * config.side / 2
        views.append(View(x - half, y - half, scale))
        x, y, scale = x + camera.pan[0], y + camera.pan[1], scale * camera.zoom
    return views


def _look(picture, view: View, side: int):
    affine = (view.scale, 0, view.left, 0, view.scale, view.top)
    channels = [
        Image.fromarray(np.ascontiguousarray(picture[..., c])).transform(
            (side, side), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)


def _expose(frame, noise: float, rng):
    grey = 255 * frame + noise * rng.standard_normal(frame.shape, np.float32)
    return np.rint(grey).clip(0, 255).astype(np.float32) / 255


def _flicker(frames, views) -> float:
    pairs = zip(frames, frames[1:], views, views[1:], strict=False)
    return np.mean(
        [
            _difference(new, _look(old, view.seen_from(old_view), len(old)))
            for old, new, old_view, view in pairs
        ]
    )


def _difference(a, b) -> float:
    return 255 * np.abs(a - b)[MARGIN:-MARGIN, MARGIN:-MARGIN].mean()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
