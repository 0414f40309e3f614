"""Convert ArtFID's Inception, art_inception.pth, to safetensors for scripts/evaluate.py."""

from dataclasses import dataclass
from pathlib import Path

import torch
from command import run
from safetensors.torch import save

from triplets import InputError
from triplets.atomic import atomic_write


@dataclass(frozen=True)
class ConvertConfig:
    """Read a PyTorch checkpoint, refusing anything but tensors, and write safetensors."""

    source: Path
    """art_inception.pth of https://huggingface.co/matthias-wright/art_inception."""
    out: Path
    """Where the safetensors file goes."""


def convert(config: ConvertConfig) -> None:
    """Write the tensors of the feature part; those of the classifiers are left out."""
    try:
        state = torch.load(config.source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on files that are no checkpoint
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{config.source} is no PyTorch checkpoint: {reason}") from error
    kept = {
        name: value.float().contiguous()
        for name, value in state.items()
        if not name.startswith(("fc", "AuxLogits")) and value.is_floating_point()
    }
    with atomic_write(config.out) as file:
        file.write(save(kept))
    print(f"{len(kept)} tensors are in {config.out}")


if __name__ == "__main__":
    run(convert, ConvertConfig, __doc__)
