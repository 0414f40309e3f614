"""The UNet's training set: a pool of encoded crops with the statistics of each."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Float16
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from teacher_torch.mini.condition import picture_statistics
from teacher_torch.mini.perceptual import VGG16
from triplets.atomic import atomic_write, make_folder

SHARD = 512
MOMENTS_OF = 1024
"""Crops over which means and deviations are taken; they stay when the pool grows."""


class Moments(NamedTuple):
    """Means and deviations over the pool's first crops."""

    latent_mean: Float[Tensor, " c"]
    latent_std: Float[Tensor, " c"]
    statistics_mean: Float[Tensor, " s"]
    statistics_std: Float[Tensor, " s"]


class LatentPool(Dataset):
    """Endless draws (latents [c h w] of unit deviation, statistics [s]) from encoded crops.

    A draw is a function of (seed, index, size of the pool). The pool lies in shards of 512 crops
    in a folder; those that are missing are made first, so that it can grow and be interrupted.
    """

    def __init__(
        self,
        folder: Path,
        autoencoder: AutoencoderKL,
        vgg: VGG16,
        crops: Dataset,
        *,
        size: int,
        seed: int,
        standardise: bool = True,
        dtype: torch.dtype = torch.bfloat16,
    ):
        """`standardise`: give the latents unit deviation; else they stay as they are."""
        make_folder(folder)
        self.latents, self.statistics = [], []
        starts = range(0, size, SHARD)
        for start in tqdm(starts, desc="encoding", unit="shard"):
            part = range(start, min(start + SHARD, size))
            # The last shard of a pool may be a short one; a larger pool then makes it anew.
            paths = [folder / f"{start:06}-{len(part)}.{kind}.npy" for kind in ("stats", "latents")]
            if not paths[1].exists():
                for path, array in zip(
                    paths, encode_crops(autoencoder, vgg, crops, part, dtype), strict=True
                ):
                    with atomic_write(path) as file:
                        np.save(file, array)
            statistics, latents = (np.load(p, mmap_mode="r", allow_pickle=False) for p in paths)
            self.statistics.append(statistics)
            self.latents.append(latents)
        self.size, self.seed = size, seed
        self.moments = self._moments(folder / "moments.safetensors")
        if not standardise:
            mean, std, *_ = self.moments
            self.moments = self.moments._replace(
                latent_mean=torch.zeros_like(mean), latent_std=torch.ones_like(std)
            )

    def _moments(self, path: Path) -> Moments:
        if not path.exists():
            shards = -(-MOMENTS_OF // SHARD)
            latents = torch.from_numpy(np.concatenate(self.latents[:shards])).double()
            statistics = torch.from_numpy(np.concatenate(self.statistics[:shards])).double()
            values = Moments(
                latents.mean((0, 2, 3)),
                latents.std((0, 2, 3)),
                statistics.mean(0),
                # A channel that never fires has no deviation.
                statistics.std(0).clamp(min=1e-3),
            )
            partial = path.with_suffix(".partial")
            save_file({k: v.float() for k, v in values._asdict().items()}, partial)
            partial.replace(path)
        return Moments(**load_file(path))

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], Float[Tensor, " s"]]:
        row = int(np.random.default_rng((self.seed, 3, index)).integers(self.size))
        shard, row = divmod(row, SHARD)
        latents, statistics = (
            torch.from_numpy(part[shard][row].astype(np.float32))
            for part in (self.latents, self.statistics)
        )
        mean, std = (m.view(-1, 1, 1) for m in self.moments[:2])
        return (latents - mean) / std, statistics


@torch.inference_mode()
def encode_crops(
    autoencoder: AutoencoderKL,
    vgg: VGG16,
    crops: Dataset,
    indices: range,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Float16[np.ndarray, "n s"], Float16[np.ndarray, "n c h w"]]:
    """Statistics, and latents, the modes of their posteriors."""
    device = autoencoder.device
    statistics, latents = [], []
    for images in DataLoader(crops, batch_size=16, sampler=indices, num_workers=1):
        images = images.to(device).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            mode = autoencoder.encode(images).latent_dist.mode()
            numbers = picture_statistics(vgg(images / 2 + 0.5))
        for rows, values in ((statistics, numbers), (latents, mode)):
            rows.append(values.float().cpu().numpy().astype(np.float16))
    return np.concatenate(statistics), np.concatenate(latents)
