"""Students as plain folders (config.json, model.safetensors, README.md), here or on a hub."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import jax
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from student_jax.nets.torch_names import from_torch, own_names, to_torch
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.model import STTR
from triplets import InputError
from triplets.atomic import atomic_write, make_folder

MINI = Path(__file__).parents[1] / "students" / "mini"
WEIGHTS = "model.safetensors"
CARD = "README.md"
HUB = "hf://"


def save_pretrained(
    model: STTR, folder: Path, dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Write a student to a folder, its weights by their path in the model ("decoder_norm.scale").

    The weights' file also holds the configuration, so that it can be loaded alone. A model card
    that is there already stays as it is.
    """
    named = to_torch(model, own_names(lambda: _build(model.config)))
    arrays = {name: value.astype(dtype) for name, value in named.items()}
    config = json.dumps(asdict(model.config), indent=2)
    make_folder(folder)
    files = {"config.json": config.encode(), WEIGHTS: save(arrays, {"config": config})}
    if not (folder / CARD).exists():
        files[CARD] = _model_card(model).encode()
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)


def from_pretrained(path: str | Path) -> STTR:
    """The student that `save_pretrained` wrote, with float32 weights.

    Args:
        path: the folder, its model.safetensors, or hf://OWNER/NAME[@REVISION] on the Hugging Face
            Hub, which is downloaded once.

    Raises:
        InputError: no such folder or files, or weights that do not fit the configuration.
    """
    if str(path).startswith(HUB):
        path = _download(str(path).removeprefix(HUB))
    path = Path(path)
    weights = path if path.is_file() else path / WEIGHTS
    try:
        config = STTRConfig.from_dict(_read_config(weights))

        def build() -> STTR:
            return _build(config)

        return from_torch(build, own_names(build), load_file(weights))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f'cannot load a student from "{path}": {error}') from error


def open_student(name_or_path: str, step: int | Literal["best", "latest"] = "best") -> STTR:
    """A student by what a command line says.

    Args:
        name_or_path: "mini" for the bundled one, whatever `from_pretrained` takes, or the workdir
            of a training run.
        step: which checkpoint of a training run; see `checkpoint.load_student`.

    Raises:
        InputError: nothing usable there, or a number as the step of a student that is no run.
    """
    path = MINI if name_or_path == "mini" else Path(name_or_path)
    on_hub = name_or_path.startswith(HUB)
    if not (on_hub or path.is_file() or (path / WEIGHTS).is_file()):
        # Orbax and Grain take seconds to import, and only training runs need them.
        from student_jax.training.checkpoint import load_student

        return load_student(path, step)
    if isinstance(step, int):
        raise InputError(
            f'"{name_or_path}" is a single student without step {step}: --step chooses a '
            "checkpoint in the workdir of a training run."
        )
    return from_pretrained(name_or_path if on_hub else path)


def push_to_hub(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder of `save_pretrained` to the Hugging Face Hub; returns its address.

    The repository is made when it does not exist. Credentials are those of `hf auth login`.

    Raises:
        InputError: no such folder, no network, no permission, or huggingface_hub is missing.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f'"{folder}" holds no {WEIGHTS}; save_pretrained writes it.')
    hub = _hub()
    try:
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder))
    except Exception as error:  # the network's many ways to fail
        raise InputError(f"cannot push to {repo}: {_one_line(error)}") from error


def _download(name: str) -> Path:
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", name)
    if match is None:
        raise InputError(f'"{HUB}{name}" is no name on the Hub; expected {HUB}OWNER/NAME.')
    hub = _hub()
    try:
        # Never anything but these: a repository may hold pickles.
        files = [WEIGHTS, "config.json"]
        return Path(hub.snapshot_download(match[1], revision=match[2], allow_patterns=files))
    except Exception as error:  # the network's many ways to fail
        address = f"https://huggingface.co/{match[1]}/resolve/{match[2] or 'main'}/{WEIGHTS}"
        raise InputError(
            f"cannot load {HUB}{name}: {_one_line(error)}; without a network, fetch {address} "
            "elsewhere and give its path instead (--checkpoint PATH)."
        ) from error


def _hub():
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            'the Hugging Face Hub needs huggingface_hub: pip install "style-distil[hub]".'
        ) from error
    return huggingface_hub


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _read_config(weights: Path) -> dict:
    beside = weights.parent / "config.json"
    if beside.is_file():
        return json.loads(beside.read_text())
    with safe_open(weights, "numpy") as file:
        metadata = file.metadata() or {}
    if "config" not in metadata:
        raise ValueError("it has no config.json")
    return json.loads(metadata["config"])


def _model_card(model: STTR) -> str:
    """What the Hugging Face Hub shows; its format is YAML, then Markdown."""
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return f"""---
library_name: style-distil
license: mit
pipeline_tag: image-to-image
tags: [style-transfer, jax, flax]
---

# STTR student

A transformer with {count / 1e6:.1f} M parameters that stylises a picture with a painting in one
forward pass, distilled from a diffusion teacher (StyleID).

```python
from student_jax import Stylist

stylist = Stylist.from_pretrained("PATH OF THIS FOLDER, or {HUB}OWNER/NAME")
stylised = stylist("photo.jpg", "painting.jpg")  # [h w 3] in [0, 1]
```
"""


def _build(config: STTRConfig) -> STTR:
    return STTR(config, rngs=nnx.Rngs(0))
