"""Convolutions against plain forms of the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from student_jax.nets.convolution import (
    SMOOTHING,
    EdgeUpsampleConv,
    ReflectConv,
    SmoothConvOfCells,
    UpsampleConv,
    UpsampleConvToCells,
    with_edges,
)


@pytest.mark.parametrize(
    ("kind", "beyond"), [(UpsampleConv, "reflect"), (EdgeUpsampleConv, "edge")]
)
@pytest.mark.parametrize("size", [(2, 2), (2, 3), (5, 4)])
def test_upsample_conv_agrees_with_its_plain_form(size, kind, beyond):
    layer = kind(3, 4, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    upsampled = jax.image.resize(x, (2, 2 * size[0], 2 * size[1], 3), "bilinear")
    padded = jnp.pad(upsampled, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=beyond)
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


def _positions(cells):
    b, h, w, c = cells.shape
    return cells.reshape(b, h, w, 2, 2, c // 4).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, c // 4)


def test_upsampling_to_cells_is_the_same():
    kinds = EdgeUpsampleConv, UpsampleConvToCells
    plain, layer = (kind(3, 4, rngs=nnx.Rngs(0)) for kind in kinds)
    plain.bias[...] = layer.bias[...] = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(1), (2, 5, 4, 3))
    # The same sums in another order: float32 rounding.
    np.testing.assert_allclose(_positions(layer(x)), plain(x), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_smooth_convolution_of_cells_agrees_with_its_plain_form(size):
    layer = SmoothConvOfCells(3, 2, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(2.0)
    cells = jax.random.normal(jax.random.key(1), (2, *size, 12))
    convolved = layer.bias[...] + jax.lax.conv_general_dilated(
        _positions(with_edges(cells)),
        layer.kernel[...],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    h, w = 2 * size[0], 2 * size[1]
    expected = sum(
        SMOOTHING[i] * SMOOTHING[j] * convolved[:, i : i + h, j : j + w]
        for i in range(3)
        for j in range(3)
    )
    # The same sums in another order: float32 rounding.
    np.testing.assert_allclose(_positions(layer(cells)), expected, atol=1e-5)


def test_smoothing_halves_the_finest_waves_and_keeps_the_mean():
    assert SMOOTHING.sum() == 1
    np.testing.assert_array_equal(np.convolve([1, -1] * 4, SMOOTHING, "valid"), [-0.5, 0.5] * 3)
