"""Using a student: pictures of any size in, stylised pictures of the same size out."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32

from student_jax.inference.pictures import PictureLike, float_pixels, mask_pixels, resize
from student_jax.inference.tiling import MIN_TOKENS, bucket, mirror_pad, nearest_bucket, ramp, spans
from student_jax.nets.colour import LUMA
from student_jax.students.sttr.model import STTR
from student_jax.students.sttr.position_encoding import position_encoding
from student_jax.students.sttr.transformer import StyleMemory
from triplets import InputError

STYLE_SIZE = 256
MAX_MEMORY = 4 * 2**30

HALO = 8
"""Tokens around a tile's answer that it reads: more than backbone and tail look beyond a token."""

TILE_SIDES = (2048, 1024, 512)
"""Sides of tiles in pixels, tried from the largest."""

FLOAT_BYTES = 4

RUNTIME_BYTES = 80 * 2**20
"""Taken beside what the compiler plans for a program, measured by benchmarks/large_pictures.py."""


class EncodedStyle(NamedTuple):
    """What a student keeps of a style, or of a mixture of styles, for any number of contents."""

    memories: tuple[StyleMemory, ...]
    weights: Float32[np.ndarray, " s"] | None
    """Of the styles of a mixture, with sum 1; None for one style."""


class Plan(NamedTuple):
    """How a picture is to be handled within the memory."""

    size: tuple[int, int]
    """Height and width of the picture in pixels."""
    tile: tuple[int, int] | None
    """Height and width of the tiles; None: the picture is handled whole."""
    window: tuple[int, int] | None
    """Height and width, in tokens, within which tokens attend to each other; None: all of them."""
    bytes: int
    """Memory that the largest program takes, and what is held beside it."""
    batch: int = 1
    """How many pictures are handled together."""

    def __str__(self) -> str:
        how = "whole" if self.tile is None else f"in tiles of {self.tile[1]} x {self.tile[0]} px"
        attention = "exact attention"
        if self.window:
            attention = f"attention within windows of {self.window[1]} x {self.window[0]} tokens"
        return (
            f"{self.size[1]} x {self.size[0]} px: {how}, {attention}, {self.bytes / 2**20:.0f} MiB"
        )


