"""Convolutions that see the picture's mirror image beyond its borders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class ReflectConv(nnx.Conv):
    """A 3 x 3 convolution after reflection padding by 1.

    Zeros beyond the border, the mean colour, would draw a frame around the picture.

    Args:
        options: further ones of `nnx.Conv`.
    """

    def __init__(self, in_dim: int, out_dim: int, **options):
        super().__init__(in_dim, out_dim, (3, 3), padding="SAME", **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """Convolve; of a single row or column the mirror image is itself."""
        # Without padding of its own, XLA's CPU backend takes six times as long for a convolution.
        return super().__call__(reflect_sides(x))[:, 1:-1, 1:-1]


# Compiled apart in name only: `export.jaxpr_to_onnx` knows these functions by their names, and has
# one operation of ONNX for what is many in JAX.
@jax.jit
def reflect_sides(x: Float[Array, "b h w c"]) -> Float[Array, "b h+2 w+2 c"]:
    """`reflect` of height and width."""
    return reflect(reflect(x, 1), 2)


def reflect(x: Float[Array, "*shape"], axis: int) -> Float[Array, "*longer"]:
    """The entries beside the border once more beyond it; of a single entry, itself."""
    at = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
    n = x.shape[axis]
    first = 1 if n > 1 else 0
    last = n - 1 - first
    return jnp.concatenate([at(first, first + 1), x, at(last, last + 1)], axis)


class UpsampleConv(nnx.Module):
    """Bilinear upsampling by 2, then a 3 x 3 convolution after reflection padding by 1.

    Upsampling acts on space and each tap of the convolution on channels, so they commute: the taps
    are applied at the low resolution, with a quarter of the multiplications, and their results
    upsampled, shifted and summed.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        kernel_init = kernel_init or nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(kernel_init(rngs.params(), (3, 3, in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c2"]:
        """Upsample features of at least 2 x 2, with half-pixel centres, and convolve them."""
        return upsample_conv(
            x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.bias[...]
        )


class EdgeUpsampleConv(UpsampleConv):
    """`UpsampleConv`, but beyond the border of the upsampled features lie the border's own entries.

    A runtime whose one convolution makes all four results of a position can do this (`export`);
    the reflection takes it two more passes over the features for each border.
    """

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c2"]:
        """Upsample and convolve."""
        return edge_upsample_conv(
            x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.bias[...]
        )


@jax.jit
def upsample_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c c2"], bias: Float[Array, " c2"]
) -> Float[Array, "b 2*h 2*w c2"]:
    """What `UpsampleConv` computes."""
    return _upsample_conv(x, kernel, bias, edges=False)


@jax.jit
def edge_upsample_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c c2"], bias: Float[Array, " c2"]
) -> Float[Array, "b 2*h 2*w c2"]:
    """What `EdgeUpsampleConv` computes."""
    return _upsample_conv(x, kernel, bias, edges=True)


def _upsample_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 c c2"],
    bias: Float[Array, " c2"],
    edges: bool,
) -> Float[Array, "b 2*h 2*w c2"]:
    b, h, w, c = x.shape
    # As a product of two plain matrices, the gradient is several times faster on a CPU.
    taps = (x.reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)).reshape(
        b, h, w, 3, 3, -1
    )
    rows = _upsample_and_sum(*(taps[:, :, :, i] for i in range(3)), axis=1, edges=edges)
    columns = _upsample_and_sum(*(rows[:, :, :, i] for i in range(3)), axis=2, edges=edges)
    return columns + bias.astype(x.dtype)


