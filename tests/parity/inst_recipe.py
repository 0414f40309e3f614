"""The tiny networks of the InST fixtures: those of StyleID's, and two towers of CLIP.

Weights are drawn from their names, as in `styleid_recipe`.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from styleid_recipe import FIXTURES, draw
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from teacher_torch.inst.clip import ImageTower
from teacher_torch.inst.module import InversionModule
from teacher_torch.latent_diffusion import TextEncoder

CONFIG = json.loads((FIXTURES / "inst_config.json").read_text())
WIDTH = CONFIG["inversion"]["width"]


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"inst_{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def old_names(module: torch.nn.Module, part: str) -> dict[str, str]:
    """State keys as they are -> as transformers 4 had them; the old names seed the draws."""
    kept = (f"{part}_model.", "visual_projection.")
    return {
        key: key if key.startswith(kept) else f"{part}_model.{key}" for key in module.state_dict()
    }


def fill(module: torch.nn.Module, names: dict[str, str]) -> torch.nn.Module:
    """Draw each weight by its name in `names`."""
    state = {
        key: torch.from_numpy(draw(names[key], tuple(value.shape))).float()
        for key, value in module.state_dict().items()
        if value.is_floating_point()
    }
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in key for key in missing)
    return module.eval().requires_grad_(False)


def inversion_module(width: int = WIDTH) -> InversionModule:
    module = InversionModule(width)
    return fill(module, {key: f"inst.{key}" for key in module.state_dict()})


def image_tower() -> ImageTower:
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG["vision"]))
    names = {key: f"clip.{name}" for key, name in old_names(model, "vision").items()}
    return ImageTower(fill(model, names))


def tokenizer() -> CLIPTokenizer:
    """CLIP's alphabet without merges: every letter is a token of its own."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=CONFIG["max_length"])


def text_encoder() -> TextEncoder:
    encoder = CLIPTextModel(CLIPTextConfig(**CONFIG["text"]))
    names = {key: f"text.{name}" for key, name in old_names(encoder, "text").items()}
    return TextEncoder(tokenizer(), fill(encoder, names))
