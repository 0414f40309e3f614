"""StyleID (Chung et al., CVPR 2024)."""

from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.teacher import Inversion, StyleID

__all__ = ["Inversion", "StyleID", "StyleIDConfig"]