def _upsample_and_sum(
    before: Float[Array, "*shape"],
    centre: Float[Array, "*shape"],
    after: Float[Array, "*shape"],
    axis: int,
    edges: bool,
) -> Float[Array, "*doubled"]:
    """Upsample three maps by 2 along an axis and sum their entries i - 1, i and i + 1.

    With U(x) the bilinear upsampling of x, entry i of the result is

        U(before)[i - 1] + U(centre)[i] + U(after)[i + 1],

    where U(x)[2j] = x[j - 1] / 4 + 3 x[j] / 4, U(x)[2j + 1] = 3 x[j] / 4 + x[j + 1] / 4, and x is
    continued by its edges. So of the interior, with j the index at the low resolution,

        even, i = 2j:     U(before)[2j - 1] + U(centre)[2j] + U(after)[2j + 1]
        odd, i = 2j + 1:  U(before)[2j] + U(centre)[2j + 1] + U(after)[2j + 2].

    Entries beyond the border are reflected after the upsampling, U(x)[-1] = U(x)[1], or with
    `edges` the border's own, U(x)[-1] = U(x)[0] = x[0]. Compared with a convolution of the
    upsampled features in tests/student_jax/nets/test_convolution.py.
    """
    n = centre.shape[axis]
    at = functools.partial(jax.lax.slice_in_dim, axis=axis)

    def mix(far, near):
        return 0.25 * far + 0.75 * near

    # The two entries at either border are apart so that the rest is plain slices, which XLA's CPU
    # backend vectorises: with clamped neighbours instead, the whole takes several times longer.
    def border(before, centre, after, edge, inner):
        b0, b1 = at(before, edge, edge + 1), at(before, inner, inner + 1)
        c0, c1 = at(centre, edge, edge + 1), at(centre, inner, inner + 1)
        a0, a1 = at(after, edge, edge + 1), at(after, inner, inner + 1)
        beyond = b0 if edges else mix(b1, b0)
        return beyond + c0 + mix(a1, a0), b0 + mix(c1, c0) + mix(a0, a1)

    first, second = border(before, centre, after, edge=0, inner=1)
    # The far border is the mirror image: `after` comes first there.
    last, penultimate = border(after, centre, before, edge=n - 1, inner=n - 2)

    b0, b1 = at(before, 0, n - 2), at(before, 1, n - 1)
    c0, c1, c2 = at(centre, 0, n - 2), at(centre, 1, n - 1), at(centre, 2, n)
    a1, a2 = at(after, 1, n - 1), at(after, 2, n)
    even = mix(b1, b0) + mix(c0, c1) + mix(a2, a1)
    odd = mix(b0, b1) + mix(c2, c1) + mix(a1, a2)
    interior = jnp.stack([even, odd], axis + 1)
    interior = interior.reshape(*even.shape[:axis], 2 * (n - 2), *even.shape[axis + 1 :])
    return jnp.concatenate([first, second, interior, penultimate, last], axis)


# Cells of 2 x 2 positions, side by side in the channels, let a CPU compute the last layers, of few
# channels at many positions, as convolutions of more channels at a quarter of the positions.

UPSAMPLED = np.array(
    [
        [[0.75, 0.25, 0.0], [0.25, 0.75, 0.75], [0.0, 0.0, 0.25]],
        [[0.25, 0.0, 0.0], [0.75, 0.75, 0.25], [0.0, 0.25, 0.75]],
    ],
    np.float32,
)
"""[p a t]: what entry j + a - 1 weighs in entry 2j + p + t - 1 of its bilinear upsampling by 2."""

SMOOTHING = np.array([1, 6, 1], np.float32) / 8
"""What a pixel and its two neighbours weigh: the finest waves, of 2 px, are halved."""

_SMOOTHED_TAPS = np.stack([np.convolve(tap, SMOOTHING) for tap in np.eye(3)]).T.astype(np.float32)
"""[u t]: what tap t of a kernel of 3 adds to tap u of the kernel of 5 that smooths as well."""

_NEIGHBOURS = (
    2 * (np.arange(3)[:, None] - 1) + np.arange(2)[:, None, None, None]
    == np.arange(2)[:, None, None] + np.arange(5) - 2
).astype(np.float32)
"""[q p a u]: whether entry q of cell j + a - 1 is entry 2j + p + u - 2."""


