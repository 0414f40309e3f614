"""How many UNet rows fit into the memory of a device."""

from dataclasses import dataclass

import psutil
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

# Feature maps of the first level (its channels, the latents' size) that are alive at once when one
# row or picture passes: counted on Stable Diffusion 1.5 and 2.1 and the mini teacher, which agree.
UNET_MAPS = 26
VAE_MAPS = 6

# For the workspaces of kernels and fragmentation, of which no count of tensors knows.
MARGIN = 1.5

# More rows a call are no faster: a GPU is busy with fewer, a CPU's caches are full with fewer.
MAX_ROWS = {"cpu": 16}
MAX_ROWS_GPU = 64

GIB = 1024**3


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on the device."""

    weights: int
    """UNet and autoencoder."""
    step: int
    """What one step keeps: injected features, latents of all steps."""
    row: int
    """One row of a UNet call."""
    picture: int
    """One picture in the autoencoder."""

    @classmethod
    def estimate(
        cls,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        size: int,
        *,
        layers: tuple[int, ...],
        num_steps: int,
        contents: int,
        styles: int,
        pairs: int,
    ) -> "MemoryNeed":
        """The need of the joint sampling of a grid of square pictures of `size` pixels."""
        channels = unet.config.block_out_channels
        tokens = (size // 2 ** (len(vae.config.block_out_channels) - 1)) ** 2
        features = sum(channels[3 - i // 3] * tokens // 4 ** (3 - i // 3) for i in layers)
        trajectories = (contents + styles) * (num_steps + 1) + 4 * pairs
        latents = trajectories * unet.config.in_channels * tokens * 4
        row = UNET_MAPS * channels[0] * tokens * unet.dtype.itemsize
        if unet.device.type == "mps":  # there the attention's score matrices stand in memory
            heads = unet.config.attention_head_dim
            row += (heads if isinstance(heads, int) else heads[0]) * tokens**2 * 4
        picture = VAE_MAPS * vae.config.block_out_channels[0] * size**2 * vae.dtype.itemsize
        return cls(
            weights=sum(p.nbytes for module in (unet, vae) for p in module.parameters()),
            # A content leaves its queries, a style its keys and values.
            step=features * unet.dtype.itemsize * (contents + 2 * styles) + latents,
            row=int(MARGIN * row),
            picture=int(MARGIN * picture),
        )

    def total(self, rows: int) -> int:
        """Bytes with that many rows a call; sampling and decoding take turns."""
        return self.weights + max(self.step + rows * self.row, self.picture)

    def rows_within(self, total: int, device: torch.device) -> int:
        """Most rows a call whose `total` is not exceeded: a power of two, 0 if not even one row.

        A power of two, so that small differences in free memory do not make other calls.
        """
        rows = MAX_ROWS.get(device.type, MAX_ROWS_GPU)
        while rows and self.total(rows) > total:
            rows //= 2
        return rows


def free_bytes(device: torch.device) -> int:
    """Memory of the device that this process could still take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def release_cached_memory(device: torch.device) -> None:
    """Give back what torch holds without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory was exhausted, in the words of torch on CUDA, MPS and the CPU."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)
