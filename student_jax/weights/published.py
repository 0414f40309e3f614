"""Published weights: reading them from files or the Hugging Face Hub, and making students of them.

PyTorch's own files are pickles. They are read by another process, which alone needs PyTorch and
which refuses everything but tensors and plain values.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from student_jax.nets.resnet_weights import resnet50_from_torch
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.convert import sttr_from_torch, sttr_to_torch
from student_jax.students.sttr.model import STTR
from student_jax.weights.folder import open_student, save_pretrained
from triplets import InputError
from triplets.atomic import atomic_write

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

NOT_THE_MODEL = {
    # Beside the model, the authors' training saves their criterion's VGG19 and its buffers, the
    # detection heads that the code descends from, and counters that frozen norms do not have.
    "sttr": (
        r"^(criterion\.)?(vgg_encoder\.|empty_weight$)",
        r"^(class_embed|bbox_embed|query_embed)\.",
        r"^backbone_.*\.num_batches_tracked$",
    ),
    "resnet50": (r"^fc\.", r"\.num_batches_tracked$"),
}

# Runs where PyTorch is: FILE.pth KEYS FILE.safetensors.
_CONVERT = """
import argparse, sys
try:
    import torch
    from safetensors.torch import save_file
except ImportError as error:
    sys.exit(f"reading PyTorch's files needs PyTorch: {error}")
try:
    with torch.serialization.safe_globals([argparse.Namespace]):
        weights = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
    for key in ("model", "state_dict"):
        if isinstance(weights.get(key), dict):
            weights = weights[key]
    # Copies, because tensors that share memory cannot be saved.
    weights = {name: x.detach().clone().contiguous() for name, x in weights.items()}
except Exception:
    # Without PyTorch's own words: they advise to load the file with code and all.
    sys.exit(
        "it is no PyTorch checkpoint, or holds more than tensors and plain values; expected a "
        "state_dict as torch.save writes it, or a .safetensors file"
    )
save_file(weights, sys.argv[2])
"""


def find_weights(source: str) -> Path:
    """A file of weights by what a command line says: its path, or a repository of the Hub.

    Raises:
        InputError: no such file, or the Hub cannot be reached.
    """
    if Path(source).is_file():
        return Path(source)
    if not HUB_NAME.fullmatch(source) or Path(source).suffix in (".safetensors", ".pth", ".pt"):
        raise InputError(f'"{source}" is neither a file nor the name of a repository, OWNER/NAME.')
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import logging

        # It reports every attempt; the error below says all that is needed.
        logging.set_verbosity_error()
        return Path(hf_hub_download(source, "model.safetensors"))
    except ImportError as error:
        raise InputError(
            f"downloading {source} needs the Hub's client: pip install huggingface_hub, or fetch "
            f"https://huggingface.co/{source}/resolve/main/model.safetensors and give its path."
        ) from error
    except Exception as error:  # the client has dozens of its own
        raise InputError(
            f"cannot download model.safetensors of {source} ({type(error).__name__}); without a "
            f"network, fetch https://huggingface.co/{source}/resolve/main/model.safetensors "
            "elsewhere and give its path instead."
        ) from error


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays by their PyTorch name, of a safetensors file or a PyTorch file (.pth, .pt, .bin).

    In a training checkpoint, the entry "model" or "state_dict" is read.

    Raises:
        InputError: no file of weights, or PyTorch is needed and not installed.
    """
    if path.suffix == ".safetensors":
        return _load(path, path)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "weights.safetensors"
        command = [sys.executable, "-c", _CONVERT, str(path), str(converted)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            reason = process.stderr.strip().rpartition("\n")[2]
            raise InputError(f'cannot read weights from "{path}": {reason}.')
        return _load(converted, path)


def _load(path: Path, original: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise InputError(f'cannot read weights from "{original}": {error}') from error


@dataclass(frozen=True)
class ImportConfig:
    """Make a student of published weights, for --init-from of train_flax.py or --checkpoint."""

    kind: Literal["sttr", "resnet50"]
    """sttr: the checkpoint of STTR's authors. resnet50: a new student of the reference architecture
    with ImageNet backbones."""
    source: str
    """File of weights (.safetensors, or .pth where PyTorch is installed), or a repository of the
    Hugging Face Hub that has a model.safetensors, such as timm/resnet50.tv_in1k."""
    out: Path
    """Folder for config.json, model.safetensors and import.json, which tells where they are
    from."""
    ignore: tuple[str, ...] = ()
    """Regular expressions of further names in the file that are not part of the model."""
    seed: int = 0
    """Of what a new student does not get from the backbones."""

    def __post_init__(self):
        for pattern in self.ignore:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"ignore has {pattern!r}, no regular expression: {error}"
                ) from error


def import_weights(config: ImportConfig) -> None:
    """Read, convert, check both ways and write; see `ImportConfig`.

    Raises:
        InputError: a file that cannot be read, weights that do not fit, or a folder that is taken.
    """
    if config.out.exists():
        raise InputError(f'"{config.out}" exists already; give another --out.')
    path = find_weights(config.source)
    weights = read_weights(path)
    pattern = re.compile("|".join((*NOT_THE_MODEL[config.kind], *config.ignore)))
    ignored = [name for name in weights if pattern.search(name)]
    needed = {name: array for name, array in weights.items() if name not in ignored}
    try:
        if config.kind == "sttr":
            model = sttr_from_torch(needed, STTRConfig.reference())
        else:
            model = _import_resnet50(needed, config.seed)
    except ValueError as error:
        raise InputError(f"{config.source}: {error}") from error
    save_pretrained(model, config.out)
    origin = {
        "kind": config.kind,
        "source": config.source,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "ignored": ignored,
    }
    with atomic_write(config.out / "import.json") as file:
        file.write(json.dumps(origin, indent=2).encode())
    print(f'{len(weights) - len(ignored)} arrays of {config.source} are in "{config.out}"')
    if ignored:
        print(f"ignored {len(ignored)}: {', '.join(ignored)}")


def _import_resnet50(weights: dict[str, np.ndarray], seed: int) -> STTR:
    config = STTRConfig.reference()

    def build() -> STTR:
        return STTR(config, rngs=nnx.Rngs(seed))

    # As one program, which compiles much faster than hundreds of small ones.
    model = nnx.merge(nnx.graphdef(nnx.eval_shape(build)), jax.jit(lambda: nnx.state(build()))())
    model.content_backbone = resnet50_from_torch(weights, config.content_widths)
    model.style_backbone = resnet50_from_torch(weights, config.style_widths)
    return model


@dataclass(frozen=True)
class ExportConfig:
    """Write a student of the reference architecture by the names of STTR's authors."""

    student: str
    """Workdir of a training run, or a folder that import_weights.py or a training wrote."""
    out: Path
    """The .safetensors file: what their `load_state_dict` takes."""


def export_weights(config: ExportConfig) -> None:
    """Write the exact inverse of what `import_weights` reads.

    Raises:
        InputError: no student there, or one that has no names in the authors' code.
    """
    try:
        weights = sttr_to_torch(open_student(config.student))
    except ValueError as error:
        raise InputError(f"{config.student}: {error}") from error
    with atomic_write(config.out) as file:
        file.write(save(weights))
    print(f'{len(weights)} arrays are in "{config.out}"')
