"""The reference student: ours against PyTorch's, same weights, alternating.

python benchmarks/student.py --sizes 256 512 --repeats 5            # forward pass
python benchmarks/student.py --train --sizes 256 --batches 1 2      # training step
python benchmarks/student.py --memory --sizes 512 1024 2048         # as the compiler counts
"""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from flax import nnx
from torch_sttr import TorchSTTR

from student_jax import STTR, STTRConfig
from student_jax.inference.programs import planned_bytes
from student_jax.nets.attention import CPU_SCORE_BYTES, MultiHeadAttention, attention
from student_jax.students.sttr.convert import sttr_to_torch
from student_jax.training.config import TrainConfig
from student_jax.training.objective import LOSSES, make_objective
from student_jax.training.train_state import create_train_state, make_optimiser
from student_jax.training.train_step import train_step


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    sizes: tuple[int, ...] = (256, 512)
    """Sides of content and style in pixels."""
    repeats: int = 5
    """Rounds; each runs every variant once, after one round that is not counted."""
    compile: bool = False
    """Also time torch.compile, which needs a C++ compiler and minutes."""
    train: bool = False
    """Time a training step instead: forward, backward and AdamW, of the mean squared error."""
    batches: tuple[int, ...] = (1, 2)
    """Pictures of a training step."""
    memory: bool = False
    """Print the memory of attention and of the whole student instead, running nothing."""


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


def torch_network(model: STTR, weights: bool) -> TorchSTTR:
    """PyTorch's network with the model's parameters."""
    network = TorchSTTR(model.config, weights)
    state = {name: torch.from_numpy(array) for name, array in sttr_to_torch(model).items()}
    network.load_state_dict(state, strict=True)
    return network


def torch_variants(model: STTR, with_compile: bool) -> dict[str, Callable]:
    """PyTorch's forward passes by name; NumPy pictures [b h w 3] in and out."""

    def build(weights, memory_format=torch.contiguous_format, compiled=False):
        network = torch_network(model, weights).eval().to(memory_format=memory_format)
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
    differences = {
        name: np.abs(output - outputs["PyTorch eager"]).max() for name, output in outputs.items()
    }
    runs = {name: partial(forward, *pictures) for name, forward in variants.items()}
    times = alternate(runs, config.repeats)
    title = f"{size} x {size} px, {config.repeats} rounds; our compilation took {compile_s:.0f} s"
    print_table(title, times, differences)


def alternate(runs: dict[str, Callable], repeats: int) -> dict[str, tuple[list, list]]:
    """Wall-clock seconds and seconds of all cores of every run in every round."""
    times = {name: ([], []) for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name][0].append(time.perf_counter() - wall)
            times[name][1].append(time.process_time() - cpu)
    return times


def print_table(title: str, times: dict, differences: dict[str, float]) -> None:
    """Print medians, and medians of the ratios of each round."""
    print(f"\n{title}\n")
    print("| | wall s | of eager | CPU s | of eager | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    eager = times["PyTorch eager"]
    for name, series in times.items():
        cells = []
        for seconds, reference in zip(series, eager, strict=True):
            ratio = statistics.median(a / b for a, b in zip(seconds, reference, strict=True))
            cells += [f"{statistics.median(seconds):.2f}", f"{ratio:.2f}"]
        print(f"| {name} | {' | '.join(cells)} | {differences[name]:.1e} |", flush=True)


def measure_training(size: int, batch_size: int, config: BenchmarkConfig) -> None:
    """Print a table of the training steps of one batch, without dropout, which is random.

    Both clip the gradients and train the backbones more slowly; ours also averages its parameters.
    """
    model = random_student(dataclasses.replace(STTRConfig.reference(), dropout=0.0))
    settings = dataclasses.replace(
        TrainConfig.reference((), Path()),
        model=model.config,
        crop_size=size,
        batch_size=batch_size,
        warmup_steps=0,
        schedule="constant",
    )
    rng = np.random.default_rng(0)
    shape = (batch_size, size, size, 3)
    names = ("content", "style", "stylised")
    batch = {name: rng.integers(0, 256, shape, np.uint8) for name in names}
    runs = {
        "PyTorch eager": torch_step(model, True, settings, batch),
        "PyTorch SDPA": torch_step(model, False, settings, batch),
        "PyTorch SDPA, channels last": torch_step(
            model, False, settings, batch, torch.channels_last
        ),
    }
    compile_s = []
    for name, score_bytes in (("ours", None), ("ours, whole attention", 2**62)):
        start = time.perf_counter()
        runs[name] = our_step(model, settings, batch, score_bytes)
        compile_s.append(f"{time.perf_counter() - start:.0f} s")
    figures = {name: [run()] for name, run in runs.items()}
    recorded = {
        name: lambda name=name, run=run: figures[name].append(run()) for name, run in runs.items()
    }
    times = alternate(recorded, config.repeats)
    eager = np.array(figures["PyTorch eager"][0])
    # Of the first step: AdamW makes of rounding errors, where gradients vanish, whole steps.
    differences = {name: np.abs(np.array(x[0]) / eager - 1).max() for name, x in figures.items()}
    title = (
        f"Training at {size} x {size} px, batch {batch_size}, {config.repeats} rounds; our "
        f"compilation took {' and '.join(compile_s)}; differences are relative, of loss and "
        "norm of the gradients of the first step"
    )
    print_table(title, times, differences)


def our_step(
    model: STTR, settings: TrainConfig, batch: dict[str, np.ndarray], score_bytes: int | None
) -> Callable[[], tuple[float, float]]:
    """Our training step, compiled; it returns the loss and the norm of the gradients."""
    for _, module in nnx.iter_graph(model):
        if isinstance(module, MultiHeadAttention):
            module.score_bytes = score_bytes
    graphdef, variables = nnx.split(model)
    tx = make_optimiser(settings, model.learning_group)
    objective, features = make_objective(LOSSES["L1"], None, "sum")
    step = partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=settings)
    # A copy, because the step donates its state.
    state = create_train_state(jax.tree.map(jnp.array, variables), model.learning_group, tx)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, features).compile()

    def run():
        nonlocal state
        state, terms = compiled(state, batch, features)
        return float(terms["loss"]), float(terms["gradient_norm"])

    return run


