"""What a device delivers: pictures a second, share of its peak, latency, memory, and a profile.

    python benchmarks/throughput.py                                       # a GPU or TPU
    python benchmarks/throughput.py --size 256 --dtype float32 --batches 1 2 4     # a CPU

Every batch size is measured in a process of its own, with random weights, contents and styles of
one size that already lie on the device. "training" is forward, backward, clipping, AdamW and EMA of
the mean squared error, with the preset's dropout and without; only without it a GPU can use cuDNN's
attention. Memory is the device's peak, where it counts one, else what the compiler counts.

What limits the forward pass is shown twice, at the last batch size that fits: the time of its
stages, each as a program of its own, and the operations that took longest in a profile of it all.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from fresh_process import table_cells

from student_jax.inference.programs import planned_bytes
from student_jax.nets.flops import count_flops
from student_jax.student import Student, build_student
from student_jax.training.config import TrainConfig
from student_jax.training.objective import LOSSES, make_objective
from student_jax.training.progress import peak_flops
from student_jax.training.train_state import create_train_state, make_optimiser
from student_jax.training.train_step import train_step

Kind = Literal["forward", "training", "training without dropout"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    preset: Literal["reference", "mini"] = "reference"
    size: int = 512
    """Side of contents and styles in pixels."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the computation; parameters stay float32."""
    kinds: tuple[Kind, ...] = ("forward", "training", "training without dropout")
    peak_tflops: float | None = None
    """Peak rate of the device; by default that of its data sheet, or else the rate of a product of
    two square matrices, measured here."""
    seconds: float = 3.0
    """Time to measure each figure for."""
    limit_s: float = 600
    """Seconds after which a row is given up."""


@dataclasses.dataclass(frozen=True)
class Worker:
    """What one process measures."""

    what: Literal["device", "peak", "rate", "stages", "profile"]
    kind: Kind
    batch: int
    preset: str
    size: int
    dtype: str
    seconds: float


def main(config: Config) -> None:
    """Print the device and the tables."""

    def cells(what: str, kind: Kind = "forward", batch: int = 1) -> list | None:
        """None when it failed, as for want of memory, or took too long."""
        worker = Worker(
            *(what, kind, batch, config.preset, config.size, config.dtype, config.seconds)
        )
        try:
            return table_cells(__file__, dataclasses.asdict(worker), config.limit_s)
        except subprocess.CalledProcessError:
            return None

    device, versions, known = cells("device")
    peak = 1e12 * (config.peak_tflops or known or cells("peak")[0])
    source = "given" if config.peak_tflops else "data sheet" if known else "of a matrix product"
    print(
        f"{device}; {versions}; the {config.preset} student, {config.size} x {config.size} px, "
        f"{config.dtype}; peak {peak / 1e12:.3g} TFLOP/s ({source})"
    )
    fitting = 1
    for kind in config.kinds:
        print(f"\n| {kind}, batch | GFLOP a picture | pictures/s | of peak | latency ms | GiB |")
        print("| --- | --- | --- | --- | --- | --- |")
        for batch in config.batches:
            row = cells("rate", kind, batch)
            if row is None:
                print(f"| {batch} | failed, or took more than {config.limit_s:.0f} s | | | | |")
                break
            flops, rate, latency, memory = row
            if kind == "forward":
                fitting = batch
            print(
                f"| {batch} | {flops / 1e9:.0f} | {rate:.2f} | {flops * rate / peak:.0%} "
                f"| {1000 * latency:.1f} | {memory / 2**30:.2f} |",
                flush=True,
            )
    print(f"\n| stage of the forward pass, batch {fitting} | GFLOP | ms | of the time | of peak |")
    print("| --- | --- | --- | --- | --- |")
    stages = cells("stages", batch=fitting) or []
    total = sum(seconds for *_, seconds in stages)
    for name, flops, seconds in stages:
        share = flops / seconds / peak
        print(
            f"| {name} | {flops / 1e9:.0f} | {1000 * seconds:.1f} | {seconds / total:.0%} "
            f"| {share:.0%} |"
        )
    print(f"\n| operation in the forward pass, batch {fitting} | times | of the device's time |")
    print("| --- | --- | --- |")
    for name, count, share in cells("profile", batch=fitting) or []:
        print(f"| `{name}` | {count} | {share:.1%} |")


def measure(worker: Worker) -> None:
    """Print, in JSON, what this process is for."""
    measures = (device, peak, rate, stages, profile)
    print(json.dumps({m.__name__: m for m in measures}[worker.what](worker)))


def device(worker: Worker) -> tuple[str, str, float | None]:
    """The device, versions, and its TFLOP/s by the data sheet, if that is known."""
    known = peak_flops(None) if worker.dtype == "bfloat16" else None
    versions = f"jax {jax.__version__}, jaxlib {jax.lib.__version__}"
    return jax.devices()[0].device_kind, versions, known and known / 1e12


def peak(worker: Worker) -> list[float]:
    """TFLOP/s in a product of two matrices."""
    x = jnp.ones((4096, 4096), worker.dtype)
    return [2 * 4096**3 / seconds_each(program(jnp.matmul, x, x).call, worker.seconds) / 1e12]


