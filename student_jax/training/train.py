"""Training: one function, from the data to the last checkpoint."""

import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from student_jax.compilation import enable_compilation_cache
from student_jax.nets.flops import count_flops
from student_jax.student import Student, build_student
from student_jax.training import sharding
from student_jax.training.checkpoint import (
    BEST_METRIC,
    Checkpoints,
    check_config,
    load_metrics,
    save_config,
    set_aside_damaged,
)
from student_jax.training.config import TrainConfig
from student_jax.training.data import check_crops, load_sources, training_batches
from student_jax.training.metrics import (
    Folder,
    MetricWriters,
    TensorBoard,
    WeightsAndBiases,
    last_terms,
)
from student_jax.training.objective import load_features, make_objective, weights_of
from student_jax.training.progress import Progress, TrainingError, peak_flops
from student_jax.training.train_state import (
    create_train_state,
    learning_rate_schedule,
    make_optimiser,
)
from student_jax.training.train_step import predict, train_step
from student_jax.training.validation import validate
from student_jax.weights.folder import open_student
from student_jax.weights.provenance import library_versions, weights_sha256
from triplets import Cache, InputError, one_line
from triplets.atomic import make_folder, write_json


def train(config: TrainConfig) -> None:
    """Run a training to its last step; see `TrainConfig`.

    Raises:
        InputError: data, workdir or weights that cannot be used.
        TrainingError: a figure is no longer a number; the last good checkpoint is kept.
    """
    with termination_flag() as terminated:
        _train(config, terminated)


def _train(config: TrainConfig, terminated: Callable[[], bool]) -> None:
    loss_weights = weights_of(config.loss, config.without)
    if loss_weights.sameness and config.batch_size // config.accumulate < 2:
        raise InputError(
            f"--batch-size {config.batch_size} --accumulate {config.accumulate}: the loss "
            f"{config.loss} compares the styles of a batch; expected two pictures a part or more, "
            "or --without sameness."
        )
    if config.crop_size < loss_weights.smallest_side:
        raise InputError(
            f"--crop-size {config.crop_size}: the loss {config.loss} needs "
            f"{loss_weights.smallest_side} pixels or more."
        )

    # Processes and devices
    enable_compilation_cache()
    sharding.start_processes(config.coordinator, config.num_processes, config.process_id)
    mesh = sharding.make_mesh(config.fsdp)
    if config.batch_size % (mesh.size * config.accumulate):
        raise InputError(
            f"--batch-size {config.batch_size} cannot be split over {mesh.size} devices and "
            f"{config.accumulate} parts."
        )
    first_process = jax.process_index() == 0
    if first_process:
        check_config(config)

    # Data
    cache = Cache.of(config.cache_dir, config.cache_gib)
    sources, triplets = load_sources(
        config.data, config.validation, config.validation_fraction, cache
    )
    if not len(triplets):
        raise InputError(
            "nothing to validate on: give --validation or a larger --validation-fraction."
        )
    check_crops(sources, config.crop_size)
    count = min(config.validation_pairs, len(triplets))
    triplets = [triplets[i] for i in np.linspace(0, len(triplets) - 1, count).round().astype(int)]

    # Model, objective and optimiser
    made_from = {"libraries": library_versions()}
    network = None
    if loss_weights.need_features:
        network = load_features(config.features, config.vgg19_weights)
        made_from[config.features] = weights_sha256(nnx.state(network))
    objective, features = make_objective(
        loss_weights, network, config.gram_reduction, config.features_crop
    )
    student, weights = initial_student(config)
    graphdef, learning_group = nnx.graphdef(student), student.learning_group
    if config.init_from is not None:
        made_from["init_from"] = weights_sha256(weights)
    elif first_process and has_frozen_parameters(student):
        print(
            "warning: some layers of this student are never trained and stay as they start, which "
            "is at random without --init-from; `style-distil weights import` makes a start from "
            "published weights.",
            file=sys.stderr,
        )
    tx = make_optimiser(config, learning_group)
    fresh_state = partial(create_train_state, learning_group=learning_group, tx=tx)
    abstract_state = sharding.placed(jax.eval_shape(fresh_state, weights), mesh)
    placement = jax.tree.map(lambda x: x.sharding, abstract_state)
    copies, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    # Workdir: a new run, or the one that is continued
    if first_process:
        make_folder(config.workdir)
        set_aside_damaged(config.workdir)
    sharding.wait_for_all("workdir")
    with Checkpoints(config.workdir) as checkpoints:
        if checkpoints.steps():
            state = checkpoints.restore(checkpoints.steps()[-1], abstract_state)
        else:
            state = jax.jit(fresh_state, out_shardings=placement)(weights)
        features = jax.jit(lambda x: x, out_shardings=copies)(jax.device_get(features))
        start = int(state.step)

        batches = training_batches(
            sources,
            config.data_weights,
            batch_size=config.batch_size,
            crop_size=config.crop_size,
            seed=config.seed,
            num_workers=config.num_workers,
            image_size=config.image_size,
            start=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

        # Programs
        step_fn = jax.jit(
            partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=config),
            in_shardings=(placement, split, copies),
            out_shardings=(placement, copies),
            donate_argnums=0,
        )
        validate_fn = partial(
            validate,
            jax.jit(
                partial(predict, graphdef=graphdef),
                in_shardings=(placement, split, split),
                out_shardings=copies,
            ),
            triplets=triplets,
            batch_size=config.batch_size,
            multiple=math.lcm(config.model.content_stride, config.model.style_stride),
            mesh=mesh,
        )
        peak = peak_flops(config.peak_tflops)
        flops = None
        if peak is not None:
            side = config.crop_size
            picture = jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8)
            batch = dict.fromkeys(("content", "style", "stylised"), picture)
            flops = count_flops(step_fn.trace(abstract_state, batch, features).jaxpr)

        # Loop
        writers = []
        if first_process and config.wandb:  # may not be installed, so before files are open
            writers.append(WeightsAndBiases(config.workdir, config.wandb, config.to_json()))
        if first_process:
            writers += [Folder(config.workdir, start), TensorBoard(config.workdir, start)]
        # Not before: a run that cannot begin must not stand in the way of the next attempt.
        if first_process and not (config.workdir / "config.json").exists():
            save_config(config.workdir, config, made_from)
        schedule = learning_rate_schedule(config)
        metrics, step = {}, start
        # A signal during what comes before the first step.
        stopped = sharding.any_process(terminated())
        with (
            MetricWriters(writers) as writer,
            Progress(config, start, writer, schedule, flops, peak, first_process) as progress,
        ):
            try:
                while not stopped and step < config.steps:
                    step += 1
                    batch = next(batches)
                    records = batch.pop("record").tolist()
                    batch = sharding.shard_batch(batch, mesh)
                    # Copies between host and device that nobody asked for would slow each step.
                    with jax.transfer_guard("disallow"):
                        state, terms = step_fn(state, batch, features)
                        progress.dispatched(step, records, terms)
                    # Several processes have to agree, which makes them wait for each other.
                    ask = jax.process_count() == 1 or step % config.log_every == 0
                    stopped = ask and sharding.any_process(terminated())
                    if step == config.steps or step % config.checkpoint_every == 0:
                        with progress.paused():
                            metrics, samples = validate_fn(state)
                            if not math.isfinite(metrics[BEST_METRIC]):
                                raise TrainingError(f"step {step} left no finite prediction.")
                            # The figures first: a resumed run drops what is past its checkpoint.
                            writer.scalars(step, _named("validation_{}", metrics))
                            writer.picture(step, "validation", samples)
                            checkpoints.save(state, metrics)
                    elif stopped:
                        progress.settle()
                        # Whoever sends signals does not wait for a validation: never the best.
                        checkpoints.save(state, {BEST_METRIC: math.inf})
            except TrainingError as error:
                last = (checkpoints.steps() or ["none"])[-1]
                raise TrainingError(
                    f"{one_line(error)}; the last good checkpoint is {last}: look at these "
                    "triplets, or try a lower --learning-rate."
                ) from error

    # Summary
    if not first_process:
        return
    if stopped and step < config.steps:
        print(f"stopped by a signal after step {step} of {config.steps}; --resume continues")
        return
    path = config.workdir / "summary.json"
    if start < config.steps:
        write_json(path, _summary(step, progress.images_per_s, progress.terms, metrics))
        print(
            f"trained {step} steps at {progress.images_per_s or 0:.1f} images/s, "
            f"{metrics['psnr']:.2f} dB to the teacher on {count} validation triplets; "
            f'see "{config.workdir}"'
        )
        return
    if not path.exists():  # the run was killed after its last checkpoint
        metrics = load_metrics(config.workdir, start)
        write_json(path, _summary(start, None, last_terms(config.workdir, start), metrics))
    print(f'the run in "{config.workdir}" has its {start} steps already')


