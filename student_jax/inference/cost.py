"""What stylising one picture costs a student: parameters, arithmetic, time, memory.

    python -m student_jax.inference.cost MODEL SIZE count|run

prints one line of JSON. MODEL is the name of a registered student, such as "mini" and "sttr", with
its default architecture and untrained weights, since costs do not depend on their values;
"reference", which is "sttr"; or a student's folder. `style-distil study cost` calls this.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from student_jax.nets.flops import count_flops
from student_jax.student import STUDENTS, Student, build_student, count_parameters
from student_jax.weights.folder import open_student
from triplets import InputError
from triplets.memory import PeakGrowth

ALIASES = {"reference": "sttr"}
"""What the presets of a training call a student."""
SMALL = 64
"""Side in pixels of the picture that sets things up."""


def build(model: str) -> Student:
    """A student by name or folder."""
    name = ALIASES.get(model, model)
    if name not in STUDENTS:
        return open_student(model)
    return nnx.jit(lambda: build_student(STUDENTS[name].config(), rngs=nnx.Rngs(0)))()


def program(model: Student) -> tuple[Callable[..., jax.Array], nnx.State]:
    """The jitted prediction as a pure function of (state, content, style), and the state."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s, content, style: nnx.merge(graphdef, s)(content, style)), state


def count(name: str, size: int) -> dict[str, int]:
    """Parameters, and floating-point operations of one picture; see `count_flops`."""
    model = nnx.eval_shape(lambda: build(name))
    predict, state = program(model)
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    flops = count_flops(predict.trace(state, image, image).jaxpr)
    return {"parameters": count_parameters(model), "flops": flops}


def run(name: str, size: int) -> dict[str, float | str | None]:
    """Seconds (the median of five, compilation left out) and peak memory in bytes of one picture.

    The memory of a GPU is the peak of its allocator; that of a CPU is the weights and what the
    process grows by for the first picture, None where the system does not report it.
    """
    predict, state = program(build(name))

    def compiled(size: int) -> Callable[[], float]:
        image = np.zeros((1, size, size, 3), np.float32)
        executable = predict.lower(state, image, image).compile()

        def timed() -> float:
            start = time.perf_counter()
            executable(state, image, image).block_until_ready()
            return time.perf_counter() - start

        return timed

    compiled(SMALL)()  # the first call also sets things up
    timed = compiled(size)
    with PeakGrowth() as grown:
        timed()
    peak = _peak_bytes(state, grown.bytes)
    device = jax.devices()[0]
    return {
        "seconds": statistics.median(timed() for _ in range(5)),
        "peak_bytes": peak,
        "device": device.device_kind if device.platform != "cpu" else "CPU",
        "dtype": "float32",
    }


def _peak_bytes(state: nnx.State, grown: int | None) -> int | None:
    """Peak memory of a picture, weights included, for which the process grew by `grown` bytes."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    if grown is None:
        return None
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + grown


if __name__ == "__main__":
    model, size, what = sys.argv[1:]
    try:
        measures = (count if what == "count" else run)(model, int(size))
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(measures))
