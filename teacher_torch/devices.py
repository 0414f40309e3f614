"""The device that a teacher runs on, and how much fits into its memory."""

import os
from dataclasses import dataclass

import psutil
import torch

from triplets import InputError

GIB = 1024**3

# More rows per call are no faster: a GPU is busy with fewer, a CPU's caches are full with fewer.
MAX_ROWS = {"cpu": 16}
MAX_ROWS_GPU = 64


def best_device() -> str:
    """The fastest kind of device that torch can use here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def open_device(name: str | None) -> torch.device:
    """The device of that name, or the best one; of several GPUs the one of torchrun's local rank.

    Raises:
        InputError: there is no such device.
    """
    try:
        device = torch.device(name or best_device())
        if device.type == "cuda" and device.index is None:
            local_rank = int(os.environ.get("LOCAL_RANK", 0))
            device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'--device "{name}" cannot be used here; expected "cuda", "mps" or "cpu".'
        ) from error
    return device


def device_name(device: torch.device) -> str:
    """What to call the device in a record: a GPU's own name, else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a teacher takes on its device."""

    weights: int
    """All networks."""
    step: int
    """What is kept for one shard besides the rows of a call: features, latents of all steps."""
    row: int
    """One row of a UNet call, with what a backward pass keeps of it if there is one."""
    picture: int
    """One picture in the autoencoder."""

    def total(self, rows: int) -> int:
        """Bytes with that many rows per call; sampling and decoding take turns."""
        return self.weights + max(self.step + rows * self.row, self.picture)

    def rows_within(self, total: int, device: torch.device) -> int:
        """Most rows per call whose `total` is not exceeded: a power of two, or 0 for not even one.

        A power of two, so that small differences in free memory do not lead to other calls.
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
