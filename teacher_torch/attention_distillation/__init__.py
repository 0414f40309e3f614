"""Attention distillation (Zhou et al., CVPR 2025)."""

from teacher_torch.attention_distillation.adapter import (
    AttentionDistillationTeacher,
    open_attention_distillation,
)
from teacher_torch.attention_distillation.config import AttentionDistillationConfig
from teacher_torch.attention_distillation.distillation import AttentionDistillation
from teacher_torch.attention_distillation.features import Masks
from teacher_torch.teacher import register_teacher

__all__ = [
    "AttentionDistillation",
    "AttentionDistillationConfig",
    "AttentionDistillationTeacher",
    "Masks",
]

register_teacher(
    "attention_distillation",
    AttentionDistillationConfig,
    open_attention_distillation,
    {
        "after_styleid": AttentionDistillationConfig.after_styleid(),
        "paper": AttentionDistillationConfig.paper(),
    },
)
