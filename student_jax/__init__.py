"""The student: a small transformer that learns a diffusion teacher's style transfer."""

from student_jax.config import STTRConfig
from student_jax.models import STTR, VGG16, VGG19
from student_jax.stylise import Stylist

__all__ = ["STTR", "VGG16", "VGG19", "STTRConfig", "Stylist"]
