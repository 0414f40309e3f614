"""Between the pixels on disk and the range of the autoencoder."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_model_range(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """uint8 pixels -> float32 in [-1, 1], channels first."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "b 3 h w"]) -> UInt8[np.ndarray, "b h w 3"]:
    """[-1, 1] -> uint8 pixels, clipped and rounded."""
    scaled = (images / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
