"""The state of a training run and the step that advances it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from student_jax.config import TrainConfig
from student_jax.models import STTR

Terms = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """Everything that a step changes; a pytree."""

    step: Int[Array, ""]
    """Steps taken."""
    params: nnx.State
    stats: nnx.State
    """What is not trained by gradients: batch norm's statistics, frozen layers."""
    opt_state: optax.OptState
    ema_params: nnx.State
    """Exponential moving average of the parameters: what is evaluated and exported."""


def create_train_state(
    model: STTR, tx: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """Take a model apart into its structure and a fresh training state."""
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)
    return graphdef, TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=tx.init(params),
        # A copy, because the step donates its argument and a buffer can be donated only once.
        ema_params=jax.tree.map(jnp.copy, params),
    )


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up to `config.learning_rate`, then a cosine to zero at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
    )


def make_optimiser(config: TrainConfig, params: nnx.State) -> optax.GradientTransformation:
    """AdamW with clipping by the global norm, and a lower rate for the backbones (STTR: a tenth).

    Pre-trained ResNets keep their stem and first layer, as the authors of STTR train them.
    """

    def group(path: tuple, _) -> str:
        names = [str(getattr(key, "key", key)) for key in path]
        if not names[0].endswith("_backbone"):
            return "rest"
        frozen = config.model.backbone == "resnet50" and names[2] in ("0", "1")
        return "frozen" if frozen else "backbone"

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config), weight_decay=config.weight_decay),
        optax.partition(
            {
                "rest": optax.identity(),
                "backbone": optax.scale(config.backbone_rate),
                "frozen": optax.set_to_zero(),
            },
            jax.tree_util.tree_map_with_path(group, params),
        ),
    )