class Stylist:
    """Stylises pictures with one student.

    Contents are padded to a few sizes with their mirror image, and styles resized, so that many
    sizes share few compiled programs. A picture too large for the memory is cut into overlapping
    tiles where only neighbours matter (backbone and tail) and stays whole where all tokens meet
    (the decoder), so that the result is the same; only where even that does not fit, tokens attend
    within overlapping windows.

    Args:
        model: the student.
        style_size: larger styles are reduced to this shorter side in pixels: what the student was
            trained with. None takes them as they are.
        max_memory: bytes that the computation may take, besides the compiled program itself.
    """

    def __init__(
        self, model: STTR, *, style_size: int | None = STYLE_SIZE, max_memory: int = MAX_MEMORY
    ):
        graphdef, self._state = nnx.split(model)
        self._config = model.config
        self._token_dim, self._painted_dim = model.token_dim, model.painted_dim
        self._style_size = style_size
        self.max_memory = max_memory
        self._functions = {
            function: jax.jit(partial(function, graphdef))
            for function in (_encode_style, _decode, _encode_tile, _transform, _paint_tile)
        }
        self._programs: dict[Any, _Program] = {}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "mini",
        step: int | Literal["best", "latest"] = "best",
        **options,
    ) -> "Stylist":
        """A student by name: "mini", a workdir, an exported folder or file, or hf://OWNER/NAME.

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
        """Programs that were compiled so far."""
        return len(self._programs)

    def encode_style(
        self,
        style: PictureLike | EncodedStyle | Sequence[PictureLike | EncodedStyle],
        weights: Sequence[float | int] | None = None,
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
        h, w = self._fitted_style_size(*pixels.shape[-3:-1])
        fitted = np.stack([resize(x, h, w) for x in pixels.reshape(-1, *pixels.shape[-3:])])
        return EncodedStyle((self._run(_encode_style, fitted),), None)

    def __call__(
        self,
        content: PictureLike | Sequence[PictureLike],
        style: PictureLike | EncodedStyle | Sequence[PictureLike | EncodedStyle],
        strength: float | int = 1.0,
        *,
        weights: Sequence[float | int] | None = None,
        preserve_colour: bool = False,
        mask: PictureLike | None = None,
        plan: Plan | None = None,
    ) -> Float32[np.ndarray, "*b h w 3"] | list[Float32[np.ndarray, "h w 3"]]:
        """Stylise pictures of any size; the result has the content's size, with RGB in [0, 1].

        Args:
            content: a picture (path, PIL image, RGB array of uint8 or of floats in [0, 1]), an
                array [b h w 3], or a list of pictures of any sizes, which returns a list.
            style: as for `encode_style`, or what it returned.
            strength: 0 returns the content, 1 the student's prediction, between them their blend.
            weights: shares of several styles.
            preserve_colour: change only the luminance (Gatys et al., "Preserving Color in Neural
                Artistic Style Transfer", 2016, section 3.1).
            mask: share of the effect that each pixel gets; see `pictures.mask_pixels`.
            plan: what `plan` returned for a content of this size, if the caller has asked already.

        Raises:
            InputError: unreadable pictures, pixels or a strength outside [0, 1], batches that do
                not fit together, or too little memory.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"strength is {strength}; expected 0 to 1.")
        encoded = self.encode_style(style, weights)
        if isinstance(content, list | tuple):
            return [
                self(one, encoded, strength, preserve_colour=preserve_colour, mask=mask)
                for one in content
            ]
        pixels = float_pixels("content", content)
        share = np.float32(strength)
        if mask is not None:
            share = share * mask_pixels(mask, pixels.shape)
        contents = pixels.reshape(-1, *pixels.shape[-3:])
        num_styles = max(len(memory.tokens) for memory in encoded.memories)
        if num_styles not in (1, len(contents)):
            raise InputError(
                f"{num_styles} styles for {len(contents)} contents; expected 1 or as many."
            )
        change = self._predict(contents, encoded, plan).reshape(pixels.shape) - pixels
        if preserve_colour:
            change = (change @ LUMA.astype(np.float32))[..., None]
        change *= share
        stylised = pixels + change
        return np.clip(stylised, 0, 1, out=stylised)

    def plan(self, height: int, width: int, style: EncodedStyle, batch: int = 1) -> Plan:
        """How contents of this size are handled within `max_memory`.

        Raises:
            InputError: the memory does not even suffice for the smallest tiles.
        """
        stride = self._config.content_stride
        padded = (bucket(height, stride), bucket(width, stride))
        content = jax.ShapeDtypeStruct((batch, *padded, 3), np.float32)
        whole = self._bytes(_decode, content, self._size(height, width, padded), *style)
        whole += batch * 3 * FLOAT_BYTES * (height * width + padded[0] * padded[1]) + RUNTIME_BYTES
        if whole <= self.max_memory:
            return Plan((height, width), None, None, whole, batch)
        if batch > 1:
            return self.plan(height, width, _row(style, 0))
        h, w = self._tokens(height, width)
        # The picture as it is, padded, and stylised; content tokens, their positions and results.
        dims = (self._token_dim, self._config.hidden_dim, self._painted_dim)
        held = FLOAT_BYTES * h * w * (3 * 3 * stride**2 + sum(dims)) + RUNTIME_BYTES
        for side in TILE_SIDES:
            tile = (min(h, side // stride), min(w, side // stride))
            if any(
                part <= 2 * HALO and part < all_ for part, all_ in zip(tile, (h, w), strict=True)
            ):
                continue
            pixels = jax.ShapeDtypeStruct((1, tile[0] * stride, tile[1] * stride, 3), np.float32)
            grid = jax.ShapeDtypeStruct((1, *tile, self._painted_dim), np.float32)
            # Memory of one program is not always free again when the next one starts: twice.
            programs = (self._bytes(_encode_tile, pixels), self._bytes(_paint_tile, pixels, grid))
            tiles = held + 2 * max(programs)
            if tiles > self.max_memory:
                continue
            in_pixels = (tile[0] * stride, tile[1] * stride)
            for window in ((h, w), tile):
                tokens = jax.ShapeDtypeStruct((1, *window, self._token_dim), np.float32)
                position = jax.ShapeDtypeStruct((1, *window, self._config.hidden_dim), np.float32)
                transform = self._bytes(_transform, tokens, position, *style)
                needed = max(tiles, held + max(programs) + transform)
                if needed <= self.max_memory:
                    part = None if window == (h, w) else window
                    return Plan((height, width), in_pixels, part, needed)
        raise InputError(
            f"{width} x {height} px do not fit into {self.max_memory / 2**20:.0f} MiB; give more "
            "memory, or make the picture smaller."
        )

    def _mix(
        self, styles: Sequence[EncodedStyle], weights: Sequence[float | int] | None
    ) -> EncodedStyle:
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
            own = np.ones(1) if style.weights is None else style.weights
            for memory, weight in zip(style.memories, own * share, strict=True):
                if weight > 0:
                    memories.append(memory)
                    mixed.append(weight)
        if len(memories) == 1:
            return EncodedStyle(tuple(memories), None)
        return EncodedStyle(tuple(memories), np.array(mixed, np.float32))

    def _fitted_style_size(self, h: int, w: int) -> tuple[int, int]:
        scale = 1.0 if self._style_size is None else min(1.0, self._style_size / min(h, w))
        h, w = (max(1, round(side * scale)) for side in (h, w))
        # A frieze is squeezed: beyond four to one, nearly all of its tokens would be of no use.
        h, w = min(h, 4 * w), min(w, 4 * h)
        return tuple(nearest_bucket(side, self._config.style_stride) for side in (h, w))

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
            rows = (_row(style, i) for i in range(len(contents)))
            return np.concatenate(
                [self._predict(x[None], row) for x, row in zip(contents, rows, strict=True)]
            )
        if plan.tile is None:
            padded = tuple(bucket(side, self._config.content_stride) for side in (h, w))
            contents = mirror_pad(contents, *padded)
            prediction = self._run(_decode, contents, self._size(h, w, padded), *style)
            return np.asarray(prediction)[:, :h, :w]
        return self._predict_in_tiles(contents[0], style, plan)[None]

    def _predict_in_tiles(
        self, content: Float32[np.ndarray, "h w 3"], style: EncodedStyle, plan: Plan
    ) -> Float32[np.ndarray, "h w 3"]:
        stride = self._config.content_stride
        h, w = self._tokens(*content.shape[:2])
        padded = mirror_pad(content, h * stride, w * stride)
        tile = (plan.tile[0] // stride, plan.tile[1] // stride)

        def pixels_of(y, x):
            rows = slice(y.start * stride, (y.start + tile[0]) * stride)
            columns = slice(x.start * stride, (x.start + tile[1]) * stride)
            return padded[None, rows, columns]

        tiles = list(product(spans(h, tile[0], HALO), spans(w, tile[1], HALO)))
        grid = np.empty((1, h, w, self._token_dim), np.float32)
        for y, x in tiles:
            tokens = np.asarray(self._run(_encode_tile, pixels_of(y, x)))
            grid[:, y.low : y.high, x.low : x.high] = _answer(tokens, y, x, 1)
        grid = self._transform_in_windows(grid, style, plan.window or (h, w))
        result = np.empty_like(padded)
        for y, x in tiles:
            part = grid[:, y.start : y.start + tile[0], x.start : x.start + tile[1]]
            painted = np.asarray(self._run(_paint_tile, pixels_of(y, x), part))
            rows = slice(y.low * stride, y.high * stride)
            columns = slice(x.low * stride, x.high * stride)
            result[rows, columns] = _answer(painted, y, x, stride)[0]
        return result[: content.shape[0], : content.shape[1]]

    def _transform_in_windows(
        self, grid: Float32[np.ndarray, "1 h w c"], style: EncodedStyle, window: tuple[int, int]
    ) -> Float32[np.ndarray, "1 h w c2"]:
        """Transform content tokens, in one window or in several that fade into each other.

        Positions and colour statistics are those of the whole picture, and the style is the same
        for all windows.
        """
        h, w = grid.shape[1:3]
        # A window's statistics are the mean of its tokens' moments: now all windows have the same.
        moments = grid[..., self._config.hidden_dim :]
        moments[...] = moments.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
        position = np.asarray(_positions(jnp.zeros((1, h, w), bool), self._config.hidden_dim))
        result = np.zeros((1, h, w, self._painted_dim), np.float32)
        total = np.zeros((h, w, 1), np.float32)
        for y, x in product(spans(h, window[0], HALO), spans(w, window[1], HALO)):
            rows, columns = slice(y.start, y.start + window[0]), slice(x.start, x.start + window[1])
            tokens = self._run(
                _transform, grid[:, rows, columns], position[:, rows, columns], *style
            )
            weights = ramp(h, window[0], HALO, y)[:, None] * ramp(w, window[1], HALO, x)
            result[:, rows, columns] += weights[..., None] * np.asarray(tokens)
            total[rows, columns] += weights[..., None]
        result /= total
        return result

    def _tokens(self, h: int, w: int) -> tuple[int, int]:
        stride = self._config.content_stride
        return tuple(max(MIN_TOKENS, -(-side // stride)) for side in (h, w))

    def _size(self, h: int, w: int, padded: tuple[int, int]) -> np.ndarray | None:
        return None if (h, w) == padded else np.array([h, w], np.int32)

    def _program(self, function, *args) -> "_Program":
        key = (function, jax.tree.structure(args), *(x.shape for x in jax.tree.leaves(args)))
        if key not in self._programs:
            compiled = self._functions[function].lower(self._state, *args).compile()
            # Asked for once: the answer takes a tenth of a small picture's time.
            self._programs[key] = _Program(compiled, _planned_bytes(compiled))
        return self._programs[key]

    def _run(self, function, *args):
        return self._program(function, *args).compiled(self._state, *args)

    def _bytes(self, function, *args) -> int:
        return self._program(function, *args).bytes


class _Program(NamedTuple):
    compiled: jax.stages.Compiled
    bytes: int
    """Memory that it takes while it runs."""


def _planned_bytes(compiled: jax.stages.Compiled) -> int:
    memory = compiled.memory_analysis()
    if memory is None:  # not all backends tell
        return 0
    return (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _answer(tile, y, x, stride):
    """The part of a tile that it answers for."""
    rows = slice((y.low - y.start) * stride, (y.high - y.start) * stride)
    columns = slice((x.low - x.start) * stride, (x.high - x.start) * stride)
    return tile[:, rows, columns]


def _row(style: EncodedStyle, i: int) -> EncodedStyle:
    """The style of one content of a batch."""
    memories = tuple(
        memory
        if len(memory.tokens) == 1
        else memory._replace(
            tokens=memory.tokens[i : i + 1],
            statistics=None if memory.statistics is None else memory.statistics[i : i + 1],
        )
        for memory in style.memories
    )
    return style._replace(memories=memories)


def _encode_style(graphdef, state, style: Float[jax.Array, "b h w 3"]) -> StyleMemory:
    return nnx.merge(graphdef, state).encode_style(style)


def _decode(graphdef, state, content, size, memories, weights):
    """Predictions in [0, 1]; what lies beyond `size` (height and width) is padding."""
    model = nnx.merge(graphdef, state)
    b, h, w, _ = content.shape
    memories = [_repeat(memory, b) for memory in memories]
    mask = None
    if size is not None:
        outside = (jnp.arange(h) >= size[0])[:, None] | (jnp.arange(w) >= size[1])
        mask = jnp.broadcast_to(outside, (b, h, w))
    prediction = model.decode(content, memories, mask, weights=weights, mirrored=True)
    return jnp.clip(prediction, 0, 1)


def _repeat(memory: StyleMemory, batch: int) -> StyleMemory:
    def repeat(array):
        return None if array is None else jnp.broadcast_to(array, (batch, *array.shape[1:]))

    return memory._replace(tokens=repeat(memory.tokens), statistics=repeat(memory.statistics))


def _encode_tile(graphdef, state, content):
    return nnx.merge(graphdef, state).encode_content(content)[0]


_positions = jax.jit(position_encoding, static_argnums=1)


def _transform(graphdef, state, grid, position, memories, weights):
    b, h, w, c = grid.shape
    tokens, position = grid.reshape(b, h * w, c), position.reshape(1, h * w, -1)
    transformed = nnx.merge(graphdef, state).transform(tokens, position, memories, weights)
    return transformed.reshape(b, h, w, -1)


def _paint_tile(graphdef, state, content, grid):
    model = nnx.merge(graphdef, state)
    _, skips = model.encode_content(content)
    return jnp.clip(model.paint(grid, skips), 0, 1)
