"""The transformer's layers: post-norm, as in DETR (Carion et al., 2020)."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from student_jax.nets.attention import MultiHeadAttention
from student_jax.students.sttr.config import STTRConfig


class StyleMemory(NamedTuple):
    """An encoded style: what the decoder needs of it, for any number of contents."""

    tokens: Float[Array, "b m c"]
    position: Float[Array, "#b m c"]
    padding: Bool[Array, "b m"] | None
    statistics: Float[Array, "b s"] | None = None
    """Means and deviations of its colours, where the model has a colour map, and of the channels of
    its features, where it has a style code."""


def layer_norm(config: STTRConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm over the hidden channels, with statistics in float32."""
    return nnx.LayerNorm(
        config.hidden_dim, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


class MLP(nnx.Module):
    """Two linear maps with a ReLU and dropout between them."""

    def __init__(self, config: STTRConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.dropout = nnx.Dropout(config.dropout)
        self.linear1 = nnx.Linear(
            config.hidden_dim, config.mlp_dim, kernel_init=init, dtype=dtype, rngs=rngs
        )
        self.linear2 = nnx.Linear(
            config.mlp_dim, config.hidden_dim, kernel_init=init, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, tokens: Float[Array, "b n c"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n c"]:
        """Transform every token by itself."""
        hidden = nnx.relu(self.linear1(tokens))
        return self.linear2(self.dropout(hidden, deterministic=rngs is None, rngs=rngs))


class EncoderLayer(nnx.Module):
    """Self-attention among style tokens, then an MLP."""

    def __init__(self, config: STTRConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(config.dropout)
        self.attention = MultiHeadAttention(
            config.hidden_dim, config.num_heads, config.dropout, dtype=dtype, rngs=rngs
        )
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(config, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(config, dtype=dtype, rngs=rngs)

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
    """Self-attention among content tokens, cross-attention to the styles, then an MLP."""

    def __init__(self, config: STTRConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(config.dropout)
        self.self_attention = MultiHeadAttention(
            config.hidden_dim, config.num_heads, config.dropout, dtype=dtype, rngs=rngs
        )
        self.cross_attention = MultiHeadAttention(
            config.hidden_dim, config.num_heads, config.dropout, dtype=dtype, rngs=rngs
        )
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(config, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(config, dtype=dtype, rngs=rngs)
        self.norm3 = layer_norm(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        position: Float[Array, "#b n c"],
        memories: Sequence[StyleMemory],
        weights: Float[Array, " s"] | None = None,
        padding: Bool[Array, "b n"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n c"]:
        """Positions are added to queries and keys, never to values; padding hides keys.

        What several styles answer to a token is mixed by their `weights`, which sum to 1.
        """
        drop = functools.partial(self.dropout, deterministic=rngs is None, rngs=rngs)
        query = tokens + position
        attended = self.self_attention(query, query, tokens, padding, rngs)
        tokens = self.norm1(tokens + drop(attended))
        query = tokens + position
        answers = [
            self.cross_attention(
                query, memory.tokens + memory.position, memory.tokens, memory.padding, rngs
            )
            for memory in memories
        ]
        if weights is None:
            (attended,) = answers
        else:
            attended = sum(w * answer for w, answer in zip(weights, answers, strict=True))
            attended = attended.astype(tokens.dtype)
        tokens = self.norm2(tokens + drop(attended))
        return self.norm3(tokens + drop(self.mlp(tokens, rngs)))
