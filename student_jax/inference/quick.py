"""The bundled students in ONNX Runtime, which starts in a fraction of the time that JAX takes.

Nothing here imports JAX, until a student's files are first made or a picture is too large.
"""

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from student_jax.inference.pictures import (
    PictureLike,
    changed,
    float_pixels,
    mask_pixels,
    resize,
)
from student_jax.inference.sides import fitted_style, mirror_pad
from student_jax.inference.strokes import check_stroke_size, working_size
from student_jax.nets.mixture import places
from triplets import InputError
from triplets.atomic import atomic_write, write_json

STUDENTS = Path(__file__).parents[1] / "students"
FILES = ("encode_style.onnx", "stylize.onnx")

CHECKSUMS = "sha256.json"
"""Of the files; what a cache lost or changed is made anew."""

REVISION = 7
"""Of the files: another one when `export.onnx_files` writes other graphs."""

BYTES_PER_PIXEL = {"vectors": 240, "tokens": 4096}
"""Memory that a picture takes, by what the student keeps of a style; with tokens it attends, which
only holds up to `MAX_ATTENDED` pixels."""

SPARING = 0.65
"""How much of this is taken where ONNX Runtime gives memory back between its operations rather than
keep it, which costs twice the processor's time."""

MAX_ATTENDED = 768 * 768


class Whole(NamedTuple):
    """The plan of a picture that is handled whole, as `plan.Plan` is of others."""

    tile: None = None


class _Student(NamedTuple):
    """What its files say of a student."""

    names: list[str]
    """Of what it keeps of a style."""
    keeps: str
    content_stride: int
    style_stride: int
    style_scale: int


class QuickStyle:
    """A style, or several with their shares: the pictures, encoded when an engine needs them."""

    def __init__(self, pictures: Sequence[Float32[np.ndarray, "h w 3"]], weights: Sequence[float]):
        self.pictures, self.weights = list(pictures), list(weights)
        self.memory: dict[str, np.ndarray] | None = None
        self.encoded: Any = None
        """By the `Stylist`."""


class QuickStylist:
    """As much of `Stylist` as the command needs, in ONNX Runtime; what it cannot do goes to one.

    Args:
        folder: of the student's files.
        fallback: makes the `Stylist` for pictures that are too large, and videos.
        style_scale, stroke_size, max_memory: as of `Stylist`.
    """

    def __init__(
        self,
        folder: Path,
        fallback: Callable[[], Any],
        *,
        style_scale: float | None,
        stroke_size: float | Literal["picture"],
        max_memory: int,
    ):
        import onnxruntime

        check_stroke_size(stroke_size)

        def session(name: str, arena: bool = True) -> Any:
            options = onnxruntime.SessionOptions()
            # Threads that wait in a loop take time from Python and from other programs.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.enable_cpu_mem_arena = arena
            return onnxruntime.InferenceSession(folder / name, options)

        # They load while the pictures are read.
        loading = ThreadPoolExecutor(1)
        self._encode_style, self._stylize = (loading.submit(session, name) for name in FILES)
        loading.shutdown(wait=False)
        self._stylize_sparingly = cache(partial(session, FILES[1], arena=False))
        self._style_scale = style_scale
        self._stroke_size = stroke_size
        self._max_memory = max_memory
        self._fallback = fallback

    @cached_property
    def _student(self) -> _Student:
        said = self._encode_style.result().get_modelmeta().custom_metadata_map
        return _Student(
            names=json.loads(said["memory"]),
            keeps="vectors" if json.loads(said["mixes"]) else "tokens",
            content_stride=int(said["content_stride"]),
            style_stride=int(said["style_stride"]),
            style_scale=int(said["style_scale"]),
        )

    @cached_property
    def stylist(self) -> Any:
        """The `Stylist` of the same student."""
        return self._fallback()

    def encode_style(
        self,
        style: PictureLike | QuickStyle | Sequence[QuickStyle],
        weights: Sequence[float] | None = None,
    ) -> QuickStyle:
        """A style, or a mixture of styles.

        Raises:
            InputError: an unusable picture or weights.
        """
        if isinstance(style, QuickStyle):
            return style
        if not isinstance(style, list | tuple):
            return QuickStyle([float_pixels("style", style)], [1.0])
        shares = np.ones(len(style)) if weights is None else np.asarray(weights, np.float64)
        if not (
            len(shares) == len(style) > 0 and (shares >= 0).all() and 0 < shares.sum() < np.inf
        ):
            raise InputError(
                f"the weights are {shares.tolist()} for {len(style)} styles; expected 0 or more "
                "for each, and one above 0."
            )
        pictures, mixed = [], []
        for one, share in zip(style, shares / shares.sum(), strict=True):
            pictures += one.pictures
            mixed += [share * weight for weight in one.weights]
        return QuickStyle(pictures, mixed)

    def plan(self, height: int, width: int, style: QuickStyle) -> Any:
        """How a content of this size is handled.

        Raises:
            InputError: as `Stylist.plan`.
        """
        if self._is_whole(height, width, style):
            return Whole()
        return self.stylist.plan(height, width, self.encoded(style))

    def encoded(self, style: QuickStyle) -> Any:
        """The style as the `Stylist` knows it."""
        if style.encoded is None:
            parts = [self.stylist.encode_style(picture) for picture in style.pictures]
            style.encoded = self.stylist.encode_style(parts, style.weights)
        return style.encoded

    def __call__(
        self,
        content: PictureLike,
        style: QuickStyle,
        strength: float = 1.0,
        *,
        preserve_colour: bool = False,
        mask: PictureLike | None = None,
        plan: Any = None,
    ) -> Float32[np.ndarray, "h w 3"]:
        """One stylised picture; arguments as of `Stylist`."""
        pixels = float_pixels("content", content)
        if not self._is_whole(*pixels.shape[:2], style):
            options = {"preserve_colour": preserve_colour, "mask": mask, "plan": plan}
            return self.stylist(pixels, self.encoded(style), strength, **options)
        working = working_size(*pixels.shape[:2], self._stroke_size)
        prediction = resize(self._predict(resize(pixels, *working), style), *pixels.shape[:2])
        share = np.float32(strength)
        if mask is not None:
            share = share * mask_pixels(mask, pixels.shape)
        return changed(pixels, prediction, share, preserve_colour)

    def _is_whole(self, height: int, width: int, style: QuickStyle) -> bool:
        h, w = working_size(height, width, self._stroke_size)
        if self._student.keeps == "tokens" and (h * w > MAX_ATTENDED or len(style.pictures) > 1):
            return False
        return SPARING * self._bytes(h, w) <= self._max_memory

    def _bytes(self, height: int, width: int) -> int:
        return height * width * BYTES_PER_PIXEL[self._student.keeps]

    def _predict(
        self, content: Float32[np.ndarray, "h w 3"], style: QuickStyle
    ) -> Float32[np.ndarray, "h w 3"]:
        h, w = content.shape[:2]
        # The files take more than one stride.
        least = 2 * self._student.content_stride
        padded = mirror_pad(content, max(h, least), max(w, least))
        inputs = {"content": padded[None]} | self._memory(style)
        has_room = self._bytes(h, w) <= self._max_memory
        engine = self._stylize.result() if has_room else self._stylize_sparingly()
        (stylised,) = engine.run(["stylised"], inputs)
        return stylised[0, :h, :w]

    def _memory(self, style: QuickStyle) -> dict[str, np.ndarray]:
        if style.memory is None:
            names, scale = self._student.names, self._style_scale or self._student.style_scale
            memories = []
            for picture in style.pictures:
                height, width = picture.shape[:2]
                size = fitted_style(height, width, scale=scale, stride=self._student.style_stride)
                inputs = {"style": resize(picture, *size)[None]}
                memories.append(self._encode_style.result().run(names, inputs))
            style.memory = {
                name: _mixed(parts, np.asarray(style.weights, np.float32))
                for name, *parts in zip(names, *memories, strict=True)
            }
        return style.memory


