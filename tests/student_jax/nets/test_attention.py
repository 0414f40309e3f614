"""Attention against plain forms of the same, and what a GPU's programs call."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from student_jax import MiniConfig, MiniStudent
from student_jax.nets.attention import attention, flash_attention


@pytest.mark.parametrize("rows", [20, 10, 4, 0], ids=["2 heads", "1 head", "4 queries", "1 query"])
def test_attention_in_parts_is_the_same(rows):
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (
        jax.random.normal(k, (2, n, 4, d))
        for k, n, d in zip(keys, (10, 11, 11), (4, 4, 6), strict=True)
    )
    score_bytes = 4 * 2 * 11 * rows
    padding = jnp.arange(11) >= jnp.array([[7], [11]])

    def loss(inputs, score_bytes):
        output = attention(*inputs, padding, score_bytes=score_bytes)
        return jnp.sum(output**2), output

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    whole = run((query, key, value), 2**30)
    in_parts = run((query, key, value), score_bytes)
    # The same sums, compiled apart: float32 rounding.
    for actual, expected in zip(jax.tree.leaves(in_parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_attention_agrees_with_jax_and_hides_padding():
    query = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    key, value = jax.random.normal(jax.random.key(1), (2, 2, 7, 3, 4))
    padding = jnp.arange(7) >= jnp.array([[4], [7]])
    expected = jax.nn.dot_product_attention(query, key, value, mask=~padding[:, None, None, :])
    actual = attention(query, key, value, padding)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    anything = jnp.where(padding[:, :, None, None], 1e3, value)
    np.testing.assert_array_equal(attention(query, key, anything, padding), actual)


def test_flash_attention_is_the_same_with_padding_anywhere():
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value = (
        jax.random.normal(k, (2, n, 3, 8)) for k, n in zip(keys, (10, 12, 12), strict=False)
    )
    padding = jax.random.bernoulli(keys[3], 0.4, (2, 12))
    for mask in (None, padding):
        actual = flash_attention(query, key, value, mask, implementation="xla")
        np.testing.assert_allclose(
            actual,
            attention(query, key, value, mask),
            rtol=1e-4,
            atol=1e-6,  # float32 rounding
        )


def test_gpu_computes_attention_by_cudnn_where_it_can(monkeypatch):
    """Programs for a GPU, made without one: what they call shows in their text."""
    monkeypatch.setattr("student_jax.nets.attention._has_flash_attention", lambda: True)
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )

    def calls(dtype, dim=32, padding=None, **options):
        def loss(inputs):
            return attention(*inputs, padding, **options).astype(jnp.float32).sum()

        inputs = (jax.ShapeDtypeStruct((2, 16, 4, dim), dtype),) * 3
        program = jax.jit(jax.grad(loss)).trace(inputs).lower(lowering_platforms=("cuda",))
        return set(re.findall(r"__cudnn\$\w+", program.as_text()))

    cudnn = {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert calls(jnp.bfloat16) == calls(jnp.float16) == cudnn
    assert calls(jnp.bfloat16, padding=jnp.arange(16) >= jnp.array([[7], [16]])) == cudnn
    assert not calls(jnp.float32)
    assert not calls(jnp.bfloat16, dim=12)
    assert not calls(jnp.bfloat16, dropout_rate=0.1, dropout_key=jax.random.key(0))

    config = dataclasses.replace(MiniConfig(), num_encoder_layers=1, num_decoder_layers=1)
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: MiniStudent(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    )
    picture = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    forward = jax.jit(lambda state, *pictures: nnx.merge(graphdef, state)(*pictures))
    program = forward.trace(state, picture, picture).lower(lowering_platforms=("cuda",))
    # Self-attention of the style and of the content, and the content's to the style.
    assert program.as_text().count("custom_call @__cudnn$fmhaSoftmax(") == 3


@pytest.mark.parametrize("score_bytes", [1, 2**30])
def test_attention_dropout_keeps_the_mean(score_bytes):
    query = jnp.zeros((1, 2000, 1, 4))
    key = jnp.zeros((1, 8, 1, 4))
    value = jnp.ones((1, 8, 1, 4))
    output = attention(
        query, key, value, dropout_rate=0.5, dropout_key=jax.random.key(0), score_bytes=score_bytes
    )
    # Means of 8 weights that are 0 or 2: deviation 0.35 each, 0.008 over 2000 queries.
    assert output.std() == pytest.approx(0.35, abs=0.05)
    assert output.mean() == pytest.approx(1.0, abs=0.03)
