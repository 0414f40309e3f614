"""Students as plain folders (config.json, model.safetensors, README.md), here or on the Hub."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save

from student_jax.nets.torch_names import fill, named_arrays, own_names
from student_jax.student import (
    Student,
    build_student,
    config_from_json,
    config_to_json,
    count_parameters,
    student_name,
)
from student_jax.weights.hub import (
    PREFIX,
    WEIGHTS,
    download_student,
    parse_repository,
    push_folder,
)
from triplets import InputError
from triplets.atomic import atomic_write, make_folder
from triplets.reading import check_file, read_json

STUDENTS_FOLDER = Path(__file__).parents[1] / "students"
CARD = "README.md"

_DTYPES = ("F16", "F32", "F64")


def save_pretrained(
    model: Student, folder: Path, dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Write a student to a folder, its weights by their path in the model ("decoder_norm.scale").

    The weights' file also holds the configuration, so that it can be loaded alone. A model card
    that is there already stays as it is.

    Raises:
        InputError: the folder holds something else, or cannot be made.
    """
    check_folder(folder)
    named = named_arrays(model, own_names(lambda: _build(model.config)))
    arrays = {name: value.astype(dtype) for name, value in named.items()}
    config = json.dumps(config_to_json(model.config), indent=2)
    make_folder(folder)
    files = {"config.json": config.encode(), WEIGHTS: save(arrays, {"config": config})}
    if not (folder / CARD).exists():
        files[CARD] = _model_card(model).encode()
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)


def check_folder(folder: Path) -> None:
    """Refuse to write a student where its config.json would replace that of something else.

    Raises:
        InputError: the folder is the workdir of a training run, a triplet dataset, or holds a
            config.json that does not describe a student.
    """
    others = ("checkpoints", "manifest.json")
    other = next((name for name in others if (folder / name).exists()), "")
    config = folder / "config.json"
    if not other and config.exists():
        try:
            config_from_json(read_json(config))
        except (InputError, ValueError, TypeError):
            other = "a config.json that describes no student"
    if other:
        raise InputError(
            f"{str(folder)!r} holds {other}, and so something else than a student; give another "
            "folder."
        )


def from_pretrained(path: str | Path) -> Student:
    """The student that `save_pretrained` wrote, with float32 weights.

    Args:
        path: the folder, its model.safetensors, or a repository of the Hugging Face Hub,
            hf://OWNER/NAME[@REVISION], which is downloaded once.

    Raises:
        InputError: no such folder or files, or weights that do not fit the configuration.
    """
    if str(path).startswith(PREFIX):
        path = download_student(parse_repository(str(path)))
    path = Path(path)
    weights = path if path.is_file() else path / WEIGHTS
    check_file(weights)
    try:
        config = config_from_json(_read_config(weights))

        def build() -> Student:
            return _build(config)

        return fill(build, own_names(build), _read_arrays(weights))
    except Exception as error:
        # A student is built by what its files say, and a wrong value may fail anywhere.
        reason = str(error).rstrip(".") or type(error).__name__
        raise InputError(f'cannot load a student from "{path}": {reason}.') from error


def open_student(name_or_path: str, step: int | Literal["best", "latest"] = "best") -> Student:
    """A student by what a command line says.

    Args:
        name_or_path: a bundled student ("modulated", "mini"), the workdir of a training run,
            whatever `from_pretrained` takes, or OWNER/NAME[@REVISION] on the Hugging Face Hub.
        step: which checkpoint of a training run; see `checkpoint.load_student`.

    Raises:
        InputError: nothing usable there, or a number as the step of a student without steps.
    """
    path = bundled_student(name_or_path) or Path(name_or_path)
    repository = None if path.exists() else parse_repository(name_or_path)
    if repository is None and not (path.is_file() or (path / WEIGHTS).is_file()):
        # Orbax and Grain take seconds to import, and only training runs need them.
        from student_jax.training.checkpoint import load_student

        return load_student(path, step)
    if isinstance(step, int):
        raise InputError(
            f'"{name_or_path}" is a single student without step {step}: --step chooses a '
            "checkpoint in the workdir of a training run."
        )
    return from_pretrained(path if repository is None else f"{PREFIX}{repository}")


def bundled_student(name: str) -> Path | None:
    """The folder of a student whose weights come with this package, such as "mini"."""
    folder = STUDENTS_FOLDER / name
    return folder if name.isidentifier() and (folder / WEIGHTS).is_file() else None


def push_to_hub(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder of `save_pretrained` to the Hugging Face Hub; returns its address.

    The repository is made when it does not exist. Credentials are those of `hf auth login`.

    Raises:
        InputError: no such folder, no network, no permission, or huggingface_hub is missing.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f'"{folder}" holds no {WEIGHTS}; save_pretrained writes it.')
    return push_folder(folder, repo, private=private)


def _read_config(weights: Path) -> dict:
    beside = weights.parent / "config.json"
    if beside.is_file():
        return read_json(beside)
    with safe_open(weights, "numpy") as file:
        metadata = file.metadata() or {}
    if "config" not in metadata:
        raise ValueError("it has no config.json")
    config = json.loads(metadata["config"])
    if not isinstance(config, dict):
        raise ValueError(f"its configuration is no JSON object but {type(config).__name__}")
    return config


def _read_arrays(weights: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name; raises ValueError unless all are finite floats."""
    arrays = {}
    with safe_open(weights, "numpy") as file:
        for name in file.keys():  # noqa: SIM118, it is no mapping
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES:
                raise ValueError(f"{name} is of type {dtype}; expected {', '.join(_DTYPES)}")
            arrays[name] = file.get_tensor(name)
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} has values that are not finite numbers")
    return arrays


def _model_card(model: Student) -> str:
    """What the Hugging Face Hub shows; its format is YAML, then Markdown."""
    return f"""---
library_name: style-distil
license: mit
pipeline_tag: image-to-image
tags: [style-transfer, jax, flax]
---

# Style transfer student ({student_name(model.config)})

A network with {count_parameters(model) / 1e6:.1f} M parameters that stylises a picture with a
painting in one forward pass, distilled from a diffusion teacher.

```python
from student_jax import Stylist

stylist = Stylist.from_pretrained("PATH OF THIS FOLDER, or {PREFIX}OWNER/NAME")
stylised = stylist("photo.jpg", "painting.jpg")  # [h w 3] in [0, 1]
```
"""


def _build(config) -> Student:
    return build_student(config, rngs=nnx.Rngs(0))
