"""VGG16 and VGG19 up to relu4_1 (Simonyan and Zisserman, 2015): features for perceptual losses."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from student_jax.nets import imagenet

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


class VGG(nnx.Module):
    """Blocks of 3 x 3 convolutions with ReLUs, and max pooling between the blocks.

    `blocks[i - 1][j - 1]` is conv{i}_{j}. Untrained: see `student_jax.convert` for weights.
    """

    depths: ClassVar[tuple[int, ...]]  # convolutions in every block, ending with conv4_1

    def __init__(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.blocks = nnx.List()
        in_dim = 3
        for depth, width in zip(self.depths, (64, 128, 256, 512), strict=True):
            block = nnx.List()
            for _ in range(depth):
                block.append(nnx.Conv(in_dim, width, (3, 3), padding=1, dtype=dtype, rngs=rngs))
                in_dim = width
            self.blocks.append(block)

    def __call__(
        self, images: Float[ArrayLike, "b h w 3"], layers: Sequence[str] = STYLE_LAYERS
    ) -> dict[str, Float[Array, "b _ _ _"]]:
        """Pixels in [0, 1] to the features named by `layers`.

        Block i works at 1 / 2^(i - 1) of the pictures' height and width.

        Raises:
            ValueError: for a name that is not one of these layers.
        """
        features = {}
        x = imagenet.normalise(images)
        for i, block in enumerate(self.blocks, start=1):
            if i > 1:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            for j, conv in enumerate(block, start=1):
                x = nnx.relu(conv(x))
                features[f"relu{i}_{j}"] = x
        unknown = [layer for layer in layers if layer not in features]
        if unknown:
            raise ValueError(f"no layers {unknown}; expected some of {list(features)}")
        return {layer: features[layer] for layer in layers}


class VGG16(VGG):
    """The 16-layer network; its weights up to relu4_1 are bundled (`convert.bundled_vgg16`)."""

    depths = (2, 2, 3, 1)


class VGG19(VGG):
    """The 19-layer network, the usual one for style losses."""

    depths = (2, 2, 4, 1)
