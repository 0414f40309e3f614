"""The two programs of a training run: one step of the optimiser, and prediction."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8

from student_jax.training.config import TrainConfig
from student_jax.training.objective import LossFunction, Pictures, weights_of
from student_jax.training.train_state import Terms, TrainState, trained


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
    """One step of the optimiser; returns the new state, and the loss and its terms before it.

    With `config.accumulate` > 1 the parts of the batch follow one another and their gradients are
    averaged, which gives those of the whole batch; only batch norm takes its statistics from one
    part at a time.
    """

    def loss_fn(params, stats, batch, key):
        content, style, target = (unit_range(batch[k]) for k in ("content", "style", "stylised"))
        # Copied, because batch norm writes to its statistics inside the differentiated function.
        model = nnx.merge(graphdef, params, stats, copy=True)
        dropout_key, objective_key = jax.random.split(key)
        prediction = model(content, style, train=True, rngs=nnx.Rngs(dropout=dropout_key))
        pictures = Pictures(prediction, target, content, style)
        if weights_of(config.loss, config.without).sameness:
            # Each content in the style of its neighbour too.
            pictures = pictures._replace(other=model(content, jnp.roll(style, 1, axis=0)))
        loss, terms = objective(features, pictures, objective_key)
        _, _, stats = nnx.split(model, trained(model.learning_group), ...)
        return loss, (stats, {"loss": loss, **terms})

    def gradients(stats, batch_and_key):
        grads, (stats, terms) = jax.grad(loss_fn, has_aux=True)(state.params, stats, *batch_and_key)
        return stats, (grads, terms)

    # Derived from the step, so that a resumed run draws the same numbers.
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    if config.accumulate == 1:
        stats, (grads, terms) = gradients(state.stats, (batch, key))
    else:
        parts = _interleaved_parts(batch, config.accumulate)
        keys = jax.random.split(key, config.accumulate)
        stats, (grads, terms) = _scan_mean(gradients, state.stats, (parts, keys))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    # The average forgets its random start faster than its final rate would.
    decay = jnp.minimum(config.ema_decay, step / (step + 10))
    ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
    terms["gradient_norm"] = optax.tree.norm(grads)
    return TrainState(step, params, stats, opt_state, ema_params), terms


def _interleaved_parts(batch: dict[str, Array], count: int) -> dict[str, Array]:
    """[b ...] to [count b/count ...], where part i has rows i, i + count, ...

    So that each device, which holds consecutive rows, has its share of each part already.
    """
    return {name: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}


def _scan_mean(function, carry, inputs):
    """`jax.lax.scan`, but the mean of the outputs, of which only the sum is kept in memory."""

    def add(carry_and_sum, x):
        carry, total = carry_and_sum
        carry, output = function(carry, x)
        return (carry, jax.tree.map(jnp.add, total, output)), None

    _, output = jax.eval_shape(function, carry, jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), output)
    (carry, total), _ = jax.lax.scan(add, (carry, zeros), inputs)
    count = len(jax.tree.leaves(inputs)[0])
    return carry, jax.tree.map(lambda x: x / count, total)


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
