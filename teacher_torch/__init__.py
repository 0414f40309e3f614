"""The teachers, in PyTorch on diffusers."""

from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.teacher import Inversion, StyleID

__all__ = ["Inversion", "StyleID", "StyleIDConfig"]
