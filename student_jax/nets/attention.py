"""Multi-head attention: by cuDNN where it can, else whole or in exact parts."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

# The largest block of attention scores held at once. On a CPU a block that stays in the cache is
# three to four times faster than one that does not; elsewhere the block only bounds memory.
CPU_SCORE_BYTES = 8 * 2**20
SCORE_BYTES = 1024 * 2**20


def attention(
    query: Float[Array, "b n k d"],
    key: Float[Array, "b m k d"],
    value: Float[Array, "b m k d2"],
    padding: Bool[Array, "b m"] | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    score_bytes: float | None = None,
) -> Float[Array, "b n k d2"]:
    """softmax(q k^T / sqrt(d)) v, for each head (Vaswani et al., 2017, equation 1).

    On NVIDIA GPUs from Ampere on, half-precision inputs without dropout go to cuDNN.

    Args:
        query, key, value: n queries and m keys with their values, in k heads of d channels, of the
            values d2.
        padding: True where a key is padding and must get no weight.
        dropout_rate, dropout_key: dropout of the attention weights; none without a key.
        score_bytes: when the float32 scores take more than this, heads, and then their queries,
            are handled in parts that take less, one after the other (and again in the backward
            pass), with the same result. By default a constant that suits the backend, and cuDNN
            where it can; `math.inf` never has parts, whatever the sizes.
    """
    b, n, k, d = query.shape
    m, width = key.shape[1], value.shape[-1]
    if score_bytes is None:
        # cuDNN drops the same weights at every step, and before Hopper takes at most 128 channels.
        half = query.dtype in (jnp.bfloat16, jnp.float16)
        suits = d == width and d % 8 == 0 and d <= 128
        if half and dropout_key is None and suits and _has_flash_attention():
            return flash_attention(query, key, value, padding)
        score_bytes = CPU_SCORE_BYTES if jax.default_backend() == "cpu" else SCORE_BYTES

    def attend(query, key, value, dropout_key):
        scores = jnp.einsum(
            "bknd,bkmd->bknm", query * d**-0.5, key, preferred_element_type=jnp.float32
        )
        if padding is not None:
            scores = jnp.where(padding[:, None, None, :], jnp.finfo(jnp.float32).min, scores)
        if score_bytes == math.inf and dropout_key is None:
            return jnp.einsum("bknm,bkmd->bknd", softmax(scores).astype(value.dtype), value)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=3, keepdims=True)))
        total = jnp.einsum("bknm->bkn", weights)
        drop = nnx.Dropout(dropout_rate, deterministic=dropout_key is None)
        weights = drop(weights, rngs=dropout_key).astype(value.dtype)
        # Normalising the output rather than the weights saves a pass over the scores.
        output = jnp.einsum("bknm,bkmd->bknd", weights, value, preferred_element_type=jnp.float32)
        return (output / total[..., None]).astype(value.dtype)

    # Rows of one head side by side: the products then read memory in its order.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    if score_bytes == math.inf or 4 * b * k * n * m <= score_bytes:
        return attend(query, key, value, dropout_key).swapaxes(1, 2)

    # As many heads at once as fit, else one head and a part of its queries. The batch stays whole,
    # since it may lie on several devices.
    rows = max(1, score_bytes // (4 * b * m))
    heads = max(g for g in range(1, k + 1) if k % g == 0 and (g == 1 or g * n <= rows))
    num_chunks = -(-heads * n // rows)
    chunk = -(-n // num_chunks)  # chunks of about equal size, so that little is padding

    def attend_in_chunks(args):
        query, key, value, dropout_keys = args
        padded = jnp.pad(query, ((0, 0), (0, 0), (0, num_chunks * chunk - n), (0, 0)))
        chunks = jnp.moveaxis(padded.reshape(b, heads, num_chunks, chunk, d), 2, 0)
        attend_chunk = jax.checkpoint(lambda args: attend(args[0], key, value, args[1]))
        output = jnp.moveaxis(jax.lax.map(attend_chunk, (chunks, dropout_keys)), 0, 2)
        return output.reshape(b, heads, num_chunks * chunk, width)[:, :, :n]

    def groups(x):
        return jnp.moveaxis(x.reshape(b, k // heads, heads, *x.shape[2:]), 1, 0)

    keys = None if dropout_key is None else jax.random.split(dropout_key, (k // heads, num_chunks))
    output = jax.lax.map(attend_in_chunks, (groups(query), groups(key), groups(value), keys))
    return jnp.moveaxis(output, 0, 1).reshape(b, k, n, width).swapaxes(1, 2)


@jax.jit  # in name: see `convolution.reflect_sides`
def softmax(scores: Float[Array, "*n m"]) -> Float[Array, "*n m"]:
    """Shares of the last axis."""
    return jax.nn.softmax(scores)


def flash_attention(
    query: Float[Array, "b n k d"],
    key: Float[Array, "b m k d"],
    value: Float[Array, "b m k d"],
    padding: Bool[Array, "b m"] | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b n k d"]:
    """`attention` in a kernel that holds no scores (Dao et al., "FlashAttention", 2022).

    Args:
        implementation: "cudnn", or "xla" to do the same with whole matrices on any device.
    """
    lengths = None
    if padding is not None:
        # cuDNN would need a whole matrix to hide any keys, but takes the number of the first ones
        # that count; the order of keys means nothing to attention.
        order = jnp.argsort(padding, axis=1)[:, :, None, None]
        key, value = (jnp.take_along_axis(x, order, axis=1) for x in (key, value))
        lengths = jnp.sum(~padding, axis=1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation=implementation
    )


def _has_flash_attention() -> bool:
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return False
    return int(device.compute_capability.split(".")[0]) >= 8


class MultiHeadAttention(nnx.Module):
    """Projections of queries, keys and values, attention, and a projection of its output."""

    def __init__(
        self, dim: int, num_heads: int, dropout_rate: float, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.score_bytes: float | None = None  # see `attention`

        def projection():
            return nnx.Linear(
                dim, dim, kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs
            )

        self.query = projection()
        self.key = projection()
        self.value = projection()
        self.output = projection()

    def __call__(
        self,
        query: Float[Array, "b n c"],
        key: Float[Array, "b m c"],
        value: Float[Array, "b m c"],
        padding: Bool[Array, "b m"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n c"]:
        """Let every query attend to all keys that are not padding; dropout only with `rngs`."""

        def heads(x):
            return x.reshape(*x.shape[:2], self.num_heads, -1)

        output = attention(
            heads(self.query(query)),
            heads(self.key(key)),
            heads(self.value(value)),
            padding,
            dropout_rate=self.dropout_rate,
            dropout_key=None if rngs is None else rngs.dropout(),
            score_bytes=self.score_bytes,
        )
        return self.output(output.reshape(query.shape))
