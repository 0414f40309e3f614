"""Inception v3 (Szegedy et al., 2016) up to its pooled features, which FID compares."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from student_jax.nets.torch_names import CONV, Table, batch_norm, fill, layer
from student_jax.weights.published import find_weights, read_weights
from triplets import InputError

SMALLEST_PX = 75
"""Shorter pictures do not reach the last pooling."""


class ConvNorm(nnx.Module):
    """Convolution, batch norm with its running statistics, ReLU."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_dim,
            out_dim,
            _pair(kernel),
            strides=stride,
            padding=[(pixels, pixels) for pixels in _pair(padding)],
            use_bias=False,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(out_dim, use_running_average=True, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return nnx.relu(self.bn(self.conv(x)))


# The attributes of all modules below have torchvision's names, so a path is a name of its weights.


class MixedA(nnx.Module):
    """Mixed_5b to Mixed_5d: 1 x 1, 5 x 5 and two 3 x 3 convolutions side by side."""

    def __init__(self, in_dim: int, pool_dim: int, *, rngs: nnx.Rngs):
        conv = partial(ConvNorm, rngs=rngs)
        self.branch1x1 = conv(in_dim, 64)
        self.branch5x5_1 = conv(in_dim, 48)
        self.branch5x5_2 = conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = conv(in_dim, 64)
        self.branch3x3dbl_2 = conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv(96, 96, 3, padding=1)
        self.branch_pool = conv(in_dim, pool_dim)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        return _concatenated(
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average_pool(x)),
        )


class MixedB(nnx.Module):
    """Mixed_6a: to half the size by one and by two 3 x 3 convolutions."""

    def __init__(self, in_dim: int, *, rngs: nnx.Rngs):
        conv = partial(ConvNorm, rngs=rngs)
        self.branch3x3 = conv(in_dim, 384, 3, stride=2)
        self.branch3x3dbl_1 = conv(in_dim, 64)
        self.branch3x3dbl_2 = conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return _concatenated(
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            _max_pool(x),
        )


class MixedC(nnx.Module):
    """Mixed_6b to Mixed_6e: one and two 7 x 7 convolutions, each as a row and a column."""

    def __init__(self, in_dim: int, mid_dim: int, *, rngs: nnx.Rngs):
        conv = partial(ConvNorm, rngs=rngs)
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = conv(in_dim, 192)
        self.branch7x7_1 = conv(in_dim, mid_dim)
        self.branch7x7_2 = conv(mid_dim, mid_dim, **row)
        self.branch7x7_3 = conv(mid_dim, 192, **column)
        self.branch7x7dbl_1 = conv(in_dim, mid_dim)
        self.branch7x7dbl_2 = conv(mid_dim, mid_dim, **column)
        self.branch7x7dbl_3 = conv(mid_dim, mid_dim, **row)
        self.branch7x7dbl_4 = conv(mid_dim, mid_dim, **column)
        self.branch7x7dbl_5 = conv(mid_dim, 192, **row)
        self.branch_pool = conv(in_dim, 192)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return _concatenated(
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_average_pool(x)),
        )


class MixedD(nnx.Module):
    """Mixed_7a: to half the size by a 3 x 3 convolution, and by a 7 x 7 and a 3 x 3 one."""

    def __init__(self, in_dim: int, *, rngs: nnx.Rngs):
        conv = partial(ConvNorm, rngs=rngs)
        self.branch3x3_1 = conv(in_dim, 192)
        self.branch3x3_2 = conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = conv(in_dim, 192)
        self.branch7x7x3_2 = conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = conv(192, 192, 3, stride=2)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        column = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return _concatenated(
            self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(column), _max_pool(x)
        )


