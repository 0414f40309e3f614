"""The tiny networks of the ZeCon and StyleDiffusion fixtures, by the authors' names and recipe.

Weights are normal draws seeded by the CRC of each name, as REFERENCE of the fixtures defines them;
`zecon_nets` holds the sums to check them by.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from teacher_torch.adm import convert
from teacher_torch.denoisers import PictureDenoiser
from teacher_torch.guides import CLIPGuide
from teacher_torch.zecon.guidance import VGGSlices

FIXTURES = Path(__file__).parent / "fixtures"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


NETS = load("zecon_nets")
CONFIG = json.loads(str(NETS["config"]))
SHAPES = {name: tuple(shape) for name, shape in json.loads(str(NETS["shapes"])).items()}


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def normal32(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(normal(name, shape)).float()


def weight(name: str) -> np.ndarray:
    shape = SHAPES[name]
    n = normal(name, shape)
    if len(shape) >= 2:
        drawn = n / math.sqrt(math.prod(shape[1:])) * CONFIG["gains"].get(name, 1.0)
    elif name.endswith("weight"):
        drawn = 1 + 0.1 * n
    else:
        drawn = 0.02 * n
    drawn = drawn.astype(np.float32)
    if name.startswith("vgg.") and len(shape) == 4:
        drawn = drawn * np.float32(CONFIG["vgg_gain"])
    return drawn


def state(part: str) -> dict[str, torch.Tensor]:
    """Tensors of "unet", "clip" or "vgg" by the authors' names."""
    names = (name for name in SHAPES if name.startswith(f"{part}."))
    return {name.removeprefix(f"{part}."): torch.from_numpy(weight(name)) for name in names}


def picture_denoiser() -> PictureDenoiser:
    network = convert(state("unet"), CONFIG["unet"]["image_size"], head_channels=16)
    return PictureDenoiser(network.requires_grad_(False))


def clip_model() -> CLIPVisionModelWithProjection:
    """OpenAI's tower by transformers' names: fused projections are split, `proj` is transposed."""
    config = CONFIG["clip"]
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config["width"],
            intermediate_size=4 * config["width"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            image_size=config["input_resolution"],
            patch_size=config["patch_size"],
            projection_dim=config["output_dim"],
            hidden_act="quick_gelu",
        )
    )
    theirs = {name.removeprefix("visual."): value for name, value in state("clip").items()}
    ours = {
        "visual_projection.weight": theirs["proj"].T.contiguous(),
        "vision_model.embeddings.class_embedding": theirs["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": theirs["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": theirs["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        ours[f"vision_model.pre_layrnorm.{kind}"] = theirs[f"ln_pre.{kind}"]
        ours[f"vision_model.post_layernorm.{kind}"] = theirs[f"ln_post.{kind}"]
        for i in range(config["layers"]):
            there, here = f"transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
            fused = theirs[f"{there}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", fused, strict=True):
                ours[f"{here}.self_attn.{letter}_proj.{kind}"] = part
            for a, b in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                ours[f"{here}.{b}.{kind}"] = theirs[f"{there}.{a}.{kind}"]
    model.load_state_dict(ours)
    return model.eval().requires_grad_(False)


def clip_guide(resize: str = "pool") -> CLIPGuide:
    return CLIPGuide(clip_model(), resize=resize)


def vgg_slices(folder: Path) -> VGGSlices:
    path = folder / "vgg.safetensors"
    save_file({f"features.{name}": value for name, value in state("vgg").items()}, path)
    return VGGSlices(path)


def to_model_range(image: np.ndarray) -> torch.Tensor:
    """uint8 [h w 3] -> float [1 3 h w] in [-1, 1], rounded as the authors do."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 * 2 - 1
