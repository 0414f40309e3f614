"""Published weights, as mappings of PyTorch names to NumPy arrays, to models of ours."""

from student_jax.nets.resnet_weights import resnet50_from_torch
from student_jax.nets.vgg_weights import bundled_vgg16, vgg16_from_torch, vgg19_from_torch
from student_jax.students.sttr.convert import sttr_from_torch, sttr_to_torch

__all__ = [
    "bundled_vgg16",
    "resnet50_from_torch",
    "sttr_from_torch",
    "sttr_to_torch",
    "vgg16_from_torch",
    "vgg19_from_torch",
]
