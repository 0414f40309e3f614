"""Orbax checkpoints of training runs, and students loaded from them.

A workdir holds config.json and checkpoints/STEP/ with the items

    student     averaged parameters and statistics: all that inference needs
    state       step, raw parameters, optimiser
    metrics     of the validation at this step

and sha256.json, the checksums of their files. Damaged checkpoints are set aside in damaged/.
"""

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Literal

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from student_jax.student import (
    Student,
    StudentConfig,
    build_student,
    config_from_json,
    config_to_json,
)
from student_jax.training.config import TrainConfig
from student_jax.training.integrity import (
    BEST_METRIC,
    METRICS,
    find_damage,
    has_checksums,
    list_steps,
    write_checksums,
)
from student_jax.training.train_state import TrainState, trained
from triplets import InputError, one_line
from triplets.atomic import write_json
from triplets.reading import read_json

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a workdir."""


class Checkpoints:
    """The checkpoints of one workdir: the latest two and the best are kept.

    Saving is asynchronous and atomic: a step is listed when it is whole. Use as a context manager,
    which waits for saves under way.
    """

    def __init__(self, workdir: Path):
        options = ocp.CheckpointManagerOptions(
            best_fn=_validation_error,  # without it no metrics are stored
            best_mode="min",
            preservation_policy=AnyPreservationPolicy(
                # Without the latest, a run could not continue; BestN alone would drop it.
                [LatestN(2), BestN(n=1, get_metric_fn=_validation_error, reverse=True)]
            ),
        )
        self._folder = (workdir / CHECKPOINTS).absolute()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()
        self._write_checksums()

    def steps(self) -> list[int]:
        """All steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Save everything that continues the run, under the state's step; returns early."""
        # Now, because Orbax removes checkpoints during a save.
        self._manager.wait_until_finished()
        self._write_checksums()
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                student=ocp.args.StandardSave(_student_item(state)),
                state=ocp.args.StandardSave(_state_item(state)),
            ),
            metrics=metrics,
            force=True,
        )

    def _write_checksums(self) -> None:
        if jax.process_index() == 0:
            write_checksums(self._folder)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, which may come from other devices.

        Args:
            like: `jax.ShapeDtypeStruct`s with the shardings that the arrays shall have.

        Raises:
            InputError: it is of other settings.
        """
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    student=ocp.args.StandardRestore(_student_item(like)),
                    state=ocp.args.StandardRestore(_state_item(like)),
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"checkpoint {step} in {self._folder} does not fit these settings: "
                f"{one_line(error)}."
            ) from error
        student, state = restored["student"], restored["state"]
        return replace(
            like,
            step=state["step"],
            params=state["params"],
            opt_state=state["opt_state"],
            ema_params=student["params"],
            stats=student["stats"],
        )


def restore_student(checkpoint: Path, model: Student) -> None:
    """Fill an abstract model (`nnx.eval_shape`) with the averaged parameters of a checkpoint."""
    _, params, stats = nnx.split(model, trained(model.learning_group), ...)
    device = SingleDeviceSharding(jax.local_devices()[0])
    item = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        {"params": params, "stats": stats},
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore((checkpoint / "student").absolute(), item)
    nnx.update(model, restored["params"], restored["stats"])


def set_aside_damaged(workdir: Path) -> None:
    """Move damaged checkpoints out of the way, so that a run continues from the one before.

    Those without checksums, which a kill leaves, are read once.

    Raises:
        InputError: all are damaged.
    """
    folder = workdir / CHECKPOINTS
    steps = list_steps(folder)
    damage = {step: _damage(folder / str(step)) for step in steps}
    damaged = [step for step in steps if damage[step]]
    if damaged and damaged == steps:
        raise InputError(
            f'all checkpoints of "{workdir}" are damaged (step {steps[-1]}: {damage[steps[-1]]}); '
            "start again in another --workdir."
        )
    for step in damaged:
        aside = workdir / "damaged" / f"{step}-{secrets.token_hex(4)}"
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        print(
            f"warning: checkpoint {step} is damaged, {damage[step]}; it was moved to {aside}, and "
            "the run continues from an earlier one",
            file=sys.stderr,
        )


def _damage(checkpoint: Path) -> str:
    if (damage := find_damage(checkpoint)) or has_checksums(checkpoint) or jax.process_count() > 1:
        return damage
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            for item in ("student", "state"):
                checkpointer.restore((checkpoint / item).absolute())
    except Exception as error:  # whatever a damaged file leads to
        return one_line(error)
    return ""


def _validation_error(metrics: dict[str, float]) -> float:
    return metrics[BEST_METRIC]


def _student_item(state: TrainState) -> dict:
    return {"params": state.ema_params, "stats": state.stats}


def _state_item(state: TrainState) -> dict:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def save_config(workdir: Path, config: TrainConfig, made_from: dict) -> None:
    """Write the run's configuration to config.json, with what it was made from."""
    write_json(workdir / "config.json", config.to_json() | {"made_from": made_from})


