"""The perceptual networks, beyond their parity tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from student_jax import VGG19, convert
from triplets import bundled


def test_layers_can_be_chosen():
    vgg = nnx.jit(lambda: VGG19(rngs=nnx.Rngs(0)))()
    images = jnp.zeros((1, 32, 48, 3))
    features = jax.jit(lambda x: vgg(x, layers=("relu1_2", "relu3_4")))(images)
    assert {name: x.shape for name, x in features.items()} == {
        "relu1_2": (1, 32, 48, 64),
        "relu3_4": (1, 8, 12, 256),
    }
    with pytest.raises(ValueError, match=r"no layers \['relu5_1'\]"):
        vgg(images, layers=("relu5_1",))


def test_bundled_vgg16_has_the_weights_of_the_file():
    weights = load_file(bundled.WEIGHTS / "vgg16_relu4_1.fp16.safetensors")
    convs = [conv for block in convert.bundled_vgg16().blocks for conv in block]
    # Positions in torchvision's list, where ReLUs and poolings count too.
    for index, conv in zip((0, 2, 5, 7, 10, 12, 14, 17), convs, strict=True):
        assert conv.kernel.dtype == jnp.float32
        kernel = weights.pop(f"features.{index}.weight").transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(conv.kernel[...], kernel)
        np.testing.assert_array_equal(conv.bias[...], weights.pop(f"features.{index}.bias"))
    assert not weights
