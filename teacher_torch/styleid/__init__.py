"""StyleID (Chung et al., CVPR 2024)."""

from teacher_torch.styleid.adapter import StyleIDTeacher, open_styleid
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.teacher import Inversion, StyleID
from teacher_torch.teacher import register_teacher

__all__ = ["Inversion", "StyleID", "StyleIDConfig", "StyleIDTeacher"]

register_teacher(
    "styleid",
    StyleIDConfig,
    open_styleid,
    {"paper": StyleIDConfig.paper(), "port": StyleIDConfig.port()},
)
