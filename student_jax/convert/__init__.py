"""Published weights, as mappings of PyTorch names to NumPy arrays, to models of ours."""

from student_jax.convert.resnet import resnet50_from_torch
from student_jax.convert.sttr import sttr_from_torch, sttr_to_torch
from student_jax.convert.vgg import bundled_vgg16, vgg16_from_torch, vgg19_from_torch

__all__ = [
    "bundled_vgg16",
    "resnet50_from_torch",
    "sttr_from_torch",
    "sttr_to_torch",
    "vgg16_from_torch",
    "vgg19_from_torch",
]