def _mixed(
    parts: Sequence[Float32[np.ndarray, "1 *shape"]], weights: Float32[np.ndarray, " s"]
) -> Float32[np.ndarray, "1 *shape"]:
    """Means of vectors, and of sets of rows some of each, as the students mix styles."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].ndim == 2:
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))
    rows = places(parts[0].shape[1])
    chosen = (rows[:, None] >= np.cumsum(weights)[None, :-1]).sum(1)
    return np.stack([parts[k][:, i] for i, k in enumerate(chosen)], axis=1)


def quick_files(checkpoint: str) -> Path | None:
    """The folder with a bundled student's files, in the user's cache; they are made once.

    None: it is not bundled, or a package for it is missing.
    """
    weights = STUDENTS / checkpoint / "model.safetensors"
    if not checkpoint.isidentifier() or not weights.is_file():
        return None
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    key = _sha256(weights.read_bytes())[:16]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    import onnxruntime

    # What one version of ONNX Runtime rewrote, another may not read.
    name = f"{checkpoint}-{key}-{REVISION}-{onnxruntime.__version__}"
    folder = Path(root) / "style-distil" / "onnx" / name
    if _are_whole(folder):
        return folder
    if importlib.util.find_spec("onnx") is None:
        return None
    from student_jax.export.onnx_files import onnx_files
    from student_jax.weights.folder import open_student

    made = onnx_files(open_student(checkpoint), batch=1)
    files = {name: _optimised(made[name]) for name in FILES}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            with atomic_write(folder / name) as file:
                file.write(data)
        write_json(folder / CHECKSUMS, {name: _sha256(data) for name, data in files.items()})
    except OSError:  # a cache that cannot be written is no reason not to stylise
        return None
    return folder


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _are_whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        return sums == {name: _sha256((folder / name).read_bytes()) for name in FILES}
    except (OSError, ValueError):
        return False


def _optimised(file: bytes) -> bytes:
    """A model as ONNX Runtime rewrites it, which halves the time that it takes to load.

    Without what suits this processor alone: other machines may share the cache.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimised.onnx")
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(file, options)
        return path.read_bytes()
