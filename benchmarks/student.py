"""Forward pass of the reference student: ours against PyTorch's, same weights, alternating.

python benchmarks/student.py --sizes 256 512 --repeats 5
python benchmarks/student.py --attention        # memory only, nothing is run
"""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from flax import nnx
from torch_sttr import TorchSTTR

from student_jax import STTR, STTRConfig
from student_jax.convert import sttr_to_torch
from student_jax.models.attention import CPU_SCORE_BYTES, attention


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    sizes: tuple[int, ...] = (256, 512)
    """Sides of content and style in pixels."""
    repeats: int = 5
    """Rounds; each runs every variant once, after one round that is not counted."""
    compile: bool = False
    """Also time torch.compile, which needs a C++ compiler and minutes."""
    attention: bool = False
    """Print the memory of attention, whole and chunked, instead."""


def random_student(config: STTRConfig) -> STTR:
    """A student of random numbers of about the right size."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: STTR(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(x):
        if len(x.shape) == 1:
            return rng.uniform(0.9, 1.1, x.shape).astype(np.float32)
        scale = np.sqrt(np.prod(x.shape[:-1]), dtype=np.float32)
        return rng.standard_normal(x.shape, np.float32) / scale

    return nnx.merge(graphdef, jax.tree.map(draw, state))


def torch_variants(model: STTR, with_compile: bool) -> dict[str, Callable]:
    """PyTorch's forward passes by name; NumPy pictures [b h w 3] in and out."""
    state = {name: torch.from_numpy(array) for name, array in sttr_to_torch(model).items()}

    def build(weights, memory_format=torch.contiguous_format, compiled=False):
        network = TorchSTTR(model.config, weights).eval()
        network.load_state_dict(state, strict=True)
        network = network.to(memory_format=memory_format)
        if compiled:
            network = torch.compile(network)

        def forward(content, style):
            pictures = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (content, style))
            with torch.inference_mode():
                return network(*(x.contiguous(memory_format=memory_format) for x in pictures))

        return lambda *pictures: forward(*pictures).permute(0, 2, 3, 1).numpy()

    variants = {
        "PyTorch eager": build(True),
        "PyTorch SDPA": build(False),
        "PyTorch SDPA, channels last": build(False, torch.channels_last),
    }
    if with_compile:
        variants["PyTorch SDPA, torch.compile"] = build(False, compiled=True)
    return variants


def measure(size: int, config: BenchmarkConfig) -> None:
    """Print a table of one size."""
    model = random_student(STTRConfig.reference())
    graphdef, state = nnx.split(model)
    ours = jax.jit(lambda state, *pictures: nnx.merge(graphdef, state)(*pictures))
    rng = np.random.default_rng(0)
    pictures = tuple(rng.random((1, size, size, 3), np.float32) for _ in range(2))
    start = time.perf_counter()
    compiled = ours.lower(state, *pictures).compile()
    compile_s = time.perf_counter() - start
    variants = torch_variants(model, config.compile)
    variants["ours"] = lambda *pictures: np.asarray(compiled(state, *pictures))
    outputs = {name: forward(*pictures) for name, forward in variants.items()}
    times = {name: ([], []) for name in variants}
    for _ in range(config.repeats):
        for name, forward in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            forward(*pictures)
            times[name][0].append(time.perf_counter() - wall)
            times[name][1].append(time.process_time() - cpu)
    print(
        f"\n{size} x {size} px, {config.repeats} rounds; our compilation took {compile_s:.0f} s\n"
    )
    print("| | wall s | of eager | CPU s | of eager | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    eager = times["PyTorch eager"]
    for name, series in times.items():
        cells = []
        for seconds, reference in zip(series, eager, strict=True):
            ratio = statistics.median(a / b for a, b in zip(seconds, reference, strict=True))
            cells += [f"{statistics.median(seconds):.2f}", f"{ratio:.2f}"]
        difference = np.abs(outputs[name] - outputs["PyTorch eager"]).max()
        print(f"| {name} | {' | '.join(cells)} | {difference:.1e} |")


def attention_memory() -> None:
    """Print what self-attention of the content needs beside its inputs, as the compiler counts."""
    print("\n| content px | tokens | whole | and backward | chunked | and backward |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in (256, 512, 1024, 2048):
        n = (size // 8) ** 2
        x = jax.ShapeDtypeStruct((1, n, 8, 32), jnp.float32)
        cells = []
        for score_bytes in (2**62, CPU_SCORE_BYTES):

            def forward(q, k, v, score_bytes=score_bytes):
                return attention(q, k, v, score_bytes=score_bytes)

            def step(q, k, v, forward=forward):
                return jax.grad(lambda *args: forward(*args).sum(), (0, 1, 2))(q, k, v)

            for function in (forward, step):
                memory = jax.jit(function).lower(x, x, x).compile().memory_analysis()
                cells.append(f"{memory.temp_size_in_bytes / 2**20:,.0f} MiB")
        print(f"| {size} | {n} | {' | '.join(cells)} |")


def main(config: BenchmarkConfig) -> None:
    """Print the machine and the tables."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"jax {jax.__version__}, torch {torch.__version__}; load {os.getloadavg()[0]:.1f}"
    )
    if config.attention:
        attention_memory()
        return
    for size in config.sizes:
        measure(size, config)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
