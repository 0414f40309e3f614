"""Using a student: pictures of any size in, stylised pictures of the same size out."""

import copy
import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float32

from student_jax.inference.memory import MAX_MEMORY
from student_jax.inference.pictures import (
    Kind,
    PictureLike,
    as_kind,
    changed,
    float_pixels,
    mask_pixels,
    resize,
)
from student_jax.inference.plan import Plan, make_plan, padded_size, token_grid
from student_jax.inference.programs import (
    CompiledBytes,
    EncodedStyle,
    Programs,
    batch_size,
    decode,
    decode_tile,
    encode_style,
    encode_tile,
    picture_context,
    size_argument,
    style_row,
    transform_tokens,
)
from student_jax.inference.sides import fitted_style, mirror_pad
from student_jax.inference.strokes import check_stroke_size, working_size
from student_jax.inference.tiling import (
    Span,
    core_slices,
    cut,
    is_grid,
    ramp,
    spans,
    tile_slices,
)
from student_jax.student import Student, Tokens
from student_jax.students import DEFAULT_STUDENT
from triplets import InputError


class Stylist:
    """Stylises pictures with one student, any that follows `student.Student`.

    Contents are padded to a few sizes with their mirror image, and styles resized, so that many
    sizes share few compiled programs. A picture too large for the memory is cut into overlapping
    tiles if the student has a `TileRule`: in tiles where only neighbours matter and whole where all
    tokens meet, so that the result is the same. If even the tokens do not fit, they attend within
    overlapping windows. The result of a student without that rule is exact or an error.

    Args:
        model: the student.
        style_scale: larger styles are reduced to this shorter side in pixels, which decides how
            large their strokes are in the result; math.inf takes them as they are. By default
            what the student was trained for (`StudentConfig.style_scale`).
        stroke_size: how large strokes are in the result, relative to those of the style: contents
            are stylised at 1 / stroke_size of their size, and the result is resized. "picture"
            lets strokes grow with the picture: 1 for a shorter side of 512 px, 2 for 1024.
        max_memory: bytes that the computation may take, besides the compiled program itself.
    """

    def __init__(
        self,
        model: Student,
        *,
        style_scale: float | None = None,
        stroke_size: float | Literal["picture"] = 1.0,
        max_memory: int = MAX_MEMORY,
    ):
        check_stroke_size(stroke_size)
        self._programs = Programs(model)
        self._content_stride = model.config.content_stride
        self._style_stride = model.config.style_stride
        self._halo = None if model.tiles is None else model.tiles.halo
        self._style_scale = model.config.style_scale if style_scale is None else style_scale
        self._stroke_size = stroke_size
        self.max_memory = max_memory

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT_STUDENT,
        step: int | Literal["best", "latest"] = "best",
        **options,
    ) -> "Stylist":
        """A student by name: "modulated", "mini", a workdir, an exported folder or file, or a
        repository of the Hugging Face Hub, OWNER/NAME or hf://OWNER/NAME[@REVISION].

        Raises:
            InputError: nothing usable there.
        """
        from student_jax.weights.folder import open_student

        return cls(open_student(str(name_or_path), step), **options)

    @classmethod
    def from_checkpoint(
        cls, workdir: str | Path, step: int | Literal["best", "latest"] = "best", **options
    ) -> "Stylist":
        """The student of a training run.

        Raises:
            InputError: not a workdir, or no such checkpoint.
        """
        from student_jax.training.checkpoint import load_student

        return cls(load_student(Path(workdir), step), **options)

    @property
    def num_programs(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)

    def fingerprint(self) -> str:
        """A sha256 of what decides the results for encoded styles: weights and stroke size."""
        digest = hashlib.sha256(repr(self._stroke_size).encode())
        for leaf in self._programs.weights():
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def with_stroke_size(self, stroke_size: float | Literal["picture"]) -> "Stylist":
        """The same student and programs for strokes of another size.

        Raises:
            InputError: the size is out of its range.
        """
        check_stroke_size(stroke_size)
        other = copy.copy(self)
        other._stroke_size = stroke_size
        return other

    def encode_style(
        self,
        style: PictureLike | EncodedStyle | Sequence[PictureLike | EncodedStyle],
        weights: Sequence[float] | None = None,
    ) -> EncodedStyle:
        """Encode a style once, to use it for many contents.

        Args:
            style: a picture; an array [b h w 3] with one style for each content; or a list of
                styles, to be mixed.
            weights: shares of the styles of a list; by default equal.

        Raises:
            InputError: unusable pictures or weights.
        """
        if isinstance(style, list | tuple) and not isinstance(style, EncodedStyle):
            return self._mix([self.encode_style(one) for one in style], weights)
        if weights is not None:
            raise InputError("weights were given for one style; expected a list of styles.")
        if isinstance(style, EncodedStyle):
            return style
        pixels = float_pixels("style", style)
        h, w = fitted_style(
            *pixels.shape[-3:-1], scale=self._style_scale, stride=self._style_stride
        )
        fitted = np.stack([resize(x, h, w) for x in pixels.reshape(-1, *pixels.shape[-3:])])
        return EncodedStyle((self._programs.run(encode_style, fitted),), None)

    def __call__(
        self,
        content: PictureLike | Sequence[PictureLike],
        style: PictureLike | EncodedStyle | Sequence[PictureLike | EncodedStyle],
        strength: float = 1.0,
        *,
        weights: Sequence[float] | None = None,
        preserve_colour: bool = False,
        mask: PictureLike | None = None,
        plan: Plan | None = None,
        returns: Kind = "numpy",
    ) -> Any:
        """Stylise pictures of any size; the result has the content's size, with RGB in [0, 1].

        Args:
            content: a picture (path, PIL image, RGB array of uint8 or of floats in [0, 1], torch
                tensor [3 h w]), a batch ([b h w 3], of torch [b 3 h w]), or a list of pictures of
                any sizes, which returns a list.
            style: as for `encode_style`, or what it returned.
            strength: 0 returns the content, 1 the student's prediction, between them their blend.
            weights: shares of several styles.
            preserve_colour: change only the luminance (Gatys et al., "Preserving Color in Neural
                Artistic Style Transfer", 2016, section 3.1).
            mask: share of the effect that each pixel gets; see `pictures.mask_pixels`.
            plan: what `plan` returned for contents of this size, if the caller asked already.
            returns: "numpy" (`[*b h w 3]`), "jax" (likewise), "pil", or "torch" (`[*b 3 h w]`).

        Raises:
            InputError: unreadable pictures, pixels or a strength outside [0, 1], batches that do
                not fit together, too little memory, or a student that gives no numbers.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"strength is {strength}; expected 0 to 1.")
        encoded = self.encode_style(style, weights)
        if isinstance(content, list | tuple):
            return [
                self(
                    one,
                    encoded,
                    strength,
                    preserve_colour=preserve_colour,
                    mask=mask,
                    returns=returns,
                )
                for one in content
            ]
        pixels = float_pixels("content", content)
        share = np.float32(strength)
        if mask is not None:
            share = share * mask_pixels(mask, pixels.shape)
        contents = pixels.reshape(-1, *pixels.shape[-3:])
        num_styles = max(map(batch_size, encoded.memories))
        if num_styles not in (1, len(contents)):
            raise InputError(
                f"{num_styles} styles for {len(contents)} contents; expected 1 or as many."
            )
        prediction = self._stylised(contents, encoded, plan).reshape(pixels.shape)
        if not np.isfinite(prediction).all():
            raise InputError(
                "the student's prediction is not finite: its weights are damaged, or no weights of "
                "a trained student."
            )
        return as_kind(changed(pixels, prediction, share, preserve_colour), returns)

    def plan(self, height: int, width: int, style: EncodedStyle, batch: int = 1) -> Plan:
        """How contents of this size are handled within `max_memory`.

        What a program takes is only known once it is compiled. So this compiles the programs of
        the ways that it tries, unless they are there already; the pictures then use the same.

        Raises:
            InputError: the memory does not even suffice for the smallest tiles, or not for the
                whole picture and the student has no `TileRule`.
        """
        return make_plan(
            *self._working_size(height, width),
            batch,
            stride=self._content_stride,
            halo=self._halo,
            max_memory=self.max_memory,
            needs=CompiledBytes(self._programs, self._content_stride, style),
        )

    def _mix(self, styles: Sequence[EncodedStyle], weights: Sequence[float] | None) -> EncodedStyle:
        shares = np.ones(len(styles)) if weights is None else np.asarray(weights, np.float64)
        if not styles or len(shares) != len(styles):
            raise InputError(
                f"{len(shares)} weights for {len(styles)} styles; expected one for each of at "
                "least one style."
            )
        if not (np.isfinite(shares).all() and shares.min() >= 0 and shares.sum() > 0):
            raise InputError(
                f"the weights are {shares.tolist()}; expected 0 or more, and one above 0."
            )
        memories, mixed = [], []
        for style, share in zip(styles, shares / shares.sum(), strict=True):
            parts = np.ones(1) if style.weights is None else style.weights
            for memory, weight in zip(style.memories, parts * share, strict=True):
                if weight > 0:
                    memories.append(memory)
                    mixed.append(weight)
        if len(memories) == 1:
            return EncodedStyle(tuple(memories), None)
        return EncodedStyle(tuple(memories), np.array(mixed, np.float32))

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which contents of this size are stylised."""
        return working_size(height, width, self._stroke_size)

    def _stylised(
        self,
        contents: Float32[np.ndarray, "b h w 3"],
        style: EncodedStyle,
        plan: Plan | None,
    ) -> Float32[np.ndarray, "b h w 3"]:
        """The prediction at the contents' size, whatever the size at which it is made."""
        size = contents.shape[1:3]
        working = self._working_size(*size)
        if working == size:
            return self._predict(contents, style, plan)
        resized = np.stack([resize(content, *working) for content in contents])
        prediction = self._predict(resized, style, plan)
        return np.stack([resize(one, *size) for one in prediction])

    def _predict(
        self,
        contents: Float32[np.ndarray, "b h w 3"],
        style: EncodedStyle,
        plan: Plan | None = None,
    ) -> Float32[np.ndarray, "b h w 3"]:
        h, w = contents.shape[1:3]
        if plan is None:
            plan = self.plan(h, w, style, len(contents))
        if plan.batch < len(contents):
            styles = (style_row(style, i) for i in range(len(contents)))
            return np.concatenate(
                [self._predict(x[None], one) for x, one in zip(contents, styles, strict=True)]
            )
        if plan.tile is not None:
            return self._predict_in_tiles(contents[0], style, plan)[None]
        padded = padded_size(h, w, self._content_stride)
        prediction = self._programs.run(
            decode, mirror_pad(contents, *padded), size_argument(h, w, padded), *style
        )
        return np.asarray(prediction)[:, :h, :w]

    def _predict_in_tiles(
        self, content: Float32[np.ndarray, "h w 3"], style: EncodedStyle, plan: Plan
    ) -> Float32[np.ndarray, "h w 3"]:
        stride = self._content_stride
        grid = token_grid(*content.shape[:2], stride)
        padded = mirror_pad(content, grid[0] * stride, grid[1] * stride)
        tile = (plan.tile[0] // stride, plan.tile[1] // stride)
        tiles = self._spans(grid, tile)

        def pixels(y: Span, x: Span) -> Float32[np.ndarray, "1 h w 3"]:
            rows, columns = tile_slices(y, x, tile, stride)
            return padded[None, rows, columns]

        tokens: Tokens = None
        for y, x in tiles:
            part = jax.device_get(self._programs.run(encode_tile, pixels(y, x)))
            if tokens is None:
                tokens = jax.tree.map(partial(_empty_like, grid=grid), part)
            in_whole, in_tile = core_slices(y, x)
            for whole, leaf in zip(jax.tree.leaves(tokens), jax.tree.leaves(part), strict=True):
                whole[:, *in_whole] = leaf[:, *in_tile]
        tokens = self._transform(tokens, style, plan.window or grid)
        result = np.empty_like(padded)
        for y, x in tiles:
            part = cut(tokens, *tile_slices(y, x, tile))
            decoded = self._programs.run(decode_tile, pixels(y, x), part)
            in_whole, in_tile = core_slices(y, x, stride)
            result[in_whole] = np.asarray(decoded)[0][in_tile]
        return result[: content.shape[0], : content.shape[1]]

    def _transform(self, tokens: Tokens, style: EncodedStyle, window: tuple[int, int]) -> Tokens:
        """Transform the tokens of a picture, in one window or in several that fade into each other.

        Their context, such as their positions, is that of the whole picture, and the style is the
        same for all windows.
        """
        grid = jax.tree.leaves(tokens)[0].shape[1:3]
        context = jax.device_get(self._programs.run(picture_context, tokens))
        if window == grid:
            return jax.device_get(self._programs.run(transform_tokens, tokens, context, *style))
        sums: Tokens = None
        total = np.zeros((*grid, 1), np.float32)
        for y, x in self._spans(grid, window):
            rows, columns = tile_slices(y, x, window)
            parts = (cut(tree, rows, columns) for tree in (tokens, context))
            part = jax.device_get(self._programs.run(transform_tokens, *parts, *style))
            if sums is None:
                sums = jax.tree.map(partial(_zeros_for, grid=grid), part)
            weights = ramp(grid[0], window[0], self._halo, y)[:, None, None]
            weights = weights * ramp(grid[1], window[1], self._halo, x)[:, None]
            total[rows, columns] += weights
            for whole, leaf in zip(jax.tree.leaves(sums), jax.tree.leaves(part), strict=True):
                if is_grid(leaf):
                    whole[:, rows, columns] += weights * leaf
        return jax.tree.map(
            lambda whole, leaf: (
                np.divide(whole, total, out=whole).astype(leaf.dtype, copy=False)
                if is_grid(leaf)
                else leaf
            ),
            sums,
            part,
        )

    def _spans(self, grid: tuple[int, int], tile: tuple[int, int]) -> list[tuple[Span, Span]]:
        """Tiles or windows that cover a grid, by row and column."""
        return list(product(*map(partial(spans, halo=self._halo), grid, tile)))


def _empty_like(leaf: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Room for the tokens of all tiles."""
    return np.empty((1, *grid, leaf.shape[-1]), leaf.dtype)


def _zeros_for(leaf: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """What the windows of a grid are summed in; of anything else, itself."""
    return np.zeros((1, *grid, leaf.shape[-1]), np.float32) if is_grid(leaf) else leaf
