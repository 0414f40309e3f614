"""Training: one function, from the data to the last checkpoint."""

import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from student_jax import sharding
from student_jax.checkpoint import BEST_METRIC, Checkpoints, load_config, save_config
from student_jax.compilation import enable_compilation_cache
from student_jax.config import TrainConfig
from student_jax.data import TripletSource, split_triplets, training_batches
from student_jax.metrics import MetricWriter
from student_jax.models import STTR
from student_jax.objective import LOSSES, LossFunction, load_features, make_objective
from student_jax.pretrained import open_student
from student_jax.train_state import (
    Terms,
    TrainState,
    create_train_state,
    learning_rate_schedule,
    make_optimiser,
)
from triplets import InputError, TripletDataset, contact_sheet, uint8_from_float

SAMPLES = 6
"""Rows of the picture that each validation draws."""


class TrainingError(InputError):
    """Training cannot go on; the message says since when and what remains."""


def unit_range(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """uint8 pixels -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def train_step(
    state: TrainState,
    batch: dict[str, UInt8[Array, "b h w 3"]],
    features: nnx.State,
    *,
    graphdef: nnx.GraphDef,
    objective: LossFunction,
    tx: optax.GradientTransformation,
    config: TrainConfig,
) -> tuple[TrainState, Terms]:
    """One step of the optimiser; returns the new state, and the loss and its terms before it."""
    content, style, target = (unit_range(batch[k]) for k in ("content", "style", "stylised"))
    # Derived from the step, so that a resumed run draws the same dropout masks.
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)

    def loss_fn(params):
        # Copied, because batch norm writes to its statistics inside the differentiated function.
        model = nnx.merge(graphdef, params, state.stats, copy=True)
        prediction = model(content, style, train=True, rngs=nnx.Rngs(dropout=key))
        loss, terms = objective(features, prediction, target)
        _, _, stats = nnx.split(model, nnx.Param, ...)
        return loss, (terms, stats)

    (loss, (terms, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    # The average forgets its random start faster than its final rate would.
    decay = jnp.minimum(config.ema_decay, step / (step + 10))
    ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
    terms = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(grads)}
    return TrainState(step, params, stats, opt_state, ema_params), terms


def predict(
    state: TrainState,
    content: UInt8[Array, "b h w 3"],
    style: UInt8[Array, "b h w 3"],
    *,
    graphdef: nnx.GraphDef,
) -> Float[Array, "b h w 3"]:
    """Stylised pictures by the averaged parameters, clipped to [0, 1]."""
    model = nnx.merge(graphdef, state.ema_params, state.stats)
    return model(unit_range(content), unit_range(style)).clip(0, 1)


def load_triplets(
    config: TrainConfig,
) -> tuple[TripletSource, TripletDataset, Int[np.ndarray, " q"]]:
    """What to train on, and the dataset and the indices in it to validate on.

    Raises:
        InputError: not a dataset, or its pictures do not suit the crop size.
    """
    dataset = TripletDataset(config.data)
    smallest = min(dataset.manifest["image_size"])
    if config.crop_size > smallest:
        raise InputError(
            f"--crop-size {config.crop_size} is larger than the pictures of {config.data} "
            f"({smallest} px)."
        )
    split = split_triplets(dataset, 0.0 if config.validation else config.held_out_fraction)
    held_out = split.held_out
    source = TripletSource(dataset, split.train)
    if config.validation:
        dataset = TripletDataset(config.validation)
        held_out = np.arange(len(dataset))
    if len(held_out) > config.validation_pairs:
        spread = np.linspace(0, len(held_out) - 1, config.validation_pairs).round().astype(int)
        held_out = held_out[spread]
    return source, dataset, held_out


def validate(
    predict_fn: Callable[[TrainState, Array, Array], Array],
    state: TrainState,
    dataset: TripletDataset,
    indices: Int[np.ndarray, " q"],
    config: TrainConfig,
    mesh: Mesh,
) -> tuple[dict[str, float], UInt8[np.ndarray, "h w 3"]]:
    """Mean squared error to the teacher on held-out triplets, and a picture of the first few.

    The picture has a row for each: content, style, teacher, student.
    """
    multiple = math.lcm(config.model.content_stride, config.model.style_stride)

    def whole(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        h, w = (side - side % multiple for side in image.shape[:2])
        return image[:h, :w]

    errors, rows = [], []
    batch_size = -(-min(config.batch_size, len(indices)) // mesh.size) * mesh.size
    for start in range(0, len(indices), batch_size):
        chunk = indices[start : start + batch_size]
        # Filled up with the last triplet, so that each batch has one shape.
        filled = np.pad(chunk, (0, batch_size - len(chunk)), mode="edge")
        triplets = [dataset[i] for i in filled]
        content, style, target = (
            np.stack([whole(getattr(t, name)) for t in triplets])
            for name in ("content", "style", "stylised")
        )
        placed = sharding.shard_batch({"content": content, "style": style}, mesh)
        prediction = np.asarray(predict_fn(state, placed["content"], placed["style"]))[: len(chunk)]
        difference = prediction - target[: len(chunk)] / np.float32(255)
        errors.extend(np.mean(difference**2, axis=(1, 2, 3)).tolist())
        for i in range(min(len(chunk), SAMPLES - len(rows))):
            rows.append([content[i], style[i], target[i], uint8_from_float(prediction[i])])
    mse = float(np.mean(errors))
    return {BEST_METRIC: mse, "psnr": -10 * math.log10(mse)}, contact_sheet(
        rows, ("content", "style", "teacher", "student")
    )


def train(config: TrainConfig) -> None:
    """Run a training to its last step; see `TrainConfig`.

    Raises:
        InputError: data, workdir or weights that cannot be used.
        TrainingError: the loss is no longer a number; the last good checkpoint is kept.
    """
    # Devices
    enable_compilation_cache()
    mesh = sharding.data_mesh()
    if config.batch_size % mesh.size:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be split over {mesh.size} devices."
        )

    # Data
    source, validation_data, held_out = load_triplets(config)
    batches = training_batches(
        source,
        batch_size=config.batch_size // jax.process_count(),
        crop_size=config.crop_size,
        seed=config.seed,
        num_workers=config.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    # Model, objective and optimiser
    loss_weights = LOSSES[config.loss]
    network = load_features(config.features, config.vgg19_weights) if loss_weights.gram else None
    objective, features = make_objective(loss_weights, network, config.gram_reduction)
    model = initial_model(config)
    tx = make_optimiser(config, nnx.state(model, nnx.Param))
    graphdef, state = create_train_state(model, tx)

    # Workdir: a new run, or the one that is continued
    check_workdir(config)
    save_config(config.workdir, config)
    with Checkpoints(config.workdir) as checkpoints:
        copies = sharding.replicated(mesh)
        state, features = jax.device_put((state, features), copies)
        if checkpoints.steps():
            state = checkpoints.restore(checkpoints.steps()[-1], state, batches, copies)
        start = int(state.step)

        # Loop
        split = sharding.batch_sharding(mesh)
        step_fn = jax.jit(
            partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=config),
            in_shardings=(copies, split, copies),
            out_shardings=copies,
            donate_argnums=0,
        )
        predict_fn = jax.jit(
            partial(predict, graphdef=graphdef),
            in_shardings=(copies, split, split),
            out_shardings=copies,
        )
        schedule = learning_rate_schedule(config)
        with (
            MetricWriter(config.workdir, start) as writer,
            termination_flag() as terminated,
            tqdm(total=config.steps, initial=start, unit="step", desc="training") as bar,
        ):
            for step in range(start + 1, config.steps + 1):
                batch = sharding.shard_batch(next(batches), mesh)
                state, terms = step_fn(state, batch, features)
                last = step == config.steps or terminated()
                checkpoint_due = last or step % config.checkpoint_every == 0
                if checkpoint_due or step % config.log_every == 0:
                    values = {name: float(value) for name, value in terms.items()}
                    if not all(map(math.isfinite, values.values())):
                        raise TrainingError(
                            f"the loss became {values['loss']} between steps "
                            f"{step - config.log_every} and {step}; the last good checkpoint is "
                            f"{(checkpoints.steps() or ['none'])[-1]}. Try a lower learning rate."
                        )
                    values["learning_rate"] = float(schedule(step - 1))
                    if checkpoint_due:
                        metrics, samples = validate(
                            predict_fn, state, validation_data, held_out, config, mesh
                        )
                        values |= {f"validation_{name}": v for name, v in metrics.items()}
                        writer.picture(step, "held_out", samples)
                        checkpoints.save(state, batches, metrics)
                    writer.scalars(step, values)
                    rate = bar.format_dict["rate"] or 0.0
                    bar.set_postfix(
                        loss=f"{values['loss']:.5f}", images_s=f"{rate * config.batch_size:.1f}"
                    )
                bar.update()
                if terminated():
                    break
    if terminated():
        print(f"stopped by a signal after step {step}; --resume continues")
    else:
        print(f"trained {config.steps} steps; the checkpoints are in {config.workdir}")


def initial_model(config: TrainConfig) -> STTR:
    """A new student, or one with the weights of `config.init_from`.

    Raises:
        InputError: weights of another architecture.
    """
    dtype = jnp.dtype(config.dtype)
    model = STTR(config.model, dtype=dtype, rngs=nnx.Rngs(config.seed))
    if config.init_from is None:
        return model
    given = open_student(config.init_from)
    if given.config != config.model:
        raise InputError(
            f'--init-from "{config.init_from}" is a student of another architecture: '
            f"{given.config}, but this run trains {config.model}."
        )
    nnx.update(model, nnx.state(given))
    return model


def check_workdir(config: TrainConfig) -> None:
    """Refuse to overwrite another run, or to continue one with other settings.

    Raises:
        InputError: names what to do, or the first setting that differs.
    """
    if not (config.workdir / "config.json").exists():
        return
    if not config.resume:
        raise InputError(
            f'"{config.workdir}" holds a run already: give --resume to continue it, or another '
            "--workdir."
        )
    stored, given = load_config(config.workdir), json.loads(json.dumps(asdict(config), default=str))
    for name in given:
        if name not in ("resume", "workdir") and stored.get(name) != given[name]:
            raise InputError(
                f'the run in "{config.workdir}" has {name} = {stored.get(name)}, not '
                f"{given[name]}: --resume continues with the same settings."
            )


@contextmanager
def termination_flag() -> Iterator:
    """A function that tells whether SIGTERM has arrived, for an orderly stop between two steps."""
    received = False

    def handle(*_):
        nonlocal received
        received = True

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: received
    finally:
        signal.signal(signal.SIGTERM, previous)
