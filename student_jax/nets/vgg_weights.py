"""ImageNet weights of torchvision's VGG16 and VGG19."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import load_file

from student_jax.nets.torch_names import CONV, Table, fill, layer
from student_jax.nets.vgg import VGG, VGG16, VGG19
from triplets import bundled


def vgg16_from_torch(
    state_dict: Mapping[str, np.ndarray], *, dtype: DTypeLike = jnp.float32
) -> VGG16:
    """A VGG16 from the weights of torchvision's `vgg16().state_dict()`.

    What follows conv4_1 may be there and is ignored.

    Raises:
        ValueError: lists all tensors that are missing, unexpected or of a wrong shape.
    """
    return _from_torch(VGG16, state_dict, (19, 21, 24, 26, 28), dtype)


def vgg19_from_torch(
    state_dict: Mapping[str, np.ndarray], *, dtype: DTypeLike = jnp.float32
) -> VGG19:
    """A VGG19 from the weights of torchvision's `vgg19().state_dict()`.

    What follows conv4_1 may be there and is ignored.

    Raises:
        ValueError: lists all tensors that are missing, unexpected or of a wrong shape.
    """
    return _from_torch(VGG19, state_dict, (21, 23, 25, 28, 30, 32, 34), dtype)


def bundled_vgg16(*, dtype: DTypeLike = jnp.float32) -> VGG16:
    """The VGG16 whose weights come with the project, stored in float16."""
    return vgg16_from_torch(
        load_file(bundled.WEIGHTS / "vgg16_relu4_1.fp16.safetensors"), dtype=dtype
    )


def _from_torch(
    network: type[VGG],
    state_dict: Mapping[str, np.ndarray],
    later_convs: tuple[int, ...],
    dtype: DTypeLike,
) -> VGG:
    table: Table = {}
    index = 0
    for i, depth in enumerate(network.depths):
        for j in range(depth):
            table |= layer(f"features.{index}", f"blocks.{i}.{j}", CONV)
            index += 2  # a convolution and its ReLU
        index += 1  # the pooling
    later = "|".join(map(str, later_convs))
    return fill(
        lambda: network(dtype=dtype, rngs=nnx.Rngs(0)),
        table,
        state_dict,
        # The classifier, by torchvision's names and by timm's.
        [rf"^features\.({later})\.", r"^classifier\.", r"^pre_logits\.", r"^head\."],
    )
