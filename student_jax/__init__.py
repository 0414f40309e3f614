"""The students: small networks that learn a diffusion teacher's style transfer."""

from student_jax.inference.stylist import Stylist
from student_jax.nets.vgg import VGG16, VGG19
from student_jax.students import STTR, MiniConfig, MiniStudent, STTRConfig

__all__ = ["STTR", "VGG16", "VGG19", "MiniConfig", "MiniStudent", "STTRConfig", "Stylist"]
