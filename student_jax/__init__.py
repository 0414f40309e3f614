"""The student: a small transformer that learns a diffusion teacher's style transfer."""

from student_jax.inference.stylist import Stylist
from student_jax.nets.vgg import VGG16, VGG19
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.model import STTR

__all__ = ["STTR", "VGG16", "VGG19", "STTRConfig", "Stylist"]
