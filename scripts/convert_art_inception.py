"""Convert ArtFID's Inception, art_inception.pth, to safetensors for scripts/evaluate.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from command import run
from safetensors.torch import save

from student_jax.evaluation.measures.inception import Inception
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
    """Write the tensors of the feature part; those of the classifiers are left out.

    Raises:
        InputError: no checkpoint, or not one of this network.
    """
    kept = {
        name: value.float().contiguous()
        for name, value in _load(config.source).items()
        if not name.startswith(("fc", "AuxLogits")) and value.is_floating_point()
    }
    with atomic_write(config.out) as file:
        file.write(save(kept))
        file.flush()
        try:
            # Before the file gets its name: what the network cannot use is not worth keeping.
            Inception.from_file(Path(file.name))
        except InputError as error:
            raise InputError(
                f"{config.source} holds {_some(kept)}; expected all tensors of ArtFID's Inception "
                f"by torchvision's names, which fails at {_first_line(error.__cause__)}."
            ) from error
    print(f"{len(kept)} tensors are in {config.out}")


def _load(source: Path) -> Mapping[str, torch.Tensor]:
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}.") from error
    except Exception as error:
        # Without torch's own words: they advise to load the file with code and all.
        raise InputError(
            f"{source} is no PyTorch checkpoint, or holds more than tensors and plain values."
        ) from error
    if not isinstance(state, Mapping):
        raise InputError(f"{source} holds a {type(state).__name__}; expected tensors by name.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f'{source} holds a {type(value).__name__} as "{name}"; expected nothing but '
                'tensors, such as "Conv2d_1a_3x3.conv.weight".'
            )
    return state


def _some(names: Mapping[str, torch.Tensor]) -> str:
    return ", ".join([*list(names)[:2], "and so on"]) if names else "no such tensors"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    run(convert, ConvertConfig, __doc__)