class UpsampleConvToCells(UpsampleConv):
    """`EdgeUpsampleConv` whose result is in cells."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """Upsample and convolve, as one convolution at the low resolution."""
        # Rows, columns and channels in; rows and columns in a cell, and channels, out.
        kernel = jnp.einsum("pat,qbu,tucd->abcpqd", UPSAMPLED, UPSAMPLED, self.kernel[...])
        kernel = kernel.reshape(3, 3, kernel.shape[2], -1).astype(self.dtype)
        # As in `ReflectConv`: with padding of its own it is faster.
        y = jax.lax.conv_general_dilated(
            with_edges(x.astype(self.dtype)),
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y[:, 1:-1, 1:-1] + jnp.tile(self.bias[...], 4).astype(self.dtype)


class SmoothConvOfCells(ReflectConv):
    """`ReflectConv` of cells, to cells, smoothed along rows and columns by `SMOOTHING`.

    Both together are a convolution of 5 x 5, which takes the time of one of 3 x 3: either reaches
    from a cell into its neighbours, and no further.
    """

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """Convolve and smooth. Beyond the border the cell there lies once more."""
        kernel, dtype = self.kernel[...], self.dtype or x.dtype
        kernel = jnp.einsum("ut,vs,tscd->uvcd", _SMOOTHED_TAPS, _SMOOTHED_TAPS, kernel)
        kernel = jnp.einsum("mpau,nqbv,uvcd->mncabpqd", _NEIGHBOURS, _NEIGHBOURS, kernel)
        kernel = kernel.reshape(x.shape[3], 3, 3, -1).astype(dtype)
        return conv_by_taps(with_edges(x.astype(dtype)), kernel) + jnp.tile(
            self.bias[...], 4
        ).astype(dtype)


@jax.jit
def conv_by_taps(
    x: Float[Array, "b h w c"], kernel: Float[Array, "c 3 3 c2"]
) -> Float[Array, "b h-2 w-2 c2"]:
    """A 3 x 3 convolution without padding.

    To few channels, a convolution takes a CPU twice as long as a product whose parts are shifted
    and summed.
    """
    b, h, w, c = x.shape
    taps = (x.reshape(-1, c) @ kernel.reshape(c, -1)).reshape(b, h, w, 3, 3, -1)
    return sum(taps[:, i : i + h - 2, j : j + w - 2, i, j] for i in range(3) for j in range(3))


class LinearOfCells(nnx.Linear):
    """A linear map of cells of 2 x 2 positions, which halves height and width.

    Args:
        options: further ones of `nnx.Linear`.
    """

    def __init__(self, in_dim: int, out_dim: int, **options):
        super().__init__(4 * in_dim, out_dim, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c2"]:
        """Map every cell."""
        dtype = self.dtype or x.dtype
        kernel, bias = (p[...].astype(dtype) for p in (self.kernel, self.bias))
        return linear_of_cells(x.astype(dtype), kernel, bias)


@jax.jit
def linear_of_cells(
    x: Float[Array, "b h w c"], kernel: Float[Array, "4*c c2"], bias: Float[Array, " c2"]
) -> Float[Array, "b h/2 w/2 c2"]:
    """What `LinearOfCells` computes."""
    return to_cells(x) @ kernel + bias


@jax.jit
def to_cells(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 4*c"]:
    """2 x 2 positions to one."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4 * c)


@jax.jit
def from_cells(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c/4"]:
    """The inverse of `to_cells`."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, c // 4)


@jax.jit
def with_edges(x: Float[Array, "b h w c"]) -> Float[Array, "b h+2 w+2 c"]:
    """Height and width continued by the entries at the border."""
    for axis in (1, 2):
        n, at = x.shape[axis], functools.partial(jax.lax.slice_in_dim, x, axis=axis)
        x = jnp.concatenate([at(0, 1), x, at(n - 1, n)], axis)
    return x
