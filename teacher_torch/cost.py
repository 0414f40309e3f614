"""What stylising one picture costs the teacher: parameters, arithmetic, time, memory.

    python -m teacher_torch.cost MODEL SIZE STEPS count|run|unet-float32|unet-bfloat16 [DEVICE]

prints one line of JSON. MODEL is "mini", "sd15" or a folder in the layout of diffusers. Costs do
not depend on the values of the weights, so the first two need none. "unet" is one evaluation of the
UNet, for machines on which a picture takes too long. scripts/cost.py calls this.
"""

import json
import resource
import statistics
import sys
import time
from dataclasses import replace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from teacher_torch.components import Components, load_components
from teacher_torch.config import StyleIDConfig
from teacher_torch.dump import best_device
from teacher_torch.pretrain import (
    build_autoencoder,
    build_scheduler,
    build_unet,
    null_text_embedding,
)
from teacher_torch.styleid import StyleID


def stable_diffusion_15() -> tuple[UNet2DConditionModel, AutoencoderKL, torch.Tensor]:
    """Networks of the size of Stable Diffusion 1.5, untrained, and an embedding of a text."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    return unet, vae, torch.zeros(1, 77, 768)


def build_components(model: str, device: str, dtype: torch.dtype) -> Components:
    """The networks that stylising needs; "mini" and "sd15" with untrained weights."""
    if model not in ("mini", "sd15"):
        return load_components(model, device, dtype)
    with torch.device(device):
        if model == "mini":
            unet, vae, text = build_unet(), build_autoencoder(), null_text_embedding()
        else:
            unet, vae, text = stable_diffusion_15()
    for module in (unet, vae):
        module.eval().requires_grad_(False)
        if dtype == torch.float16:
            module.half()
    return Components(unet, vae, build_scheduler(), text.to(device, dtype))


def stylise_one(components: Components, size: int, steps: int) -> None:
    """Invert a content and a style and stylise the one with the other, in `steps` DDIM steps."""
    teacher = StyleID(*components, replace(StyleIDConfig.paper(), num_steps=steps))
    image = torch.zeros(1, 3, size, size, device=components.unet.device)
    teacher.stylise(teacher.invert(image), teacher.invert(image))


def count(model: str, size: int, steps: int) -> dict[str, int]:
    """Parameters, and floating-point operations of one picture (2 for a multiply-add).

    Counted on torch's meta device, which computes nothing. The cost is linear in the steps.
    """
    components = build_components(model, "meta", torch.float32)
    flops = []
    for few in (2, 3):
        with FlopCounterMode(display=False) as counter:
            stylise_one(components, size, few)
        flops.append(counter.get_total_flops())
    parameters = sum(p.numel() for m in components[:2] for p in m.parameters())
    return {"parameters": parameters, "flops": flops[0] + (steps - 2) * (flops[1] - flops[0])}


def run(model: str, size: int, steps: int, device: str) -> dict[str, int | float | str]:
    """Seconds and peak memory in bytes of one picture.

    The time is that of 2 and of 4 steps, each the median of three, continued to `steps`. On a GPU
    the peak is that of the allocator, in float16; elsewhere the growth of the process, in float32.
    """
    dtype = torch.float16 if device == "cuda" else torch.float32
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    components = build_components(model, device, dtype)
    stylise_one(components, size, 2)  # the first call also sets things up
    seconds = [statistics.median(_timed(components, size, few) for _ in range(3)) for few in (2, 4)]
    per_step = (seconds[1] - seconds[0]) / 2
    return {
        "seconds": seconds[0] + (steps - 2) * per_step,
        **_peak_and_device(device, before),
        "dtype": str(dtype).removeprefix("torch."),
    }


def evaluate_unet(model: str, size: int, dtype: torch.dtype, device: str) -> dict:
    """Operations, seconds (the median of three) and peak memory in bytes of one UNet evaluation.

    For one picture of `size` pixels a side.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unet, vae, _, text = build_components(model, "meta", torch.float32)
    side = size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.zeros(1, unet.config.in_channels, side, side, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(latents, 500, text)
    # Zeros cost what other weights do, and take no time to draw.
    if dtype == torch.bfloat16:
        unet.bfloat16()
    unet.to_empty(device=device)
    for parameter in unet.parameters():
        parameter.zero_()
    latents, text = (torch.zeros_like(x, device=device, dtype=dtype) for x in (latents, text))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.inference_mode():
            unet(latents, 500, text)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "flops": counter.get_total_flops(),
        "seconds": statistics.median(seconds),
        **_peak_and_device(device, before),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _peak_and_device(device: str, before: int) -> dict[str, int | str]:
    """Peak memory since the process had `before` kilobytes, and the device's name."""
    if device == "cuda":
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "device": torch.cuda.get_device_name(),
        }
    # Kilobytes on Linux.
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {"peak_bytes": peak, "device": f"{torch.get_num_threads()} CPU threads"}


def _timed(components: Components, size: int, steps: int) -> float:
    start = time.perf_counter()
    stylise_one(components, size, steps)
    if components.unet.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    model, size, steps, what, *given = sys.argv[1:]
    device = given[0] if given else best_device()
    if what == "count":
        measures = count(model, int(size), int(steps))
    elif what == "run":
        measures = run(model, int(size), int(steps), device)
    else:
        dtype = {"unet-float32": torch.float32, "unet-bfloat16": torch.bfloat16}[what]
        measures = evaluate_unet(model, int(size), dtype, device)
    print(json.dumps(measures))