def _summary(
    step: int, images_per_s: float | None, terms: dict[str, float], metrics: dict[str, float]
) -> dict[str, Any]:
    """What summary.json holds."""
    return {
        "steps": step,
        "images_per_s": images_per_s,
        **_named("training_{}", terms),
        **_named("validation_{}", metrics),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "libraries": library_versions(),
    }


def _named(pattern: str, values: dict[str, float]) -> dict[str, float]:
    return {pattern.format(name): value for name, value in values.items()}


def initial_student(config: TrainConfig) -> tuple[Student, nnx.State]:
    """The student to train, abstract, and all its variables: new, or `config.init_from`'s.

    The variables are NumPy arrays, which every process can place on the devices of all.

    Raises:
        InputError: weights of another architecture.
    """

    def build() -> Student:
        dtype, rngs = jnp.dtype(config.dtype), nnx.Rngs(config.seed)
        return build_student(config.model, dtype=dtype, remat=config.remat, rngs=rngs)

    student = nnx.eval_shape(build)
    if config.init_from is None:
        return student, jax.device_get(jax.jit(lambda: nnx.state(build()))())
    given = open_student(config.init_from)
    if given.config != config.model:
        raise InputError(
            f'--init-from "{config.init_from}" is a student of another architecture: '
            f"{given.config}, but this run trains {config.model}."
        )
    return student, jax.device_get(nnx.state(given))


def has_frozen_parameters(student: Student) -> bool:
    """Whether the student, abstract or not, has parameters that are never trained: they must come
    from other weights."""
    parameters = nnx.to_flat_state(nnx.state(student, nnx.Param))
    return any(student.learning_group(path) == "frozen" for path, _ in parameters)


@contextmanager
def termination_flag() -> Iterator[Callable[[], bool]]:
    """A function that returns whether SIGTERM has arrived, to stop in order between two steps."""
    received = False

    def handle(*_):
        nonlocal received
        received = True

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: received
    finally:
        signal.signal(signal.SIGTERM, previous)
