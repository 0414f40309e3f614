"""Reading learned embeddings: the authors' embeddings.pt, and files of textual inversion."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from teacher_torch.inst.module import InversionModule
from triplets import InputError, one_line

SUFFIXES = (".pt", ".bin", ".safetensors")


class _Attentions(nn.Module):
    """Takes the place of the authors' module, whose code is not needed to read its weights."""


class _CrossAttention(nn.Module):
    """Takes the place of the attention inside of it."""


_SAFE = [
    (_Attentions, "ldm.modules.embedding_manager.Attentions"),
    (_CrossAttention, "ldm.modules.attention.CrossAttention"),
    nn.Linear,
    nn.Dropout,
    nn.Sequential,
]


def load_embedding(path: Path, width: int) -> InversionModule | Float[Tensor, " d"]:
    """Read what somebody has learned of a style; nothing in the file is executed.

    Args:
        path: the authors' embeddings.pt, which holds an inversion module; or a vector of textual
            inversion, {name: vector} as of diffusers or {"string_to_param": {name: vector}}.
        width: of the model's word embeddings.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # Of an uncommon pickle it warns, and then fails, which is enough.
            with torch.serialization.safe_globals(_SAFE), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = one_line(error)
        # torch's message goes on with advice to read the file unsafely.
        if isinstance(error, pickle.UnpicklingError):
            _, found, name = str(error).partition("Unsupported global: GLOBAL ")
            reason = f"it holds a {name.split()[0]}" if found else "it is not a safe checkpoint"
        raise InputError(
            f"{path} cannot be used ({reason}); expected InST's embeddings.pt or a file of textual "
            "inversion."
        ) from error
    if not isinstance(content, dict):
        raise _refusal(path, f"a {type(content).__name__}", width)
    if "attention" in content:
        return _read_module(path, content["attention"], width)
    return _read_vector(path, content.get("string_to_param", content), width)


def _read_module(path: Path, attention: Any, width: int) -> InversionModule:
    if not isinstance(attention, _Attentions):
        raise _refusal(path, f"a {type(attention).__name__}", width)
    module = InversionModule(width)
    try:
        module.load_state_dict(attention.state_dict())
    except (RuntimeError, AttributeError, TypeError) as error:
        raise _refusal(path, "an inversion module of other tensors", width) from error
    return module.eval().requires_grad_(False)


def _read_vector(path: Path, content: Any, width: int) -> Float[Tensor, " d"]:
    values = list(content.values()) if isinstance(content, dict) else []
    vectors = [value for value in values if isinstance(value, Tensor)]
    shapes = " and ".join(str(list(vector.shape)) for vector in vectors[:3]) or "no tensors"
    if len(vectors) != 1 or vectors[0].numel() != width or vectors[0].shape[-1] != width:
        raise _refusal(path, shapes, width)
    return vectors[0].detach().float().flatten()


def _refusal(path: Path, found: str, width: int) -> InputError:
    return InputError(
        f"{path} holds {found}; expected InST's embeddings.pt or one vector of {width} numbers of "
        "textual inversion."
    )
