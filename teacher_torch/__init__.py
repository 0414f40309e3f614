"""The teachers, in PyTorch on diffusers. Each method is a package, which registers itself here."""

from teacher_torch import attention_distillation, inst, style_diffusion, zecon
from teacher_torch.styleid import Inversion, StyleID, StyleIDConfig
from teacher_torch.teacher import TEACHERS, Teacher, register_teacher

__all__ = [
    "TEACHERS",
    "Inversion",
    "StyleID",
    "StyleIDConfig",
    "Teacher",
    "attention_distillation",
    "inst",
    "register_teacher",
    "style_diffusion",
    "zecon",
]
