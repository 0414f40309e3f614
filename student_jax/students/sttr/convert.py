"""Weights of the released STTR, by the names of its authors' code."""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from student_jax.nets.resnet_weights import resnet_table
from student_jax.nets.torch_names import (
    CONV,
    FUSED_BIAS,
    FUSED_LINEAR,
    LINEAR,
    POINTWISE_CONV,
    Entry,
    Table,
    batch_norm,
    fill,
    layer,
    named_arrays,
    norm,
)
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.model import STTR

NOT_THE_MODEL = (
    # Beside the model, the authors' training saves their criterion's VGG19 and its buffers, the
    # detection heads that the code descends from, and counters that frozen norms do not have.
    r"^(criterion\.)?(vgg_encoder\.|empty_weight$)",
    r"^(class_embed|bbox_embed|query_embed)\.",
    r"^backbone_.*\.num_batches_tracked$",
)
"""Regular expressions of names in the authors' files that are not part of the model."""


def sttr_from_torch(
    state_dict: Mapping[str, np.ndarray],
    config: STTRConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    ignored: Iterable[str] = NOT_THE_MODEL,
) -> STTR:
    """An STTR with the weights of the authors' `state_dict`.

    Args:
        dtype: in which the model computes.
        ignored: regular expressions of names that are left out, as if they were not there.

    Raises:
        ValueError: lists all tensors that are missing, unexpected or of a wrong shape.
    """
    return fill(
        lambda: STTR(config, dtype=dtype, rngs=nnx.Rngs(0)), _table(config), state_dict, ignored
    )


def sttr_to_torch(model: STTR) -> dict[str, np.ndarray]:
    """The authors' `state_dict` of a model: the exact inverse of `sttr_from_torch`."""
    return named_arrays(model, _table(model.config))


def _table(config: STTRConfig) -> Table:
    table: Table = {}
    for name, widths in (("content", config.content_widths), ("style", config.style_widths)):
        table |= resnet_table(
            f"backbone_{name}.body.", f"{name}_backbone.", len(widths), counters=False
        )
    table |= layer("input_proj_c", "content_projection", POINTWISE_CONV)
    table |= layer("input_proj_s", "style_projection", POINTWISE_CONV)
    for i in range(config.num_encoder_layers):
        torch, ours = f"transformer.encoder.layers.{i}", f"encoder.{i}"
        table |= _attention(f"{torch}.self_attn", f"{ours}.attention")
        table |= _mlp_and_norms(torch, ours, num_norms=2)
    for i in range(config.num_decoder_layers):
        torch, ours = f"transformer.decoder.layers.{i}", f"decoder.{i}"
        table |= _attention(f"{torch}.self_attn", f"{ours}.self_attention")
        table |= _attention(f"{torch}.multihead_attn", f"{ours}.cross_attention")
        table |= _mlp_and_norms(torch, ours, num_norms=3)
    table |= norm("transformer.decoder.norm", "decoder_norm")
    table |= layer("output_proj", "output_projection", POINTWISE_CONV)
    # The authors' tail is one list: block, upsampling, padding, convolution, block, ...
    for i in range(config.content_stride.bit_length() - 1):
        torch, ours = f"tail.{4 * i}.net", f"tail.blocks.{i}"
        # ... and a block one list of norm, activation, convolution, norm, ...
        for j, transform in ((1, POINTWISE_CONV), (2, CONV), (3, POINTWISE_CONV)):
            table |= batch_norm(f"{torch}.{3 * j - 3}", f"{ours}.norm{j}", counter=True)
            table |= layer(f"{torch}.{3 * j - 1}", f"{ours}.conv{j}", transform)
        table |= layer(f"tail.{4 * i + 3}", f"tail.upsamplings.{i}", CONV)
    return table


def _attention(torch: str, ours: str) -> Table:
    kernels = tuple(f"{ours}.{name}.kernel" for name in ("query", "key", "value"))
    biases = tuple(f"{ours}.{name}.bias" for name in ("query", "key", "value"))
    return {
        f"{torch}.in_proj_weight": Entry(kernels, FUSED_LINEAR),
        f"{torch}.in_proj_bias": Entry(biases, FUSED_BIAS),
    } | layer(f"{torch}.out_proj", f"{ours}.output", LINEAR)


def _mlp_and_norms(torch: str, ours: str, num_norms: int) -> Table:
    table = layer(f"{torch}.linear1", f"{ours}.mlp.linear1", LINEAR)
    table |= layer(f"{torch}.linear2", f"{ours}.mlp.linear2", LINEAR)
    for i in range(1, num_norms + 1):
        table |= norm(f"{torch}.norm{i}", f"{ours}.norm{i}")
    return table
