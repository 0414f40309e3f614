"""Figures and pictures of a mini teacher in training, on held-out pictures."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from teacher_torch.mini.condition import PictureCondition, null_condition
from teacher_torch.mini.crops import central_crop
from teacher_torch.mini.perceptual import VGG16
from teacher_torch.pixels import to_uint8
from triplets import test_files

PERIOD = 8
"""Pixels of a latent: where a decoder's grid would show."""
TIMESTEPS = (50, 150, 250, 350, 450, 600, 750, 900)


def load_crops(
    folder: Path, size: int, count: int, shift: float = 0.0
) -> Float[Tensor, "b 3 size size"]:
    """Central crops at native scale [count 3 size size] of the first held-out pictures."""
    files = test_files(folder)[:count]
    return torch.stack([central_crop(file, size, shift) for file in files])


def lattice(residual: Float[Tensor, "b 3 h w"]) -> float:
    """Decibels by which the 8 px period, and its overtones, exceed their neighbours.

    Power spectra of the luminance's rows and columns; about 0 where there is no grid.
    """
    grey = residual.float().mean(1)
    ratios = []
    for axis in (-1, -2):
        power = torch.fft.rfft(grey, dim=axis).abs().square()
        power = power.movedim(axis, -1).flatten(0, 1).mean(0)
        base = grey.shape[axis] // PERIOD
        for k in range(base, len(power) - 2, base):
            near = torch.cat([power[k - 3 : k - 1], power[k + 2 : k + 4]])
            ratios.append(power[k] / near.mean())
    return 10 * torch.stack(ratios).mean().log10().item()


@torch.inference_mode()
def check_autoencoder(
    autoencoder: AutoencoderKL, pictures: dict[str, Tensor], sheet: Path
) -> dict[str, float]:
    """PSNR (mean of the pictures' decibels) and lattice by kind; writes a sheet of both rows."""
    figures, shown = {}, []
    for kind, images in pictures.items():
        results = torch.cat([_reconstruct(autoencoder, batch) for batch in images.split(4)])
        error = ((results - images) / 2).square().mean((1, 2, 3))
        figures[f"psnr_{kind}"] = (-10 * error.log10()).mean().item()
        figures[f"lattice_{kind}"] = lattice(results - images)
        shown += [images[:6], results[:6]]
    write_sheet(sheet, shown)
    return figures


def _reconstruct(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    images = images.to(autoencoder.device).contiguous(memory_format=torch.channels_last)
    decoded = autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample
    return decoded.clamp(-1, 1).cpu()


class UNetCheck:
    """Loss of the UNet on held-out paintings, by condition, on noises that stay the same.

    "own" is the crop's own condition, "same" that of another crop of the painting, "other" that
    of another painting. A model that uses conditions has own < null < other.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        condition: PictureCondition,
        vgg: VGG16,
        crops: tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]],
    ):
        """`crops`: two of each painting; the autoencoder's latents have unit deviation."""
        self.autoencoder = autoencoder
        images = crops[0].to(autoencoder.device)
        with torch.inference_mode():
            self.latents = autoencoder.encode(images).latent_dist.mode()
            own, same = (condition.of_pictures(vgg, c.to(images.device)) for c in crops)
        self.conditions = {
            "own": own,
            "same": same,
            "null": null_condition().to(images.device).expand_as(own),
            "other": own.roll(1, 0),
        }
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn((len(TIMESTEPS), *self.latents.shape), generator=generator)

    @torch.inference_mode()
    def figures(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler) -> dict[str, float]:
        """Mean squared error of the velocity over pictures and timesteps, by condition."""
        names, conditions = self.conditions.keys(), torch.cat([*self.conditions.values()])
        errors = torch.zeros(len(names))
        for timestep, noise in zip(TIMESTEPS, self.noise.to(self.latents.device), strict=True):
            t = torch.full((len(noise),), timestep, device=noise.device)
            noisy = scheduler.add_noise(self.latents, noise, t)
            target = scheduler.get_velocity(self.latents, noise, t)
            velocity = _run(unet, noisy.repeat(len(names), 1, 1, 1), t[0], conditions)
            error = (velocity.unflatten(0, (len(names), -1)) - target).square()
            errors += error.mean((1, 2, 3, 4)).cpu() / len(TIMESTEPS)
        return {f"loss_{name}": error for name, error in zip(names, errors.tolist(), strict=True)}

    @torch.inference_mode()
    def draw(
        self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, sheet: Path, steps: int = 25
    ) -> None:
        """Write samples from noise: one row with own conditions, one with the null condition."""
        count = min(6, len(self.latents))
        scheduler = DDIMScheduler.from_config(scheduler.config)
        scheduler.set_timesteps(steps)
        conditions = torch.cat([self.conditions[name][:count] for name in ("own", "null")])
        x = self.noise[0, :count].to(self.latents.device).repeat(2, 1, 1, 1)
        for t in scheduler.timesteps:
            x = scheduler.step(_run(unet, x, t.to(x.device), conditions), t, x).prev_sample
        decoded = self.autoencoder.decode(x).sample.clamp(-1, 1).cpu()
        write_sheet(sheet, [*decoded.split(count)])


def _run(unet: UNet2DConditionModel, noisy: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    return unet(noisy, timestep, condition).sample


def write_sheet(path: Path, rows: list[Float[Tensor, "b 3 h w"]]) -> None:
    """A PNG with one row of pictures for each batch."""
    Image.fromarray(np.concatenate([np.concatenate(to_uint8(row), 1) for row in rows])).save(path)