def load_config(workdir: Path) -> dict:
    """The run's configuration as a dictionary of JSON values.

    Raises:
        InputError: the folder is not the workdir of a training run.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f'"{workdir}" is not the workdir of a training run: it has no config.json; '
            "`style-distil train` makes such a folder."
        )
    try:
        stored = read_json(path)
        if not stored.keys() >= {"model", "data"}:
            raise InputError(f"{str(path)!r} is not the configuration of a training run.")
    except InputError as error:
        raise InputError(
            f"{one_line(error)}; if it is damaged, move it away: --resume then continues with the "
            "settings that are given, and writes it anew."
        ) from error
    # Version 0.1.0 had other names for some settings.
    former = {
        field.metadata["formerly"]: field.name
        for field in fields(TrainConfig)
        if "formerly" in field.metadata
    }
    return {former.get(name, name): value for name, value in stored.items()}


def check_config(config: TrainConfig) -> None:
    """Refuse to overwrite another run, or to continue one with other settings.

    Raises:
        InputError: names what to do, or the first setting that differs.
    """
    has_config = (config.workdir / "config.json").exists()
    if not config.resume and (has_config or list_steps(config.workdir / CHECKPOINTS)):
        raise InputError(
            f'"{config.workdir}" holds a run already: give --resume to continue it, or another '
            "--workdir."
        )
    if not has_config:
        return
    stored, given = load_config(config.workdir), config.to_json()
    # Version 0.1.0 did not write the student's name.
    stored["model"] = config_to_json(_student_config(config.workdir, stored))
    for field in fields(config):
        if field.metadata.get("run_only"):
            continue
        # A setting that did not exist when the run began had its default.
        default = None if field.default is MISSING else field.default
        default = list(default) if isinstance(default, tuple) else default
        before = stored.get(field.name, default)
        if before != given[field.name]:
            raise InputError(
                f'the run in "{config.workdir}" has {field.name} = {before}, not '
                f"{given[field.name]}: --resume continues with the same settings."
            )


def _student_config(workdir: Path, fields: dict) -> StudentConfig:
    """The architecture in the configuration of a run."""
    try:
        return config_from_json(fields["model"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{workdir / 'config.json'} does not describe a student: {error}."
        ) from error


def load_student(workdir: Path, step: int | Literal["best", "latest"] = "best") -> Student:
    """The student of a training run, with averaged parameters, on one device.

    Args:
        step: "best" is the step with the smallest squared error on validation triplets; of a run
            that minimises more than that, the latest: a squared error prefers smooth pictures.

    Raises:
        InputError: not a workdir, no checkpoint yet, no such step, or none that can be read: of
            those that are damaged, the next best is taken, with a warning.
    """
    fields = load_config(workdir)
    config = _student_config(workdir, fields)
    folder = workdir / CHECKPOINTS
    steps = list_steps(folder)
    if not steps:
        raise InputError(f'"{workdir}" has no checkpoints yet.')
    if step not in ("best", "latest", *steps):
        raise InputError(f'"{workdir}" has no checkpoint of step {step}, only of {steps}.')
    choice = [step] if isinstance(step, int) else steps[::-1]
    damage = {one: find_damage(folder / str(one), "student/") for one in choice}
    intact = [one for one in choice if not damage[one]]
    if step == "best" and fields.get("loss") == "L1":
        intact = best_first(folder, intact)
    model = nnx.eval_shape(lambda: build_student(config, rngs=nnx.Rngs(0)))
    for one in intact:
        try:
            restore_student(folder / str(one), model)
        except Exception as error:  # whatever a damaged file leads to
            damage[one] = one_line(error)
        else:
            _warn_of(damage)
            return model
    raise InputError(
        f'checkpoint {choice[0]} of "{workdir}" cannot be read: {damage[choice[0]]}; it has '
        f"checkpoints of the steps {steps}."
    )


def _warn_of(damage: Mapping[int, str]) -> None:
    for step, reason in damage.items():
        if reason:
            print(f"warning: checkpoint {step} is damaged: {reason}", file=sys.stderr)


def load_metrics(workdir: Path, step: int) -> dict[str, float]:
    """The figures of the validation at a checkpoint."""
    return read_json(workdir / CHECKPOINTS / str(step) / METRICS)


def best_first(folder: Path, steps: Sequence[int]) -> list[int]:
    """Steps of checkpoints in the order of their validation error; of equal ones the latest."""
    return sorted(
        sorted(steps, reverse=True),
        key=lambda step: read_json(folder / str(step) / METRICS)[BEST_METRIC],
    )
