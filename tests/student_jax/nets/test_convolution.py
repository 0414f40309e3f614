"""Convolutions against plain forms of the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from student_jax.nets.convolution import ReflectConv, UpsampleConv


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (5, 4)])
def test_upsample_conv_agrees_with_its_plain_form(size):
    layer = UpsampleConv(3, 4, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    upsampled = jax.image.resize(x, (2, 2 * size[0], 2 * size[1], 3), "bilinear")
    padded = jnp.pad(upsampled, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = layer.bias[...] + jax.lax.conv_general_dilated(
        padded, layer.kernel[...], (1, 1), "VALID", dimension_numbers=dimensions
    )
    # The same sums in another order: float32 rounding.
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_reflect_conv_agrees_with_its_plain_form(size):
    layer = ReflectConv(3, 4, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    expected = layer.bias[...] + jax.lax.conv_general_dilated(
        padded, layer.kernel[...], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # The same sums in another order: float32 rounding.
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
