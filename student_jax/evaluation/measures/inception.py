"""Inception v3 (Szegedy et al., 2016) as torchvision builds it: the features that FID compares."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file

from triplets import InputError

BATCH_NORM_EPS = 1e-3
NUM_FEATURES = 2048


class Inception:
    """The network that ArtFID was defined with, trained to tell artists and art styles apart.

    Call: float [b h w 3] in [0, 1], sides at least 75 -> features [b 2048], averaged over space.
    Like its authors' program it takes pictures as they are, neither resized nor normalised.
    """

    def __init__(self, weights: Mapping[str, np.ndarray]):
        """`weights` by torchvision's names; the classifiers' are not needed."""
        self._weights = {k: np.asarray(v, np.float32) for k, v in weights.items()}
        self._features = jax.jit(_features)

    @classmethod
    def from_file(cls, path: Path) -> "Inception":
        """From a safetensors file, as scripts/convert_art_inception.py writes it.

        Raises:
            InputError: not such a file.
        """
        try:
            network = cls(load_file(path))
            jax.eval_shape(_features, network._weights, np.zeros((1, 75, 75, 3), np.float32))
        except (OSError, SafetensorError) as error:
            raise InputError(f"--fid-weights {path}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"--fid-weights {path} does not hold the weights of an Inception v3: {error}"
            ) from error
        return network

    def __call__(self, images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b 2048"]:
        return np.asarray(self._features(self._weights, images.astype(np.float32)))


class _Layers:
    """The blocks of the network over one set of weights, which are found by their names."""

    def __init__(self, weights: Mapping[str, Array]):
        self._weights = weights

    def conv(self, name, x, stride: int = 1, padding: int | tuple[int, int] = 0):
        """Convolution, batch norm with its running statistics, ReLU."""
        weights = self._weights
        down, right = padding if isinstance(padding, tuple) else (padding, padding)
        x = lax.conv_general_dilated(
            x,
            weights[f"{name}.conv.weight"],
            (stride, stride),
            ((down, down), (right, right)),
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        scale = weights[f"{name}.bn.weight"] / jnp.sqrt(
            weights[f"{name}.bn.running_var"] + BATCH_NORM_EPS
        )
        return nnx.relu(
            (x - weights[f"{name}.bn.running_mean"]) * scale + weights[f"{name}.bn.bias"]
        )

    def chain(self, name, x, *steps):
        """Convolutions one after the other: (suffix of the name, stride, padding)."""
        for suffix, stride, padding in steps:
            x = self.conv(f"{name}.{suffix}", x, stride, padding)
        return x

    def pooled(self, name, x):
        """Average of 3 x 3 pixels, zeros beyond the border included, and a convolution."""
        x = nnx.avg_pool(x, window_shape=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
        return self.conv(f"{name}.branch_pool", x)

    def block_a(self, name, x):
        return _concatenated(
            self.conv(f"{name}.branch1x1", x),
            self.chain(name, x, ("branch5x5_1", 1, 0), ("branch5x5_2", 1, 2)),
            self.chain(
                name,
                x,
                ("branch3x3dbl_1", 1, 0),
                ("branch3x3dbl_2", 1, 1),
                ("branch3x3dbl_3", 1, 1),
            ),
            self.pooled(name, x),
        )

    def block_b(self, name, x):
        return _concatenated(
            self.conv(f"{name}.branch3x3", x, 2),
            self.chain(
                name,
                x,
                ("branch3x3dbl_1", 1, 0),
                ("branch3x3dbl_2", 1, 1),
                ("branch3x3dbl_3", 2, 0),
            ),
            _max_pool(x),
        )

    def block_c(self, name, x):
        row, column = (0, 3), (3, 0)
        return _concatenated(
            self.conv(f"{name}.branch1x1", x),
            self.chain(
                name, x, ("branch7x7_1", 1, 0), ("branch7x7_2", 1, row), ("branch7x7_3", 1, column)
            ),
            self.chain(
                name,
                x,
                ("branch7x7dbl_1", 1, 0),
                ("branch7x7dbl_2", 1, column),
                ("branch7x7dbl_3", 1, row),
                ("branch7x7dbl_4", 1, column),
                ("branch7x7dbl_5", 1, row),
            ),
            self.pooled(name, x),
        )

    def block_d(self, name, x):
        return _concatenated(
            self.chain(name, x, ("branch3x3_1", 1, 0), ("branch3x3_2", 2, 0)),
            self.chain(
                name,
                x,
                ("branch7x7x3_1", 1, 0),
                ("branch7x7x3_2", 1, (0, 3)),
                ("branch7x7x3_3", 1, (3, 0)),
                ("branch7x7x3_4", 2, 0),
            ),
            _max_pool(x),
        )

    def block_e(self, name, x):
        def split(prefix, x, row, column):
            return (
                self.conv(f"{name}.{prefix}_{row}", x, 1, (0, 1)),
                self.conv(f"{name}.{prefix}_{column}", x, 1, (1, 0)),
            )

        double = self.chain(name, x, ("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 1, 1))
        return _concatenated(
            self.conv(f"{name}.branch1x1", x),
            *split("branch3x3", self.conv(f"{name}.branch3x3_1", x), "2a", "2b"),
            *split("branch3x3dbl", double, "3a", "3b"),
            self.pooled(name, x),
        )


def _features(
    weights: Mapping[str, Array], images: Float[Array, "b h w 3"]
) -> Float[Array, "b 2048"]:
    net = _Layers(weights)
    x = net.conv("Conv2d_1a_3x3", images, 2)
    x = net.conv("Conv2d_2a_3x3", x)
    x = net.conv("Conv2d_2b_3x3", x, 1, 1)
    x = net.conv("Conv2d_3b_1x1", _max_pool(x))
    x = _max_pool(net.conv("Conv2d_4a_3x3", x))
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = net.block_a(name, x)
    x = net.block_b("Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = net.block_c(name, x)
    x = net.block_d("Mixed_7a", x)
    for name in ("Mixed_7b", "Mixed_7c"):
        x = net.block_e(name, x)
    return x.mean(axis=(1, 2))


def _max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def _concatenated(*branches: Float[Array, "b h w _"]) -> Float[Array, "b h w _"]:
    return jnp.concatenate(branches, axis=-1)
