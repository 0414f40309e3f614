"""Published weights as arrays by their PyTorch names, from files or the Hugging Face Hub.

PyTorch's own files are pickles. They are read by another process, which alone needs PyTorch and
which refuses everything but tensors and plain values.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from student_jax.weights.hub import download_weights, parse_repository
from triplets import InputError

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
        "it is not a PyTorch checkpoint, or holds more than tensors and plain values; expected a "
        "state_dict as torch.save writes it, or a .safetensors file"
    )
save_file(weights, sys.argv[2])
"""


def find_weights(source: str) -> Path:
    """A file of weights by what a command line says: its path, or a repository of the Hub.

    Args:
        source: a path, OWNER/NAME or hf://OWNER/NAME, either with @REVISION or without.

    Raises:
        InputError: no such file, or the Hub cannot be reached.
    """
    if Path(source).is_file():
        return Path(source)
    repository = parse_repository(source)
    if repository is None:
        raise InputError(
            f'"{source}" is neither a file nor the name of a repository, OWNER/NAME or '
            "hf://OWNER/NAME@REVISION."
        )
    return download_weights(repository)


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
        raise InputError(f'cannot read weights from "{original}": {error}.') from error
