"""Attention distillation (Zhou et al., CVPR 2025)."""

from teacher_torch.attention_distillation.config import AttentionDistillationConfig
from teacher_torch.attention_distillation.distillation import AttentionDistillation

__all__ = ["AttentionDistillation", "AttentionDistillationConfig"]
