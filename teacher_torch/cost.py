"""What stylising one picture costs the teacher: parameters, arithmetic, time, memory.

    python -m teacher_torch.cost MODEL SIZE STEPS count|run [DEVICE]

prints one line of JSON. MODEL is "mini", "sd15" or a folder in the layout of diffusers. Costs do
not depend on the values of the weights, so the first two need none. scripts/cost.py calls this.
"""

import json
import statistics
import sys
import time
from dataclasses import replace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from teacher_torch.devices import open_device
from teacher_torch.latent_diffusion import Components, load_components
from teacher_torch.mini.pretrain import (
    build_autoencoder,
    build_scheduler,
    build_unet,
    null_text_embedding,
)
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.teacher import StyleID
from triplets import InputError
from triplets.memory import PeakGrowth

SMALL = 64
"""Pixels a side of the picture that sets things up; no model of this structure takes smaller."""
SLOW_SECONDS = 5.0
"""A picture of 2 steps that takes longer is timed once, not three times."""


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


def build_components(model: str, device: str | torch.device, dtype: torch.dtype) -> Components:
    """The networks that stylising needs; "mini" and "sd15" with untrained weights."""
    if model not in ("mini", "sd15"):
        return load_components(model, device, dtype)
    with torch.device("meta"):
        if model == "mini":
            unet, vae, text = build_unet(), build_autoencoder(), null_text_embedding()
        else:
            unet, vae, text = stable_diffusion_15()
    for module in (unet, vae):
        module.eval().requires_grad_(False).type(dtype).to_empty(device=device)
        for parameter in module.parameters():
            # One number takes no time to draw. Zeros would make pictures without any deviation, by
            # which StyleID divides.
            parameter.fill_(1e-3)
    vae.to(memory_format=torch.channels_last)  # as it is loaded
    text = torch.zeros_like(text, device=device, dtype=dtype)
    return Components(unet, vae, build_scheduler(), text)


def stylise_one(
    components: Components, size: int, steps: int
) -> tuple[Float[Tensor, "1 3 size size"], int]:
    """Invert a content and a style and stylise the one with the other, in `steps` DDIM steps.

    Returns the picture and the evaluations of the UNet (rows of its calls) that it took.
    """
    teacher = _teacher(components, steps)
    evaluations = []
    teacher.after_call = evaluations.append
    image = torch.rand(1, 3, size, size, device=components.unet.device)
    picture = teacher.stylise(teacher.invert(image), teacher.invert(image))
    return picture, sum(evaluations)


def _teacher(components: Components, steps: int) -> StyleID:
    return StyleID(*components, replace(StyleIDConfig.paper(), num_steps=steps))


def count(model: str, size: int, steps: int) -> dict[str, int]:
    """Parameters, and floating-point operations of one picture (2 for a multiply-add).

    "evaluations" of the UNet and "flops" are the method's: it keeps the features of content and
    style from their inversion. Those "as_run" are this package's, which computes them again in
    each step of sampling. Counted on torch's meta device, which computes nothing.
    """
    components = build_components(model, "meta", torch.float32)
    # Both are linear in the steps.
    two, three = (_counted(components, size, few) for few in (2, 3))
    flops, evaluations = (a + (steps - 2) * (b - a) for a, b in zip(two, three, strict=True))
    teacher = _teacher(components, steps)
    latents = teacher.encode(torch.zeros(1, 3, size, size, device=components.unet.device))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        components.unet(latents, 1, components.null_text_embedding)
    again = 2 * (teacher.schedule.sampling_start + 1)  # content and style in each sampling step
    return {
        "parameters": sum(p.numel() for m in components[:2] for p in m.parameters()),
        "evaluations": evaluations - again,
        "evaluations_as_run": evaluations,
        "flops": flops - again * counter.get_total_flops(),
        "flops_as_run": flops,
    }


def _counted(components: Components, size: int, steps: int) -> tuple[int, int]:
    """Operations, and evaluations of the UNet."""
    with FlopCounterMode(display=False) as counter:
        _, evaluations = stylise_one(components, size, steps)
    return counter.get_total_flops(), evaluations


def run(
    model: str, size: int, steps: int, device: torch.device
) -> dict[str, int | float | str | None]:
    """Seconds and peak memory in bytes of one picture, in the fastest suitable dtype.

    The time is that of 2 and of 4 steps, continued to `steps`. The memory of a GPU is the peak of
    its allocator; that of a CPU is the weights and what the process grows by for the first picture,
    None where the system does not tell.
    """
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cpu" else (torch.float16,)
    trials = []
    for dtype in dtypes:
        components = build_components(model, device, dtype)
        stylise_one(components, SMALL, 2)  # the first call also sets things up
        with PeakGrowth() as grown:
            seconds = [_timed(components, size, 2)]
        peak = _peak_bytes(components, grown.bytes)
        more = 0 if seconds[0] > SLOW_SECONDS else 2
        seconds += [_timed(components, size, 2) for _ in range(more)]
        trials.append((statistics.median(seconds), more, peak, components))
    of_two, more, peak, components = min(trials, key=lambda trial: trial[0])
    of_four = statistics.median(_timed(components, size, 4) for _ in range(1 + more))
    return {
        "seconds": of_two + (steps - 2) * (of_four - of_two) / 2,
        "peak_bytes": peak,
        "device": _name(device),
        "dtype": str(components.unet.dtype).removeprefix("torch."),
    }


def _timed(components: Components, size: int, steps: int) -> float:
    """Seconds of one picture."""
    start = time.perf_counter()
    stylise_one(components, size, steps)[0].cpu()  # waits for the device
    return time.perf_counter() - start


def _peak_bytes(components: Components, grown: int | None) -> int | None:
    """Peak memory of a picture, weights included, for which the process grew by `grown` bytes."""
    device = components.unet.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or grown is None:
        return None
    return sum(p.nbytes for module in components[:2] for p in module.parameters()) + grown


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU (threads: {torch.get_num_threads()})" if device.type == "cpu" else device.type


if __name__ == "__main__":
    model, size, steps, what, *given = sys.argv[1:]
    try:
        if what == "count":
            measures = count(model, int(size), int(steps))
        else:
            measures = run(model, int(size), int(steps), open_device(given[0] if given else None))
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(measures))
