"""Orbax checkpoints of training runs, and students loaded from them.

A workdir holds config.json and checkpoints/STEP/ with the items

    student     averaged parameters and statistics: all that inference needs
    state       step, raw parameters, optimiser
    data_iter   position in the input pipeline, one file a process
    metrics     of the validation at this step
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import grain
import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from student_jax.config import STTRConfig, TrainConfig
from student_jax.models import STTR
from student_jax.train_state import TrainState
from triplets import InputError
from triplets.atomic import atomic_write

BEST_METRIC = "mse"
"""Validation metric whose smallest value marks the best checkpoint."""


class Checkpoints:
    """The checkpoints of one workdir: the latest two and the best are kept.

    Saving is asynchronous and atomic: a step is listed when it is whole. Use as a context manager,
    which waits for saves under way.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False):
        options = ocp.CheckpointManagerOptions(
            best_fn=_validation_error,  # without it no metrics are stored
            best_mode="min",
            preservation_policy=AnyPreservationPolicy(
                # Without the latest, a run could not continue; BestN alone would drop it.
                [LatestN(2), BestN(n=1, get_metric_fn=_validation_error, reverse=True)]
            ),
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """All steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int:
        """Of all steps that can be restored, the one with the smallest validation error."""
        return self._manager.best_step()

    def save(
        self, state: TrainState, data_iter: grain.DatasetIterator, metrics: dict[str, float]
    ) -> None:
        """Save everything that continues the run, under the state's step; returns early."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                student=ocp.args.StandardSave(_student_item(state)),
                state=ocp.args.StandardSave(_state_item(state)),
                data_iter=grain.checkpoint.CheckpointSave(data_iter),
            ),
            metrics=metrics,
            force=True,
        )

    def restore(
        self, step: int, like: TrainState, data_iter: grain.DatasetIterator, sharding: Sharding
    ) -> TrainState:
        """The state at `step`, placed by `sharding`; also moves `data_iter` to its position.

        `like` gives shapes and structure; it may come from another number of devices.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                student=ocp.args.StandardRestore(_placed(_student_item(like), sharding)),
                state=ocp.args.StandardRestore(_placed(_state_item(like), sharding)),
                data_iter=grain.checkpoint.CheckpointRestore(data_iter),
            ),
        )
        student, state = restored["student"], restored["state"]
        return replace(
            like,
            step=state["step"],
            params=state["params"],
            opt_state=state["opt_state"],
            ema_params=student["params"],
            stats=student["stats"],
        )

    def restore_student(self, step: int, model: STTR) -> None:
        """Fill an abstract model (`nnx.eval_shape`) with the averaged parameters at `step`."""
        _, params, stats = nnx.split(model, nnx.Param, ...)
        device = SingleDeviceSharding(jax.local_devices()[0])
        item = _placed({"params": params, "stats": stats}, device)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(student=ocp.args.StandardRestore(item))
        )
        nnx.update(model, restored["student"]["params"], restored["student"]["stats"])


def _validation_error(metrics: dict[str, float]) -> float:
    return metrics[BEST_METRIC]


def _student_item(state: TrainState) -> dict:
    return {"params": state.ema_params, "stats": state.stats}


def _state_item(state: TrainState) -> dict:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _placed(tree, sharding: Sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def save_config(workdir: Path, config: TrainConfig) -> None:
    """Write the run's configuration to config.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    with atomic_write(workdir / "config.json") as file:
        file.write(json.dumps(asdict(config), indent=2, default=str).encode())


def load_config(workdir: Path) -> dict:
    """The run's configuration as a dictionary of JSON values.

    Raises:
        InputError: the folder is not the workdir of a training run.
    """
    try:
        return json.loads((workdir / "config.json").read_text())
    except FileNotFoundError as error:
        raise InputError(
            f'"{workdir}" is not the workdir of a training run: it has no config.json; '
            "scripts/train_flax.py makes such a folder."
        ) from error
    except ValueError as error:
        raise InputError(f"{workdir / 'config.json'} is not JSON: {error}") from error


def load_student(workdir: Path, step: int | Literal["best", "latest"] = "best") -> STTR:
    """The student of a training run, with averaged parameters, on one device.

    Raises:
        InputError: not a workdir, no checkpoint yet, no such step, or weights that do not fit.
    """
    fields = load_config(workdir)
    try:
        config = STTRConfig.from_dict(fields["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{workdir / 'config.json'} does not describe a student: {error}"
        ) from error
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f'"{workdir}" has no checkpoints yet.')
    with Checkpoints(workdir, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise InputError(f'"{workdir}" has no checkpoints yet.')
        if step == "latest":
            step = steps[-1]
        elif step == "best":
            step = checkpoints.best_step()
        if step not in steps:
            raise InputError(f'"{workdir}" has no checkpoint of step {step}, only of {steps}.')
        model = nnx.eval_shape(lambda: STTR(config, rngs=nnx.Rngs(0)))
        try:
            checkpoints.restore_student(step, model)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f'checkpoint {step} of "{workdir}" cannot be read: {reason}'
            ) from error
    return model
