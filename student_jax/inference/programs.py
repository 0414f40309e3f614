"""A student's compiled programs, one for each function and shapes of its arguments."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx

from student_jax.student import Student


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