class MixedE(nnx.Module):
    """Mixed_7b and Mixed_7c: 3 x 3 convolutions that end in a row and a column side by side."""

    def __init__(self, in_dim: int, *, rngs: nnx.Rngs):
        conv = partial(ConvNorm, rngs=rngs)
        row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = conv(in_dim, 320)
        self.branch3x3_1 = conv(in_dim, 384)
        self.branch3x3_2a = conv(384, 384, **row)
        self.branch3x3_2b = conv(384, 384, **column)
        self.branch3x3dbl_1 = conv(in_dim, 448)
        self.branch3x3dbl_2 = conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = conv(384, 384, **row)
        self.branch3x3dbl_3b = conv(384, 384, **column)
        self.branch_pool = conv(in_dim, 192)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return _concatenated(
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(_average_pool(x)),
        )


class Inception(nnx.Module):
    """The network as torchvision builds it, without its classifiers."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2, rngs=rngs)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, rngs=rngs)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1, rngs=rngs)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, rngs=rngs)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, rngs=rngs)
        self.Mixed_5b = MixedA(192, pool_dim=32, rngs=rngs)
        self.Mixed_5c = MixedA(256, pool_dim=64, rngs=rngs)
        self.Mixed_5d = MixedA(288, pool_dim=64, rngs=rngs)
        self.Mixed_6a = MixedB(288, rngs=rngs)
        self.Mixed_6b = MixedC(768, mid_dim=128, rngs=rngs)
        self.Mixed_6c = MixedC(768, mid_dim=160, rngs=rngs)
        self.Mixed_6d = MixedC(768, mid_dim=160, rngs=rngs)
        self.Mixed_6e = MixedC(768, mid_dim=192, rngs=rngs)
        self.Mixed_7a = MixedD(768, rngs=rngs)
        self.Mixed_7b = MixedE(1280, rngs=rngs)
        self.Mixed_7c = MixedE(2048, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
        """Pictures, as they are, to their last features averaged over space."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_max_pool(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_max_pool(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(axis=(1, 2))


def inception_table() -> Table:
    """torchvision's name of every weight, each with its place in `Inception`."""
    table: Table = {}
    for path, module in nnx.iter_modules(nnx.eval_shape(_build)):
        if isinstance(module, ConvNorm):
            name = ".".join(map(str, path))
            table |= layer(f"{name}.conv", f"{name}.conv", CONV, bias=False)
            table |= batch_norm(f"{name}.bn", f"{name}.bn", counter=False)
    return table


def inception_from_torch(state_dict: Mapping[str, np.ndarray]) -> Inception:
    """An Inception from the weights of torchvision's `inception_v3().state_dict()`.

    The classifiers' weights may be there and are ignored.

    Raises:
        ValueError: lists all tensors that are missing, unexpected or of a wrong shape.
    """
    ignored = [r"^(fc|AuxLogits)\.", r"\.num_batches_tracked$"]
    return fill(_build, inception_table(), state_dict, ignored)


class ArtFeatures:
    """Features of the network that ArtFID was defined with, trained on artists and art styles.

    Call: float [b h w 3] in [0, 1], sides at least `SMALLEST_PX` -> features [b 2048]. Like its
    authors' program it takes pictures as they are, neither resized nor normalised.
    """

    def __init__(self, network: Inception):
        graphdef, self._state = nnx.split(network)
        self._features = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images))

    @classmethod
    def load(cls, weights: str) -> "ArtFeatures":
        """From what --fid-weights says; see `find_weights`.

        Raises:
            InputError: no such weights.
        """
        try:
            return cls(inception_from_torch(read_weights(find_weights(weights))))
        except ValueError as error:
            reason = str(error).removesuffix(".")
            raise InputError(f"--fid-weights {weights}: {reason}.") from error

    def __call__(self, images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b 2048"]:
        return np.asarray(self._features(self._state, images.astype(np.float32)))


def _build() -> Inception:
    return Inception(rngs=nnx.Rngs(0))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def _average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Means of 3 x 3 positions; the zeros beyond the border count."""
    return nnx.pool(x, 0.0, lax.add, (3, 3), (1, 1), ((1, 1), (1, 1))) / 9


def _concatenated(*branches: Float[Array, "b h w _"]) -> Float[Array, "b h w _"]:
    return jnp.concatenate(branches, axis=-1)
