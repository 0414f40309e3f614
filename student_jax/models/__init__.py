"""The networks: the student itself, and VGG for perceptual losses."""

from student_jax.models.resnet import ResNet
from student_jax.models.sttr import STTR
from student_jax.models.transformer import StyleMemory
from student_jax.models.vgg import VGG16, VGG19

__all__ = ["STTR", "VGG16", "VGG19", "ResNet", "StyleMemory"]
