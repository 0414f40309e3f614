"""How long a dump will take: a small piece of the work is done before it begins, and scaled up.

The dump counts its work in UNet rows. What a row costs differs between the pieces of the work: a
row of a training has a backward pass, a row of guidance brings a guide along. So each teacher does
a typical part of each (`Teacher.trial`), whose operations are counted and whose time is taken.
"""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from teacher_torch.devices import is_out_of_memory, release_cached_memory
from teacher_torch.latent_diffusion import Components
from teacher_torch.teacher import PIECES, Piece, Teacher


class Rate(NamedTuple):
    """Of one UNet row of a piece of the work, with all that belongs to it."""

    flops: float
    """Floating-point operations, 2 for a multiply-add."""
    seconds: float


Rates = Mapping[Piece, Rate]


def measure_rates(teacher: Teacher, size_px: int) -> dict[Piece, Rate]:
    """The rates of the pieces that the teacher can try.

    One that exhausts the device's memory is left out: the dump itself finds out what fits.
    """
    rates = {}
    for piece in PIECES:
        try:
            with _Counter() as counter:
                rows = teacher.trial(piece, size_px)
            if rows:
                start = time.perf_counter()
                teacher.trial(piece, size_px)
                _wait_for(teacher.device)
                seconds = time.perf_counter() - start
                rates[piece] = Rate(counter.flops / rows, seconds / rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release_cached_memory(teacher.device)
    return rates


def unet_trial(components: Components, size_px: int, rows: int, *, gradient: bool) -> int:
    """One UNet call, with a backward pass to its input if so asked; returns its rows, of which a
    backward pass counts as as many again."""
    unet, text = components.unet, components.null_text_embedding
    scale = 2 ** (len(components.vae.config.block_out_channels) - 1)
    side = size_px // scale
    states = noise_like((rows, unet.config.in_channels, side, side), unet.device).to(unet.dtype)
    with torch.set_grad_enabled(gradient):
        states.requires_grad_(gradient)
        output = unet(states, 500, text.to(unet.dtype).expand(rows, -1, -1)).sample
        if gradient:
            torch.autograd.grad(output.float().square().mean(), states)
    return rows * (2 if gradient else 1)


def noise_like(shape: tuple[int, int, int, int], device: torch.device) -> Float[Tensor, "b c h w"]:
    """States to try a network on."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def trial_rows(teacher: Teacher) -> int:
    """Rows of a call that shows the rate: a CPU is busy with one, a GPU is not."""
    return 1 if teacher.device.type == "cpu" else teacher.rows_per_call


def hours(seconds: float) -> str:
    """A time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tflop(flops: float) -> str:
    """Operations in words, to three digits."""
    return f"{float(f'{flops / 1e12:.3g}'):g} TFLOP"


class _Counter(TorchDispatchMode):
    """Counts operations as torch's `FlopCounterMode` does, which cannot follow a gradient that is
    asked for by `torch.autograd.grad` at a module's input."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **kwargs, out_val=out)
        return out


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
