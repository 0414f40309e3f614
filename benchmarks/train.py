"""Training the mini student: the input pipeline alone, and a step with each kind of objective.

python benchmarks/train.py --sizes 256 512

The triplets are of random pictures of the crop's size, written for the occasion and read again
from the file system's cache; --data gives others.
"""

import dataclasses
import itertools
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tyro
from flax import nnx

from student_jax.nets.flops import count_flops
from student_jax.student import Student
from student_jax.training import sharding
from student_jax.training.config import TrainConfig
from student_jax.training.data import load_sources, training_batches
from student_jax.training.objective import LOSSES, load_features, make_objective
from student_jax.training.train import initial_student
from student_jax.training.train_state import create_train_state, make_optimiser
from student_jax.training.train_step import train_step
from triplets import ImageSet, TripletWriter

OBJECTIVES = {
    "L1": {"loss": "L1"},
    "perceptual, on 128 px": {"loss": "perceptual", "features_crop": 128},
    "texture, on 128 px": {"loss": "texture", "features_crop": 128},
    "perceptual, on all": {"loss": "perceptual", "features_crop": None},
}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    data: str | None = None
    """Triplet dataset with pictures of at least the crops' size."""
    sizes: tuple[int, ...] = (256, 512)
    """Sides of the crops in pixels."""
    batch_size: int = 2
    """Pictures a step."""
    repeats: int = 4
    """Rounds; each runs a step with every objective once, after one that is not counted."""
    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Which of them to measure, besides L1."""
    pipeline_batches: int = 400
    """Batches that the input pipeline alone is timed for."""


NUM_PICTURES, SHARD_SIZE = 16, 32


def random_triplets(folder: Path, size: int) -> str:
    """A dataset of all pairs of random pictures."""
    rng = np.random.default_rng(0)
    shape = (NUM_PICTURES, size, size, 3)
    contents, styles = (
        ImageSet(
            rng.integers(0, 256, shape, np.uint8),
            [f"{kind}-{i}" for i in range(NUM_PICTURES)],
            [(size, size)] * NUM_PICTURES,
        )
        for kind in ("content", "style")
    )
    pairs = np.argwhere(np.ones((NUM_PICTURES, NUM_PICTURES), bool))
    writer = TripletWriter(
        folder, contents=contents, styles=styles, pairs=pairs, shard_size=SHARD_SIZE
    )
    for shard in writer.missing_shards():
        writer.write_shard(shard, rng.integers(0, 256, (SHARD_SIZE, *shape[1:]), np.uint8))
    return str(folder)


def pipeline(data: str, size: int, batch_size: int, num_workers: int, count: int) -> float:
    """Triplets a second of the pipeline alone."""
    sources, _ = load_sources([data], None, 0.1)
    batches = training_batches(
        sources, batch_size=batch_size, crop_size=size, seed=0, num_workers=num_workers
    )
    # What is prepared ahead before the first batch is asked for must not count.
    for _ in itertools.islice(batches, 50):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    rate = count * batch_size / (time.perf_counter() - start)
    batches.close()
    return rate


def prepare(
    data: str, size: int, batch_size: int, student: tuple[Student, nnx.State], changes: dict
) -> tuple:
    """A compiled step, its state, batch and feature parameters, and its arithmetic in FLOP."""
    settings = dataclasses.replace(
        TrainConfig.mini((data,), Path()),
        crop_size=size,
        batch_size=batch_size,
        **changes,
    )
    weights = LOSSES[settings.loss]
    network = load_features("vgg16", "") if weights.need_features else None
    objective, features = make_objective(weights, network, "sum", settings.features_crop)
    model, variables = student
    graphdef = nnx.graphdef(model)
    tx = make_optimiser(settings, model.learning_group)
    sources, _ = load_sources([data], None, 0.1)
    batch = next(
        training_batches(sources, batch_size=batch_size, crop_size=size, seed=0, num_workers=0)
    )
    del batch["record"]
    step = partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=settings)
    state = create_train_state(variables, model.learning_group, tx)
    batch = sharding.shard_batch(batch, sharding.make_mesh())
    traced = jax.jit(step, donate_argnums=0).trace(state, batch, features)
    return traced.lower().compile(), state, batch, features, count_flops(traced.jaxpr)


def measure(data: str, size: int, config: BenchmarkConfig) -> None:
    """Print the figures of one size."""
    rates = [
        pipeline(data, size, config.batch_size, workers, config.pipeline_batches)
        for workers in (0, 2)
    ]
    print(
        f"\n{size} px, batch {config.batch_size}: the pipeline alone gives {rates[0]:.0f} "
        f"triplets/s with threads, {rates[1]:.0f} with 2 processes\n"
    )
    student = initial_student(TrainConfig.mini((data,), Path()))
    programs = {
        name: prepare(data, size, config.batch_size, student, OBJECTIVES[name])
        for name in dict.fromkeys(("L1", *config.objectives))
    }
    states = {name: state for name, (_, state, *_) in programs.items()}
    times: dict[str, list] = {name: [] for name in programs}
    for _ in range(config.repeats + 1):
        for name, (step, _, batch, features, _) in programs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            states[name], terms = step(states[name], batch, features)
            jax.block_until_ready(terms)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(
        "| objective | GFLOP a triplet | wall s | CPU s | of L1 | triplets/s | pipeline's share |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (*_, flops) in programs.items():
        wall, cpu = (
            statistics.median(pair[i] / config.batch_size for pair in times[name][1:])
            for i in range(2)
        )
        ratio = statistics.median(
            a[1] / b[1] for a, b in zip(times[name][1:], times["L1"][1:], strict=True)
        )
        print(
            f"| {name} | {flops / config.batch_size / 1e9:.0f} | {wall:.2f} | {cpu:.2f} | "
            f"{ratio:.2f} | {1 / wall:.1f} | {1 / wall / max(rates):.1%} |",
            flush=True,
        )


def main(config: BenchmarkConfig) -> None:
    """Print the machine and the tables."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"jax {jax.__version__}; load {os.getloadavg()[0]:.1f}"
    )
    for size in config.sizes:
        with tempfile.TemporaryDirectory() as folder:
            measure(config.data or random_triplets(Path(folder), size), size, config)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
