"""The layers of an encoder-decoder transformer: post-norm, as in DETR (Carion et al., 2020)."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from student_jax.nets.attention import MultiHeadAttention


class TokenMemory(NamedTuple):
    """Encoded tokens that a decoder attends to."""

    tokens: Float[Array, "b m c"]
    position: Float[Array, "b m c"]
    padding: Bool[Array, "b m"] | None
    """True at tokens that get no attention; None: all count."""


def layer_norm(dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm over the channels, with statistics in float32."""
    return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)


def apply_layer(
    layer: nnx.Module, tokens: Float[Array, "b n c"], *args, remat: bool
) -> Float[Array, "b n c"]:
    """Call a layer.

    Args:
        remat: compute the layer again in the backward pass instead of keeping what is inside it
            (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
    """

    def apply(layer, *args):
        return layer(*args)

    return (nnx.remat(apply) if remat else apply)(layer, tokens, *args)


def dropout_rngs(rate: float, train: bool, rngs: nnx.Rngs | None) -> nnx.Rngs | None:
    """The keys that dropout takes in a call of a model: none outside of training.

    Raises:
        ValueError: training with dropout, but without keys.
    """
    if train and rate > 0 and rngs is None:
        raise ValueError(
            f"training with dropout {rate} needs keys: pass rngs=nnx.Rngs(dropout=key)"
        )
    return rngs if train else None


def rows(grid: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
    """The cells of a grid, row by row, as a sequence of tokens."""
    return grid.reshape(grid.shape[0], -1, grid.shape[-1])


class MLP(nnx.Module):
    """Two linear maps with a ReLU and dropout between them."""

    def __init__(
        self, dim: int, mlp_dim: int, dropout_rate: float, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        init = nnx.initializers.xavier_uniform()
        self.dropout = nnx.Dropout(dropout_rate)
        self.linear1 = nnx.Linear(dim, mlp_dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.linear2 = nnx.Linear(mlp_dim, dim, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b n c"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n c"]:
        """Transform every token by itself."""
        hidden = nnx.relu(self.linear1(tokens))
        return self.linear2(self.dropout(hidden, deterministic=rngs is None, rngs=rngs))


class EncoderLayer(nnx.Module):
    """Self-attention among tokens, then an MLP.

    Args:
        dim: channels of a token.
        num_heads: attention heads, each with an equal share of the channels.
        mlp_dim: hidden channels of the MLP.
        dropout_rate: of attention weights, MLP and residual branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        dropout_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dropout = nnx.Dropout(dropout_rate)
        self.attention = MultiHeadAttention(dim, num_heads, dropout_rate, dtype=dtype, rngs=rngs)
        self.mlp = MLP(dim, mlp_dim, dropout_rate, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        position: Float[Array, "#b n c"],
        padding: Bool[Array, "b n"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n c"]:
        """Positions are added to queries and keys, never to values; padding hides keys."""
        drop = functools.partial(self.dropout, deterministic=rngs is None, rngs=rngs)
        query = tokens + position
        attended = self.attention(query, query, tokens, padding, rngs)
        tokens = self.norm1(tokens + drop(attended))
        return self.norm2(tokens + drop(self.mlp(tokens, rngs)))


class DecoderLayer(nnx.Module):
    """Self-attention among tokens, cross-attention to one or several memories, then an MLP.

    The arguments are those of `EncoderLayer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        dropout_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dropout = nnx.Dropout(dropout_rate)
        self.self_attention = MultiHeadAttention(
            dim, num_heads, dropout_rate, dtype=dtype, rngs=rngs
        )
        self.cross_attention = MultiHeadAttention(
            dim, num_heads, dropout_rate, dtype=dtype, rngs=rngs
        )
        self.mlp = MLP(dim, mlp_dim, dropout_rate, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.norm3 = layer_norm(dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        position: Float[Array, "#b n c"],
        memories: Sequence[TokenMemory],
        weights: Float[Array, " s"] | None = None,
        padding: Bool[Array, "b n"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n c"]:
        """Positions are added to queries and keys, never to values; padding hides keys.

        A token attends to every memory; the results are averaged by the `weights`, which sum to 1
        (None for a single memory).
        """
        drop = functools.partial(self.dropout, deterministic=rngs is None, rngs=rngs)
        query = tokens + position
        attended = self.self_attention(query, query, tokens, padding, rngs)
        tokens = self.norm1(tokens + drop(attended))
        query = tokens + position
        results = [
            self.cross_attention(
                query, memory.tokens + memory.position, memory.tokens, memory.padding, rngs
            )
            for memory in memories
        ]
        if weights is None:
            (attended,) = results
        else:
            attended = sum(w * result for w, result in zip(weights, results, strict=True))
            attended = attended.astype(tokens.dtype)
        tokens = self.norm2(tokens + drop(attended))
        return self.norm3(tokens + drop(self.mlp(tokens, rngs)))
