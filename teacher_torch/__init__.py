"""The teacher: StyleID on diffusers, in PyTorch."""

from teacher_torch.config import StyleIDConfig
from teacher_torch.styleid import Inversion, StyleID

__all__ = ["Inversion", "StyleID", "StyleIDConfig"]
