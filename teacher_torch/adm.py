"""OpenAI's guided-diffusion networks ("ADM", Dhariwal & Nichol, 2021) as diffusers' UNet2DModel.

    python -m teacher_torch.adm 256x256_diffusion_uncond.pt runs/adm

writes a folder for --model. The structure is read from the shapes; every tensor must find its
place and every place its tensor. Needs blocks as ADM has them: scale-shift norms, resampling in
residual blocks, attention heads of 64 channels.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from triplets import InputError, one_line
from triplets.atomic import make_folder

HEAD_CHANNELS = 64
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def network_config(state: Mapping[str, Tensor], sample_size: int, head_channels: int) -> dict:
    """Arguments of `UNet2DModel` for a checkpoint, from its names and shapes.

    Raises:
        InputError: it is not of an unconditional ADM network.
    """
    if any(name.startswith("label_emb") for name in state):
        raise InputError("the checkpoint is of a class-conditional network; expected one without.")
    inputs = _blocks(state, "input_blocks")
    # A residual block that halves the picture has neither more channels nor attention: in each
    # level it is the last but in the last level, and the levels are of one length.
    layers = _layers_per_block(state, len(inputs))
    levels = [inputs[start : start + layers + 1] for start in range(1, len(inputs), layers + 1)]
    try:
        channels = [
            len(state[f"input_blocks.{level[0]}.0.out_layers.3.weight"]) for level in levels
        ]
        scale_shift = len(state["input_blocks.1.0.emb_layers.1.weight"]) == 2 * channels[0]
        colours = state["input_blocks.0.0.weight"].shape[1]
        outputs = len(state["out.2.weight"])
    except KeyError as error:
        raise InputError(
            f"the checkpoint has no {error}; expected a guided-diffusion network."
        ) from error
    if not scale_shift:
        raise InputError("the checkpoint has no scale-shift norms; expected an ADM network.")
    attends = [f"input_blocks.{level[0]}.1.qkv.weight" in state for level in levels]
    return {
        "sample_size": sample_size,
        "in_channels": colours,
        "out_channels": outputs,
        "layers_per_block": layers,
        "block_out_channels": channels,
        "down_block_types": [
            "AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends
        ],
        "up_block_types": [
            "AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)
        ],
        "attention_head_dim": head_channels,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
    }


def convert(
    state: Mapping[str, Tensor], sample_size: int, head_channels: int = HEAD_CHANNELS
) -> UNet2DModel:
    """The network of a checkpoint.

    Args:
        state: tensors by the authors' names.
        sample_size: side in pixels of the pictures that it was trained on.
        head_channels: channels of an attention head.

    Raises:
        InputError: a tensor without a place, a place without a tensor, or another shape.
    """
    config = network_config(state, sample_size, head_channels)
    with torch.device("meta"):
        network = UNet2DModel(**config)
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    converted, unknown = {}, []
    for name, value in state.items():
        module, kind = name.rpartition(".")[::2]
        place = _place(module, layers, levels)
        if place is None:
            unknown.append(name)
        elif module.endswith(".qkv"):
            converted |= _split_heads(place, kind, value, head_channels)
        else:
            converted[f"{place}.{kind}"] = value[..., 0] if _is_projection(module, kind) else value
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in converted.items()}
    faults = [
        *(f"{name} is unknown" for name in unknown + sorted(given.keys() - expected.keys())),
        *(f"{name} is missing" for name in sorted(expected.keys() - given.keys())),
        *(
            f"{name} is {list(given[name])}, not {list(expected[name])}"
            for name in sorted(expected.keys() & given.keys())
            if given[name] != expected[name]
        ),
    ]
    if faults:
        shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if faults[3:] else "")
        raise InputError(f"the checkpoint is not of an ADM network: {shown}.")
    network.load_state_dict(converted, assign=True)
    return network.eval()


def _blocks(state: Mapping[str, Tensor], part: str) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in state if name.startswith(part)})


def _layers_per_block(state: Mapping[str, Tensor], inputs: int) -> int:
    outputs = len(_blocks(state, "output_blocks"))
    # inputs = levels (layers + 1), outputs = levels (layers + 1): levels are where output blocks
    # end in a second residual block, and one more.
    ups = sum(
        any(f"output_blocks.{k}.{j}.in_layers.0.weight" in state for j in (1, 2))
        for k in range(outputs)
    )
    if inputs == 0 or inputs % (ups + 1):
        raise InputError(
            f"the checkpoint has {inputs} input blocks in {ups + 1} levels; expected a "
            "guided-diffusion network."
        )
    return inputs // (ups + 1) - 1


def _place(module: str, layers: int, levels: int) -> str | None:
    """diffusers' name of a module of theirs; the fused attention projection's is its attention."""
    for theirs, ours in FIXED.items():
        if module == theirs:
            return ours
        if module.startswith(f"{theirs}."):
            return _inside(ours, module.removeprefix(f"{theirs}."))
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", module)
    if not match:
        return None
    side, number, part, rest = match[1], int(match[2]), int(match[3]), match[4]
    is_attention = rest in ("norm", "qkv", "proj_out")
    if side == "input":
        level, layer = divmod(number - 1, layers + 1)
        block = f"down_blocks.{level}"
        if layer == layers:
            return _inside(f"{block}.downsamplers.0", rest)
    else:
        level, layer = divmod(number, layers + 1)
        block = f"up_blocks.{level}"
        if part > 0 and not is_attention:
            return _inside(f"{block}.upsamplers.0", rest) if level < levels - 1 else None
    return _inside(f"{block}.{'attentions' if is_attention else 'resnets'}.{layer}", rest)


def _inside(place: str, rest: str) -> str | None:
    if rest == "qkv":
        return place
    name = RESNET.get(rest) or ATTENTION.get(rest)
    return name and f"{place}.{name}"


def _is_projection(module: str, kind: str) -> bool:
    # A convolution over a row of positions there, a linear layer here.
    return module.endswith(".proj_out") and kind == "weight"


def _split_heads(place: str, kind: str, value: Tensor, head_channels: int) -> dict[str, Tensor]:
    """Rows are ordered [head][q, k, v][channel] there, and [head][channel] in three layers here."""
    rows = value[..., 0] if kind == "weight" else value
    heads = rows.reshape(-1, 3, head_channels, *rows.shape[1:]).transpose(0, 1)
    parts = zip(("to_q", "to_k", "to_v"), heads, strict=True)
    return {f"{place}.{name}.{kind}": part.flatten(0, 1).contiguous() for name, part in parts}


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt file, read without running what a pickle may hold.

    Raises:
        InputError: no such file, or one of something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise InputError(f'cannot read "{path}": {one_line(error)}.') from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f'"{path}" holds other things than tensors by name.')
    return state


def main(arguments: list[str] | None = None) -> None:
    """Convert a file to a folder."""
    parser = argparse.ArgumentParser(prog="python -m teacher_torch.adm", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="OpenAI's .pt file")
    parser.add_argument("folder", type=Path, help="where to write the model")
    parser.add_argument("--size", type=int, default=256, help="side of its pictures in pixels")
    parser.add_argument("--head-channels", type=int, default=HEAD_CHANNELS)
    given = parser.parse_args(arguments)
    if given.folder.exists():
        raise InputError(f"{str(given.folder)!r} is there already; give a new folder.")
    network = convert(load_checkpoint(given.checkpoint), given.size, given.head_channels)
    make_folder(given.folder)
    network.save_pretrained(given.folder / "unet")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
