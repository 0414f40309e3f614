"""Students as plain folders: config.json and model.safetensors; one comes with the project."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from student_jax.checkpoint import load_student
from student_jax.config import STTRConfig
from student_jax.convert.torch_names import from_torch, own_names, to_torch
from student_jax.models import STTR
from triplets import InputError
from triplets.atomic import atomic_write

MINI = Path(__file__).parent / "mini"
WEIGHTS = "model.safetensors"


def save_pretrained(
    model: STTR, folder: Path, dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Write a student to a folder, its weights by their path in the model ("tail.output.bias")."""
    named = to_torch(model, own_names(lambda: _build(model.config)))
    arrays = {name: value.astype(dtype) for name, value in named.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", json.dumps(asdict(model.config), indent=2).encode()),
        (WEIGHTS, save(arrays)),
    ):
        with atomic_write(folder / name) as file:
            file.write(content)


def from_pretrained(folder: Path) -> STTR:
    """The student in a folder that `save_pretrained` wrote, with float32 weights.

    Raises:
        InputError: no such folder or files, or weights that do not fit the configuration.
    """
    try:
        config = STTRConfig.from_dict(json.loads((folder / "config.json").read_text()))

        def build() -> STTR:
            return _build(config)

        return from_torch(build, own_names(build), load_file(folder / WEIGHTS))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f'cannot load a student from "{folder}": {error}') from error


def open_student(name_or_path: str, step: int | Literal["best", "latest"] = "best") -> STTR:
    """A student by what a command line says.

    Args:
        name_or_path: "mini" for the bundled one, a folder of `save_pretrained`, or the workdir of
            a training run.
        step: which checkpoint of a training run.

    Raises:
        InputError: nothing usable there.
    """
    folder = MINI if name_or_path == "mini" else Path(name_or_path)
    if (folder / WEIGHTS).is_file():
        return from_pretrained(folder)
    return load_student(folder, step)


def _build(config: STTRConfig) -> STTR:
    return STTR(config, rngs=nnx.Rngs(0))