def torch_step(
    model: STTR,
    weights: bool,
    settings: TrainConfig,
    batch: dict[str, np.ndarray],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Callable[[], tuple[float, float]]:
    """PyTorch's training step; it returns the loss and the norm of the gradients."""
    network = torch_network(model, weights).train().to(memory_format=memory_format)
    groups = ([], [])
    for name, parameter in network.named_parameters():
        if ".body.conv1." in name or ".body.layer1." in name:
            parameter.requires_grad_(False)
        else:
            groups[name.startswith("backbone")].append(parameter)
    rates = (settings.learning_rate, settings.learning_rate * settings.slow_rate)
    optimiser = torch.optim.AdamW(
        [{"params": params, "lr": rate} for params, rate in zip(groups, rates, strict=True)],
        weight_decay=settings.weight_decay,
    )
    parameters = groups[0] + groups[1]

    def run():
        content, style, target = (
            (torch.from_numpy(batch[name]).permute(0, 3, 1, 2).float() / 255).contiguous(
                memory_format=memory_format
            )
            for name in ("content", "style", "stylised")
        )
        loss = (network(content, style) - target).square().mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item(), norm.item()

    return run


def attention_memory(sizes: tuple[int, ...]) -> None:
    """Print what self-attention of the content needs beside its inputs, as the compiler counts."""
    print("\n| content px | tokens | all scores | chunked | and backward |")
    print("| --- | --- | --- | --- | --- |")
    heads, channels = 8, 32
    for size in sizes:
        n = (size // 8) ** 2
        x = jax.ShapeDtypeStruct((1, n, heads, channels), jnp.float32)

        def forward(q, k, v):
            return attention(q, k, v, score_bytes=CPU_SCORE_BYTES)

        def step(q, k, v):
            return jax.grad(lambda *args: forward(*args).sum(), (0, 1, 2))(q, k, v)

        memory = [jax.jit(f).lower(x, x, x).compile().memory_analysis() for f in (forward, step)]
        counted = [4 * heads * n**2, *(of.temp_size_in_bytes for of in memory)]
        print(f"| {size} | {n} | {' | '.join(f'{x / 2**20:,.0f} MiB' for x in counted)} |")


def student_memory(sizes: tuple[int, ...]) -> None:
    """Print what the reference student needs at batch 1, parameters and pictures included."""
    print("\n| px | forward | training step with --remat |")
    print("| --- | --- | --- |")
    for size in sizes:
        cells = [forward_memory(size)]
        if size <= 1024:
            cells.append(training_memory(size))
        print(f"| {size} | {' | '.join(f'{x / 2**30:.1f} GiB' for x in cells)} |", flush=True)


def forward_memory(size: int) -> int:
    """Bytes of a forward pass of one content and one style of this size."""
    config = STTRConfig.reference()
    graphdef, state = nnx.split(nnx.eval_shape(lambda: STTR(config, rngs=nnx.Rngs(0))))
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    forward = jax.jit(lambda state, *pictures: nnx.merge(graphdef, state)(*pictures))
    return planned_bytes(forward.lower(state, picture, picture).compile())


def training_memory(size: int) -> int:
    """Bytes of a training step of one triplet of this size."""
    settings = dataclasses.replace(
        TrainConfig.reference((), Path()), crop_size=size, batch_size=1, remat=True
    )
    model = nnx.eval_shape(lambda: STTR(settings.model, remat=True, rngs=nnx.Rngs(0)))
    tx = make_optimiser(settings, model.learning_group)
    objective, features = make_objective(LOSSES["L1"], None, "sum")
    graphdef, variables = nnx.split(model)
    fresh = partial(create_train_state, learning_group=model.learning_group, tx=tx)
    state = jax.eval_shape(fresh, variables)
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    batch = dict.fromkeys(("content", "style", "stylised"), picture)
    step = partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=settings)
    return planned_bytes(jax.jit(step, donate_argnums=0).lower(state, batch, features).compile())


def main(config: BenchmarkConfig) -> None:
    """Print the machine and the tables."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"jax {jax.__version__}, torch {torch.__version__}; load {os.getloadavg()[0]:.1f}"
    )
    if config.memory:
        attention_memory(config.sizes)
        student_memory(config.sizes)
        return
    for size in config.sizes:
        if not config.train:
            measure(size, config)
            continue
        for batch_size in config.batches:
            measure_training(size, batch_size, config)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
