"""Learning the conditions of several styles at once.

A step draws a noise level and a noise for each style, noises the style's latents, and takes the
UNet's error (Zhang et al., CVPR 2023, equation 3). Rows of one UNet call belong to different
styles; their losses are summed, so each style's gradient is as if it were trained alone. All
random numbers of a step come from (seed, style, step), whatever the others and the interruptions.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from teacher_torch.inst.config import TIMESTEPS, InSTConfig
from teacher_torch.latent_diffusion import Posterior
from teacher_torch.teacher import Key
from triplets import InputError
from triplets.atomic import atomic_write

LOSS_SCALE = 2.0**12
"""Keeps the gradients of a mean over thousands of numbers above float16's smallest; it is taken off
again before the optimiser."""
STATE = "training.safetensors"
SAVE_SECONDS = 60.0
"""What a kill costs at most. When a state is saved changes no result."""


Conditions = Callable[[Sequence[bool], Sequence[torch.Generator]], Tensor]
"""Gives the conditions [s n d] of s styles, with gradients, in one step: of whether each style's
picture is mirrored there, and of each style's generator on the CPU."""


class Training:
    """Trains what conditions depend on, with one frozen UNet."""

    def __init__(
        self, unet: UNet2DConditionModel, scheduler, config: InSTConfig, rows_per_call: int = 64
    ):
        """
        Args:
            unet: the denoising network, its weights without gradients.
            scheduler: any diffusers scheduler of the model; its noise schedule is read.
            config: the method's settings.
            rows_per_call: most rows of one UNet call.
        """
        self.unet, self.scheduler, self.config = unet, scheduler, config
        self.rows_per_call = rows_per_call
        self.after_call: Callable[[int], None] = lambda rows: None
        """Called with a call's UNet rows (a backward pass counts as another), for progress."""
        self.after_step: Callable[[int, Tensor], None] = lambda *_: None
        """Called after each optimiser step with its number and the loss of each style before it."""

    def train(
        self,
        parameters: Sequence[nn.Parameter],
        conditions: Conditions,
        latents: Sequence[Posterior],
        keys: Sequence[Key],
        folder: Path | None = None,
    ) -> None:
        """Train, changing the parameters in place.

        Args:
            parameters: what is trained, float32.
            conditions: the styles' conditions, of the parameters.
            latents: of each style's picture and of the mirrored one, two rows for each style.
            keys: one for each style, for random numbers.
            folder: where the state is kept, so that an interrupted training goes on from there.

        Raises:
            InputError: numbers overflow.
            OSError: the state cannot be written.
        """
        config = self.config
        optimiser = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        path = None if folder is None else folder / STATE
        first = 0 if path is None else _restore(path, optimiser)
        if first:
            self.after_call(2 * config.batch * len(keys) * first)
        saved = time.monotonic()
        for step in range(first, config.training_steps):
            self._step(step, optimiser, conditions, latents, keys)
            last = step == config.training_steps - 1
            if last or time.monotonic() - saved >= SAVE_SECONDS:
                self._check(parameters)
                if path is not None and not last:
                    _save(path, optimiser, step + 1)
                saved = time.monotonic()

    def losses(
        self,
        clean: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        timesteps: Sequence[int],
        conditions: Float[Tensor, "b n d"],
    ) -> Float[Tensor, " b"]:
        """Mean squared error of each row's prediction, of the noise or of the velocity."""
        t = torch.tensor(timesteps, device=clean.device)
        noisy = self.scheduler.add_noise(clean, noise, t)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(clean, noise, t) if velocity else noise
        dtype = self.unet.dtype
        output = self.unet(noisy.to(dtype), t, conditions.to(dtype)).sample
        return (output.to(target.dtype) - target).square().mean((1, 2, 3))

    def _step(
        self,
        step: int,
        optimiser: torch.optim.Optimizer,
        conditions: Conditions,
        latents: Sequence[Posterior],
        keys: Sequence[Key],
    ) -> None:
        """One optimiser step of all styles."""
        batch, draws = self.config.batch, self.config.draws
        draw = step if draws is None else step % draws
        generators = [key.generator("step", draw) for key in keys]
        mirrored, timesteps, clean, noise = [], [], [], []
        for generator, posterior in zip(generators, latents, strict=True):
            mirror = bool(torch.rand(1, generator=generator) < 0.5)
            mirrored.append(mirror)
            # Of equal shares of the schedule one from each: of a batch of one, from all.
            shares = torch.arange(batch) + torch.rand(batch, generator=generator)
            timesteps += (shares * TIMESTEPS / batch).long().clamp(max=TIMESTEPS - 1).tolist()
            mean, std = (x[int(mirror)] for x in posterior)
            drawn, own = torch.randn((2, batch, *mean.shape), generator=generator).to(mean.device)
            clean.append(mean + std * drawn)
            noise.append(own)
        clean, noise = torch.cat(clean), torch.cat(noise)

        with torch.enable_grad():
            of_styles = conditions(mirrored, generators)
        # The UNet's calls leave their gradients here, for one backward pass through the rest.
        rows = of_styles.detach().repeat_interleave(batch, dim=0)
        gradient, losses = torch.empty_like(rows), []
        for part in _calls(len(rows), self.rows_per_call):
            with torch.enable_grad():
                told = rows[part].requires_grad_()
                own = self.losses(clean[part], noise[part], timesteps[part], told)
                (found,) = torch.autograd.grad(own.sum() * LOSS_SCALE, told)
            gradient[part] = found / LOSS_SCALE
            losses.append(own.detach())
            self.after_call(2 * len(own))
        optimiser.zero_grad()
        of_styles.backward(gradient.unflatten(0, (-1, batch)).mean(1))
        optimiser.step()
        self.after_step(step, torch.cat(losses).unflatten(0, (-1, batch)).mean(1))

    def _check(self, parameters: Sequence[nn.Parameter]) -> None:
        # Once a gradient is not finite, the optimiser keeps everything after it from being so.
        if not all(parameter.isfinite().all() for parameter in parameters):
            dtype = str(self.unet.dtype).removeprefix("torch.")
            raise InputError(
                f"gradients of the training overflow in {dtype}: use --dtype bfloat16 or float32, "
                "with another folder for the dataset."
            )


def _calls(rows: int, rows_per_call: int) -> Iterator[slice]:
    """The fewest calls of at most `rows_per_call` rows, of nearly equal size."""
    count = math.ceil(rows / rows_per_call)
    for k in range(count):
        yield slice(rows * k // count, rows * (k + 1) // count)


def _save(path: Path, optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Keep parameters, both moments and the number of steps that are done."""
    parameters = optimiser.param_groups[0]["params"]
    tensors = {"steps": torch.tensor(steps)}
    for i, parameter in enumerate(parameters):
        state = optimiser.state[parameter]
        tensors |= {f"{i}.{name}": state[name] for name in ("exp_avg", "exp_avg_sq")}
        tensors[f"{i}.parameter"] = parameter.detach()
    with atomic_write(path) as file:
        file.write(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


@torch.no_grad()
def _restore(path: Path, optimiser: torch.optim.Optimizer) -> int:
    """Take up what `_save` kept, if there is a whole file; returns the steps that are done."""
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return 0
    steps = tensors["steps"]
    for i, parameter in enumerate(optimiser.param_groups[0]["params"]):
        parameter.copy_(tensors[f"{i}.parameter"])
        moments = {
            name: tensors[f"{i}.{name}"].to(parameter.device) for name in ("exp_avg", "exp_avg_sq")
        }
        optimiser.state[parameter] = {"step": steps.float(), **moments}
    return int(steps)