def rate(worker: Worker) -> list[float]:
    """FLOP a picture, pictures a second, seconds of a call that is waited for, bytes."""
    run = forward(worker) if worker.kind == "forward" else training(worker)
    latency = seconds_waited(run.call, worker.seconds)
    each = seconds_each(run.call, worker.seconds)
    counted = jax.devices()[0].memory_stats()
    held = run.bytes if counted is None else counted["peak_bytes_in_use"]
    return [run.flops / worker.batch, worker.batch / each, latency, held]


def stages(worker: Worker) -> list[tuple[str, int, float]]:
    """Name, FLOP and seconds of the forward pass's parts."""
    model, content, style = student_and_pictures(worker)
    graphdef, state = nnx.split(model)

    def part(function):
        return lambda state, *args: function(nnx.merge(graphdef, state), *args)

    encode_style = program(part(lambda model, x: model.encode_style(x)), state, style)
    encode = program(part(lambda model, x: model.tiles.encode(x)), state, content)
    memory, tokens = encode_style.call(), encode.call()
    context = program(part(lambda model, x: model.tiles.context(x)), state, tokens).call()
    transform = program(
        part(lambda model, *args: model.tiles.transform(*args, None)),
        *(state, tokens, context, (memory,)),
    )
    # Skips are computed here again, as for a tile.
    decode = program(
        part(lambda model, *args: model.tiles.decode(*args)), state, content, transform.call()
    )
    parts = {
        "style: backbone and encoder": encode_style,
        "content: backbone": encode,
        "decoder": transform,
        "tail": decode,
    }
    return [
        (name, run.flops, seconds_each(run.call, worker.seconds)) for name, run in parts.items()
    ]


def profile(worker: Worker, most: int = 12) -> list[tuple[str, int, float]]:
    """Name, number and share of time of the operations that take longest in a forward pass."""
    run = forward(worker)
    jax.block_until_ready(run.call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run.call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    total, count = Counter(), Counter()
    for plane in devices or planes:
        for line in plane.lines:
            # A GPU's kernels, a TPU's operations, or a CPU's in the threads of XLA.
            if not line.name.startswith(("Stream", "XLA Ops", "tf_XLA")):
                continue
            for event in line.events:
                # Threads also record the runtime's own work, under the names of C++ functions.
                if "::" not in event.name and event.duration_ns:
                    name = event.name.removeprefix("end: ").rstrip(".0123456789")
                    total[name] += event.duration_ns
                    count[name] += 1
    whole = total.total()
    return [(name, count[name], time / whole) for name, time in total.most_common(most)]


class Program(NamedTuple):
    """A compiled function with its arguments."""

    call: Callable[[], object]
    """Starts it once and returns what it will give."""
    flops: int
    bytes: int
    """Peak memory, as the compiler counts."""


def program(function: Callable, *args, donate: bool = False) -> Program:
    """Compile a function; with `donate` its first output replaces its first argument each time."""
    traced = jax.jit(function, donate_argnums=0 if donate else ()).trace(*args)
    compiled = traced.lower().compile()
    state = args[0]

    def call():
        nonlocal state
        if not donate:
            return compiled(*args)
        state, output = compiled(state, *args[1:])
        return output

    return Program(call, count_flops(traced.jaxpr), planned_bytes(compiled))


def student_and_pictures(worker: Worker, **changes) -> tuple[Student, jax.Array, jax.Array]:
    """A student of random numbers, contents and styles."""
    preset = getattr(TrainConfig, worker.preset)((), Path())
    config = dataclasses.replace(preset.model, **changes)
    model = build_student(config, dtype=jnp.dtype(worker.dtype), rngs=nnx.Rngs(0))
    shape = (worker.batch, worker.size, worker.size, 3)
    content, style = (jax.random.uniform(jax.random.key(i), shape) for i in range(2))
    return model, content, style


def forward(worker: Worker) -> Program:
    """The forward pass of a batch."""
    model, *pictures = student_and_pictures(worker)
    graphdef, state = nnx.split(model)
    return program(lambda state, *args: nnx.merge(graphdef, state)(*args), state, *pictures)


def training(worker: Worker) -> Program:
    """A training step of a batch, which goes on from one call to the next."""
    changes = {"dropout": 0.0} if worker.kind == "training without dropout" else {}
    model, *_ = student_and_pictures(worker, **changes)
    settings = dataclasses.replace(
        getattr(TrainConfig, worker.preset)((), Path()),
        model=model.config,
        crop_size=worker.size,
        batch_size=worker.batch,
        dtype=worker.dtype,
    )
    graphdef, variables = nnx.split(model)
    tx = make_optimiser(settings, model.learning_group)
    objective, features = make_objective(LOSSES["L1"], None, "sum")
    step = partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=settings)
    rng = np.random.default_rng(0)
    shape = (worker.batch, worker.size, worker.size, 3)
    names = ("content", "style", "stylised")
    batch = {name: jnp.asarray(rng.integers(0, 256, shape, np.uint8)) for name in names}
    state = create_train_state(variables, model.learning_group, tx)
    return program(step, state, batch, features, donate=True)


def seconds_waited(call: Callable, seconds: float) -> float:
    """Median of a call that is waited for."""
    jax.block_until_ready(call())  # the first call also sets things up
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def seconds_each(call: Callable, seconds: float) -> float:
    """Time of a call among many that follow each other without waiting."""
    count = max(2, round(seconds / seconds_waited(call, 0)))
    start = time.perf_counter()
    for _ in range(count):
        output = call()
    jax.block_until_ready(output)
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(Worker(**json.loads(sys.argv[2])))
    else:
        main(tyro.cli(Config, description=__doc__))
