"""The state of a training run, and the optimiser that changes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from student_jax.student import LearningGroups
from student_jax.training.config import TrainConfig

Terms = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """Everything that a step changes; a pytree, of arrays or of their shapes or shardings."""

    step: Any
    """Steps taken, an int32 scalar."""
    params: nnx.State
    stats: nnx.State
    """What is not trained by gradients: batch norm's statistics, frozen layers."""
    opt_state: optax.OptState
    ema_params: nnx.State
    """Exponential moving average of the parameters: what is evaluated and exported."""


def trained(learning_group: LearningGroups) -> Callable[[tuple, Any], bool]:
    """An NNX filter for the variables that gradients train: parameters that are not frozen."""

    def is_trained(path: tuple, variable: nnx.Variable) -> bool:
        return isinstance(variable, nnx.Param) and learning_group(path) != "frozen"

    return is_trained


def create_train_state(
    weights: nnx.State, learning_group: LearningGroups, tx: optax.GradientTransformation
) -> TrainState:
    """A fresh state, from all variables of a model."""
    params, stats = nnx.split_state(weights, trained(learning_group), ...)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=tx.init(params),
        # A copy, because the step donates its argument and a buffer can be donated only once.
        ema_params=jax.tree.map(jnp.copy, params),
    )


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """A linear warm-up to `config.learning_rate`, then what `config.schedule` names."""
    peak, rest = config.learning_rate, config.steps - config.warmup_steps
    after_warmup = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "step": optax.piecewise_constant_schedule(
            # The authors of STTR drop the rate at epoch 200 of 300.
            peak,
            {round(2 / 3 * config.steps) - config.warmup_steps: 0.1},
        ),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after_warmup], [config.warmup_steps])


def make_optimiser(
    config: TrainConfig, learning_group: LearningGroups
) -> optax.GradientTransformation:
    """AdamW with clipping by the global norm, and a rate of its own for the slow group."""

    # Checkpoints hold these labels: they are those of version 0.1.0.
    labels = {"normal": "rest", "slow": "backbone"}

    def labelled(params: Any) -> Any:
        def label(path: tuple, _) -> str:
            # The last key of a variable's path leads into it and is not a name of the model's.
            names = tuple(key.key for key in path if hasattr(key, "key"))
            return labels[learning_group(names)]

        return jax.tree_util.tree_map_with_path(label, params)

    rates = {"normal": optax.identity(), "slow": optax.scale(config.slow_rate)}
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config), weight_decay=config.weight_decay),
        optax.partition({labels[group]: rate for group, rate in rates.items()}, labelled),
    )
