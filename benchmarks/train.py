"""Training the mini student: the input pipeline alone, and a step with each kind of objective.

python benchmarks/train.py --data DIR --crop-size 256
"""

import dataclasses
import itertools
import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import tyro

from student_jax import sharding
from student_jax.config import TrainConfig
from student_jax.data import load_sources, training_batches
from student_jax.flops import count_flops
from student_jax.objective import LOSSES, load_features, make_objective
from student_jax.train import initial_weights
from student_jax.train_state import create_train_state, make_optimiser
from student_jax.train_step import train_step


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    data: str
    """Triplet dataset with pictures of at least the crop's size."""
    crop_size: int = 256
    """Side of the crops in pixels."""
    batch_size: int = 2
    """Pictures a step."""
    repeats: int = 4
    """Rounds; each runs a step with every objective once, after one that is not counted."""


OBJECTIVES = {
    "L1": {"loss": "L1"},
    "perceptual, on 128 px": {"loss": "perceptual", "features_crop": 128},
    "perceptual, on all": {"loss": "perceptual", "features_crop": None},
}


def pipeline(config: BenchmarkConfig) -> float:
    """Pictures a second of the pipeline alone, a triplet counted as one."""
    sources, _ = load_sources([config.data], None, 0.1)
    batches = training_batches(
        sources, batch_size=config.batch_size, crop_size=config.crop_size, seed=0, num_workers=0
    )
    next(batches)
    count, start = 100, time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return count * config.batch_size / (time.perf_counter() - start)


def prepare(config: BenchmarkConfig, changes: dict) -> tuple:
    """A compiled step, its state, batch and feature parameters, and its arithmetic in FLOP."""
    settings = dataclasses.replace(
        TrainConfig.mini((config.data,), Path()),
        crop_size=config.crop_size,
        batch_size=config.batch_size,
        **changes,
    )
    weights = LOSSES[settings.loss]
    network = load_features("vgg16", "") if weights.need_features else None
    objective, features = make_objective(weights, network, "sum", settings.features_crop)
    graphdef, variables = initial_weights(settings)
    tx = make_optimiser(settings)
    sources, _ = load_sources([config.data], None, 0.1)
    batch = next(
        training_batches(
            sources, batch_size=config.batch_size, crop_size=config.crop_size, seed=0, num_workers=0
        )
    )
    del batch["record"]
    step = partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=settings)
    state = create_train_state(variables, settings.model, tx)
    batch = sharding.shard_batch(batch, sharding.make_mesh())
    traced = jax.jit(step, donate_argnums=0).trace(state, batch, features)
    return traced.lower().compile(), state, batch, features, count_flops(traced.jaxpr)


def main(config: BenchmarkConfig) -> None:
    """Print the machine and the tables."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"jax {jax.__version__}; load {os.getloadavg()[0]:.1f}"
    )
    print(f"pipeline alone: {pipeline(config):.0f} triplets/s at {config.crop_size} px\n")
    programs = {name: prepare(config, changes) for name, changes in OBJECTIVES.items()}
    states = {name: state for name, (_, state, *_) in programs.items()}
    times: dict[str, list] = {name: [] for name in programs}
    for _ in range(config.repeats + 1):
        for name, (step, _, batch, features, _) in programs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            states[name], terms = step(states[name], batch, features)
            jax.block_until_ready(terms)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print("| objective | GFLOP a picture | wall s a picture | CPU s a picture | of L1 |")
    print("| --- | --- | --- | --- | --- |")
    for name, (*_, flops) in programs.items():
        wall, cpu = ([pair[i] / config.batch_size for pair in times[name][1:]] for i in range(2))
        ratio = statistics.median(
            a[1] / b[1] for a, b in zip(times[name][1:], times["L1"][1:], strict=True)
        )
        print(
            f"| {name} | {flops / config.batch_size / 1e9:.0f} | {statistics.median(wall):.2f} | "
            f"{statistics.median(cpu):.2f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
