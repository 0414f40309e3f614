"""What every teacher costs in its published settings: UNet rows and operations.

Rows are those of a dump's plan: of a content, a style, and a pair in tiles as the teacher likes
them. Operations per row are counted on torch's meta device, which computes nothing, in the parts of
the work that a dump tries before it begins (`Teacher.trial`). Networks have the published sizes:
Stable Diffusion 1.5 at 512 px, or OpenAI's ADM at 256 px with CLIP ViT-B/16. InST is counted
without its text encoder. With --run, a row of Stable Diffusion is also timed on a device, with
random weights; on a CPU in processor time, so run it with OMP_NUM_THREADS=1.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro
from diffusers import UNet2DModel
from torch import nn
from transformers import CLIPConfig, CLIPModel

from teacher_torch.attention_distillation import (
    AttentionDistillationConfig,
    AttentionDistillationTeacher,
)
from teacher_torch.cost import build_components
from teacher_torch.denoisers import PictureDenoiser
from teacher_torch.estimate import Rate, measure_rates, unet_trial
from teacher_torch.guides import CLIPGuide
from teacher_torch.inst import InSTConfig, InSTTeacher
from teacher_torch.latent_diffusion import Components
from teacher_torch.style_diffusion import StyleDiffusionConfig
from teacher_torch.style_diffusion.adapter import StyleDiffusionTeacher
from teacher_torch.styleid import StyleIDConfig, StyleIDTeacher
from teacher_torch.teacher import PIECES, ROLES, Piece, Teacher
from teacher_torch.zecon import ZeConConfig
from teacher_torch.zecon.adapter import ZeConTeacher
from teacher_torch.zecon.guidance import VGGSlices
from triplets import ImageFolder
from triplets.bundled import SAMPLES

LATENT_PX, PICTURE_PX = 512, 256
CHANNELS = (256, 256, 512, 512, 1024, 1024)
ATTENTION = (False, False, False, True, True, True)
"""Of the levels of ADM."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Count the published settings."""

    run: bool = False
    """Also time a UNet row of Stable Diffusion, with and without its backward pass."""
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the timed networks."""


class Case(NamedTuple):
    """One teacher in its published settings."""

    name: str
    networks: str
    size: int
    teacher: Teacher


def main(config: BenchmarkConfig) -> None:
    """Print the tables."""
    print("| teacher | networks | per content | per style | per pair |")
    print("| --- | --- | ---: | ---: | ---: |")
    for case in [*latent_cases(), *picture_cases()]:
        rates = measure_rates(case.teacher, case.size)
        cells = [amount(rows, rates.get(piece, rates["pair"])) for piece, rows in _rows(case)]
        print(f"| {case.name} | {case.networks} | {' | '.join(cells)} |", flush=True)
    if config.run:
        print(f"\n| UNet of Stable Diffusion, {config.dtype}, {config.device} | seconds per row |")
        print("| --- | ---: |")
        components = random_components(config)
        for name, gradient in (("forward", False), ("forward and backward", True)):
            seconds = timed_row(components, gradient=gradient)
            print(f"| {name} | {seconds:.3g} |", flush=True)


def random_components(config: BenchmarkConfig) -> Components:
    """Stable Diffusion with random weights, small enough that nothing overflows."""
    components = build_components("sd15", config.device, getattr(torch, config.dtype))
    for parameter in components.unet.parameters():
        nn.init.normal_(parameter, std=0.02)
    return components


def timed_row(components: Components, *, gradient: bool) -> float:
    """Seconds of a UNet row, of a processor or of another device.

    A backward pass, to the input, belongs to its row here; a dump's plan counts it as another.
    """
    device = components.unet.device
    on_cpu = device.type == "cpu"
    rows = 1 if on_cpu else 8
    clock = time.process_time if on_cpu else time.perf_counter
    # The first call sets things up; on a CPU a small one does.
    unet_trial(components, 64 if on_cpu else LATENT_PX, rows, gradient=gradient)
    start = clock()
    unet_trial(components, LATENT_PX, rows, gradient=gradient)
    if not on_cpu:
        torch.cuda.synchronize()
    return (clock() - start) / rows


def latent_cases() -> Iterator[Case]:
    """Teachers of Stable Diffusion, without weights."""
    components = build_components("sd15", "meta", torch.float32)
    of = ("Stable Diffusion 1.5", LATENT_PX)
    yield Case("`styleid`", *of, StyleIDTeacher(components, StyleIDConfig.paper()))
    for preset in ("after_styleid", "paper"):
        settings = getattr(AttentionDistillationConfig, preset)()
        teacher = AttentionDistillationTeacher(components, settings)
        yield Case(f"`attention_distillation --preset {preset}`", *of, teacher)
    settings = replace(InSTConfig.paper(), learned="direct")
    yield Case("`inst --preset paper`", *of, InSTTeacher(components, settings))


def picture_cases() -> Iterator[Case]:
    """Teachers of ADM, without weights."""
    with torch.device("meta"):
        network = UNet2DModel(
            sample_size=PICTURE_PX,
            in_channels=3,
            out_channels=6,
            block_out_channels=CHANNELS,
            down_block_types=[_block("Down", attends) for attends in ATTENTION],
            up_block_types=[_block("Up", attends) for attends in reversed(ATTENTION)],
            attention_head_dim=64,
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
        )
        clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
        vgg = VGGSlices()
    for module in (network, clip, vgg):
        _freeze(module)
    denoiser = PictureDenoiser(network)
    of = ("ADM, CLIP ViT-B/16", PICTURE_PX)
    guide = CLIPGuide(clip, resize="pool")
    teacher = ZeConTeacher(denoiser, guide, ZeConConfig.paper(), vgg)
    yield Case("`zecon --preset paper`", *of, teacher)
    settings = StyleDiffusionConfig.paper()
    contents = ImageFolder(Path(SAMPLES) / "content")
    teacher = StyleDiffusionTeacher(denoiser, CLIPGuide(clip, resize="bicubic"), settings, contents)
    yield Case("`style_diffusion --preset paper`", *of, teacher)


def amount(rows: float, rate: Rate) -> str:
    """Rows and TFLOP as they stand in the table."""
    return f"{rows:.4g} rows, {rows * rate.flops / 1e12:,.4g} TFLOP" if rows else "–"


def _rows(case: Case) -> Iterator[tuple[Piece, float]]:
    teacher = case.teacher
    contents, styles = teacher.tile
    pairs = contents * styles
    work = [teacher.preparation_work(role, 1) for role in ROLES]
    work.append(teacher.work(contents, styles, pairs) / pairs)
    return zip(PIECES, work, strict=True)


def _block(way: str, attends: bool) -> str:
    if attends:
        return f"Attn{way}Block2D"
    return f"Resnet{'Downsample' if way == 'Down' else 'Upsample'}Block2D"


def _freeze(module: nn.Module) -> None:
    module.eval().requires_grad_(False)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
