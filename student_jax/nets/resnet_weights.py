"""ImageNet weights of torchvision's ResNet-50, for one backbone."""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from student_jax.nets.resnet import BLOCKS, ResNet
from student_jax.nets.torch_names import (
    CONV,
    POINTWISE_CONV,
    Table,
    batch_norm,
    fill,
    layer,
)


def resnet_table(torch_prefix: str, prefix: str, num_layers: int, counters: bool) -> Table:
    """Names of the stem and of layer1 to layer{num_layers}, after the given prefixes."""
    table = layer(f"{torch_prefix}conv1", f"{prefix}stages.0.conv", CONV, bias=False)
    table |= batch_norm(f"{torch_prefix}bn1", f"{prefix}stages.0.norm", counters)
    for i in range(1, num_layers + 1):
        for j in range(BLOCKS[i - 1]):
            torch, ours = f"{torch_prefix}layer{i}.{j}", f"{prefix}stages.{i}.{j}"
            for k, transform in ((1, POINTWISE_CONV), (2, CONV), (3, POINTWISE_CONV)):
                table |= layer(f"{torch}.conv{k}", f"{ours}.conv{k}", transform, bias=False)
                table |= batch_norm(f"{torch}.bn{k}", f"{ours}.norm{k}", counters)
            if j == 0:
                torch = f"{torch}.downsample"
                table |= layer(f"{torch}.0", f"{ours}.projection", POINTWISE_CONV, bias=False)
                table |= batch_norm(f"{torch}.1", f"{ours}.projection_norm", counters)
    return table


NOT_THE_BACKBONE = (r"^fc\.", r"\.num_batches_tracked$")
"""Regular expressions of names in torchvision's files that no backbone has: the classifier, and
counters that frozen norms do not have."""


def resnet50_from_torch(
    state_dict: Mapping[str, np.ndarray],
    widths: tuple[int, ...],
    *,
    dtype: DTypeLike = jnp.float32,
    ignored: Iterable[str] = NOT_THE_BACKBONE,
) -> ResNet:
    """A backbone with the weights of torchvision's `resnet50().state_dict()`.

    Args:
        state_dict: the whole network; layers past the backbone's are ignored.
        widths: as of `ResNet`, for example `STTRConfig.reference().content_widths`.
        dtype: in which the backbone computes.
        ignored: regular expressions of names that are left out, as if they were not there.

    Raises:
        ValueError: lists all tensors that are missing, unexpected or of a wrong shape.
    """
    deeper = [rf"^layer{i}\." for i in range(len(widths) + 1, len(BLOCKS) + 1)]
    return fill(
        lambda: ResNet(widths, dtype=dtype, rngs=nnx.Rngs(0)),
        resnet_table("", "", len(widths), counters=False),
        state_dict,
        [*deeper, *ignored],
    )
