"""The tiny Stable Diffusion of the StyleID fixtures, with weights drawn from each key's name.

Each weight is a normal draw seeded by the CRC of its name, so the fixtures need not store any.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

FIXTURES = Path(__file__).parent / "fixtures"
CONFIG = json.loads((FIXTURES / "styleid_config.json").read_text())
GAINS = dict(CONFIG["gains"])


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"styleid_{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    normal = rng.standard_normal(shape)
    if len(shape) >= 2:
        return normal * GAINS.get(name, 1.0) / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * normal if name.endswith("weight") else 0.02 * normal


def fill(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
    state = {
        key: torch.from_numpy(draw(prefix + key, tuple(value.shape))).float()
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.eval()


def components(prediction_type: str = "epsilon"):
    unet = fill(UNet2DConditionModel(**CONFIG["unet"]), "unet.")
    vae = fill(AutoencoderKL(**CONFIG["vae"]), "vae.")
    scheduler = DDIMScheduler(**CONFIG["scheduler"] | {"prediction_type": prediction_type})
    return unet, vae, scheduler, torch.from_numpy(load("inputs")["null_text"])


def to_model_range(image: np.ndarray) -> torch.Tensor:
    """uint8 [h w 3] -> float [1 3 h w] in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
