"""What is compiled of a student: its functions, their programs, and the bytes that they take."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from student_jax.inference.sides import MIN_TOKENS
from student_jax.inference.tiling import is_grid
from student_jax.student import Memory, Student, TileRule, Tokens


class Program(NamedTuple):
    """A compiled function."""

    compiled: jax.stages.Compiled
    bytes: int
    """Memory that it takes while it runs, arguments and results included."""


class Programs:
    """Compiles pure functions of a student and arrays, each once for all arguments of like shapes.

    A function takes the student as its first argument.
    """

    def __init__(self, student: Student):
        self._graphdef, self._state = nnx.split(student)
        self._functions: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._programs: dict[Hashable, Program] = {}

    def __len__(self) -> int:
        return len(self._programs)

    def weights(self) -> list[Array]:
        """All arrays of the student, in a fixed order."""
        return jax.tree.leaves(self._state)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result for arrays."""
        return self._program(function, *args).compiled(self._state, *args)

    def bytes(self, function: Callable[..., Any], *args: Any) -> int:
        """Memory that `run` takes, for arrays or `jax.ShapeDtypeStruct`s."""
        return self._program(function, *args).bytes

    def shapes(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `run` would return, as `jax.ShapeDtypeStruct`s; compiles nothing."""
        return jax.eval_shape(self._pure(function), self._state, *args)

    def _pure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in self._functions:
            self._functions[function] = jax.jit(partial(_call, function, self._graphdef))
        return self._functions[function]

    def _program(self, function: Callable[..., Any], *args: Any) -> Program:
        leaves, structure = jax.tree.flatten(args)
        key = (function, structure, *((x.shape, x.dtype) for x in leaves))
        if key not in self._programs:
            compiled = self._pure(function).lower(self._state, *args).compile()
            # Asked once: the analysis takes a tenth of a small picture's time.
            self._programs[key] = Program(compiled, planned_bytes(compiled))
        return self._programs[key]


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Peak memory of a program, as the compiler counts; 0 where a backend does not report it."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    return (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _call(
    function: Callable[..., Any], graphdef: nnx.GraphDef, state: nnx.State, *args: Any
) -> Any:
    return function(nnx.merge(graphdef, state), *args)


class EncodedStyle(NamedTuple):
    """What a student keeps of a style, or of a mixture of styles, for any number of contents."""

    memories: tuple[Memory, ...]
    """What the student's `encode_style` returned."""
    weights: Float32[np.ndarray, " s"] | None
    """Of the styles of a mixture, with sum 1; None for one style."""


def batch_size(memory: Memory) -> int:
    """How many styles a memory holds."""
    return len(jax.tree.leaves(memory)[0])


def style_row(style: EncodedStyle, i: int) -> EncodedStyle:
    """The style of one content of a batch."""
    memories = tuple(
        memory if batch_size(memory) == 1 else jax.tree.map(lambda x: x[i : i + 1], memory)
        for memory in style.memories
    )
    return style._replace(memories=memories)


def encode_style(model: Student, style: Float[Array, "b h w 3"]) -> Memory:
    """`Student.encode_style`."""
    return model.encode_style(style)


def decode(
    model: Student,
    content: Float[Array, "b h w 3"],
    size: Int[Array, "2"] | None,
    memories: tuple[Memory, ...],
    weights: Float[Array, " s"] | None,
) -> Float[Array, "b h w 3"]:
    """Predictions in [0, 1]; what lies beyond `size` (height and width) is padding."""
    b, h, w, _ = content.shape
    memories = jax.tree.map(lambda x: jnp.broadcast_to(x, (b, *x.shape[1:])), memories)
    padding = None
    if size is not None:
        outside = (jnp.arange(h) >= size[0])[:, None] | (jnp.arange(w) >= size[1])
        padding = jnp.broadcast_to(outside, (b, h, w))
    return jnp.clip(model.decode(content, memories, weights=weights, padding=padding), 0, 1)


def encode_tile(model: Student, content: Float[Array, "1 h w 3"]) -> Tokens:
    """`TileRule.encode`."""
    return _tile_rule(model).encode(content)


def picture_context(model: Student, tokens: Tokens) -> Tokens:
    """`TileRule.context`."""
    return _tile_rule(model).context(tokens)


def transform_tokens(
    model: Student,
    tokens: Tokens,
    context: Tokens,
    memories: tuple[Memory, ...],
    weights: Float[Array, " s"] | None,
) -> Tokens:
    """`TileRule.transform`."""
    return _tile_rule(model).transform(tokens, context, memories, weights)


def decode_tile(
    model: Student, content: Float[Array, "1 h w 3"], tokens: Tokens
) -> Float[Array, "1 h w 3"]:
    """`TileRule.decode`, in [0, 1]."""
    return jnp.clip(_tile_rule(model).decode(content, tokens), 0, 1)


def _tile_rule(model: Student) -> TileRule:
    assert model.tiles is not None  # the plan has no tiles without it
    return model.tiles


class CompiledBytes:
    """`plan.ProgramBytes` of one style, as the compiler counts them: asking compiles."""

    def __init__(self, programs: Programs, stride: int, style: EncodedStyle):
        self._programs, self._stride = programs, stride
        # A picture alone, also of a batch, has one style.
        self._styles, self._style = style, style_row(style, 0)

    # The methods are those of `plan.ProgramBytes`.

    def whole(self, batch: int, size: tuple[int, int], padded: tuple[int, int]) -> int:
        style = self._styles if batch > 1 else self._style
        content = _pixels(batch, *padded)
        return self._programs.bytes(decode, content, size_argument(*size, padded), *style)

    def tile(self, tile: tuple[int, int]) -> int:
        pixels = self._tile_pixels(tile)
        _, _, transformed = self._stages(tile)
        return max(
            self._programs.bytes(encode_tile, pixels),
            self._programs.bytes(decode_tile, pixels, transformed),
        )

    def transform(self, grid: tuple[int, int], window: tuple[int, int]) -> int:
        whole, _, _ = self._stages(grid)
        tokens, context, _ = self._stages(window)
        return max(
            self._programs.bytes(picture_context, whole),
            self._programs.bytes(transform_tokens, tokens, context, *self._style),
        )

    def per_token(self) -> int:
        side = MIN_TOKENS
        grids = filter(is_grid, jax.tree.leaves(self._stages((side, side))))
        return sum(x.size * x.dtype.itemsize for x in grids) // side**2

    def _tile_pixels(self, tile: tuple[int, int]) -> jax.ShapeDtypeStruct:
        return _pixels(1, tile[0] * self._stride, tile[1] * self._stride)

    def _stages(self, grid: tuple[int, int]) -> tuple[Tokens, Tokens, Tokens]:
        """Shapes of the tokens, their context, and the transformed tokens of a grid."""
        shapes = self._programs.shapes
        tokens = shapes(encode_tile, self._tile_pixels(grid))
        context = shapes(picture_context, tokens)
        return tokens, context, shapes(transform_tokens, tokens, context, *self._style)


def _pixels(batch: int, height: int, width: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, height, width, 3), np.float32)


def size_argument(height: int, width: int, padded: tuple[int, int]) -> Int[np.ndarray, "2"] | None:
    """The size of a picture that is padded, for `decode`."""
    return None if (height, width) == padded else np.array([height, width], np.int32)
