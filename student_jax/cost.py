"""What stylising one picture costs a student: parameters, arithmetic, time, memory.

    python -m student_jax.cost MODEL SIZE count|run

prints one line of JSON. MODEL is "mini" or "reference", with untrained weights, since costs do not
depend on their values, or a student's folder. scripts/cost.py calls this.
"""

import json
import statistics
import sys
import time

import jax
import numpy as np
from flax import nnx

from student_jax.config import STTRConfig
from student_jax.flops import count_flops
from student_jax.models import STTR
from student_jax.pretrained import open_student

PRESETS = {"mini": STTRConfig.mini, "reference": STTRConfig.reference}


def build(model: str) -> STTR:
    """A student by preset or folder."""
    if model not in PRESETS:
        return open_student(model)
    return nnx.jit(lambda: STTR(PRESETS[model](), rngs=nnx.Rngs(0)))()


def program(model: STTR):
    """The prediction as a pure function of (state, content, style), and the state."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s, content, style: nnx.merge(graphdef, s)(content, style)), state


def count(name: str, size: int) -> dict[str, int]:
    """Parameters, and floating-point operations of one picture; see `count_flops`."""
    model = nnx.eval_shape(lambda: build(name))
    predict, state = program(model)
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    flops = count_flops(predict.trace(state, image, image).jaxpr)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return {"parameters": parameters, "flops": flops}


def run(name: str, size: int) -> dict[str, int | float | str]:
    """Seconds (the median of five, compilation left out) and memory in bytes of one picture.

    The memory is what the compiled program holds at most: weights, pictures and what is between.
    """
    predict, state = program(build(name))
    image = np.zeros((1, size, size, 3), np.float32)
    compiled = predict.lower(state, image, image).compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    def timed() -> float:
        start = time.perf_counter()
        compiled(state, image, image).block_until_ready()
        return time.perf_counter() - start

    timed()  # the first call also sets things up
    device = jax.devices()[0]
    return {
        "seconds": statistics.median(timed() for _ in range(5)),
        "peak_bytes": held,
        "device": device.device_kind if device.platform != "cpu" else "CPU",
        "dtype": "float32",
    }


if __name__ == "__main__":
    model, size, what = sys.argv[1:]
    print(json.dumps((count if what == "count" else run)(model, int(size))))
