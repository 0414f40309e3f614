"""STTR: a transformer that stylises a content picture with a style picture.

Wang et al., "Fine-Grained Image Style Transfer with Visual Transformers", ACCV 2022: style tokens
pass through a transformer encoder, content tokens through a decoder that attends to them, and a
convolutional tail makes a picture of the result.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from student_jax.nets import imagenet
from student_jax.nets.pictures import check_sides
from student_jax.nets.position_encoding import cells, grid_positions
from student_jax.nets.resnet import ResNet
from student_jax.nets.transformer import (
    DecoderLayer,
    EncoderLayer,
    TokenMemory,
    apply_layer,
    dropout_rngs,
    layer_norm,
    rows,
)
from student_jax.student import LearningGroup, TileRule
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.tail import Tail

HALO = 8
"""Tokens that a tile sees around its core: more than backbone and tail look beyond a token."""


class STTR(nnx.Module):
    """Content and style pictures to a stylised picture; a `Student`.

    Pixels are in [0, 1]; the prediction is not clipped. The sides of contents must be multiples of
    `config.content_stride`, those of styles of `config.style_stride`; the two need not be alike.

    Masks (True = padding) are those of the authors' code and allow pictures of several sizes in one
    batch: padding is read as the ImageNet mean colour, does not count in position encodings, and
    padded style tokens get no attention. Padded content tokens are not hidden from the others.

    Args:
        config: the architecture.
        dtype: in which to compute; parameters, softmax and statistics remain float32.
        remat: in training, compute each transformer layer again in the backward pass.
        rngs: for the initial parameters.
    """

    def __init__(
        self,
        config: STTRConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.remat = remat
        dim = config.hidden_dim
        shape = (dim, config.num_heads, config.mlp_dim, config.dropout)
        self.content_backbone = ResNet(config.content_widths, dtype=dtype, rngs=rngs)
        self.style_backbone = ResNet(config.style_widths, dtype=dtype, rngs=rngs)
        # 1 x 1 convolutions: linear maps of the channels.
        self.content_projection = nnx.Linear(config.content_widths[-1], dim, dtype=dtype, rngs=rngs)
        self.style_projection = nnx.Linear(config.style_widths[-1], dim, dtype=dtype, rngs=rngs)
        self.encoder = nnx.List(
            EncoderLayer(*shape, dtype=dtype, rngs=rngs) for _ in range(config.num_encoder_layers)
        )
        self.decoder = nnx.List(
            DecoderLayer(*shape, dtype=dtype, rngs=rngs) for _ in range(config.num_decoder_layers)
        )
        self.decoder_norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.output_projection = nnx.Linear(dim, config.tail_dim, dtype=dtype, rngs=rngs)
        self.tail = Tail(config, dtype=dtype, rngs=rngs)

    @property
    def tiles(self) -> TileRule:
        """Backbone and tail act on tiles, the decoder on all tokens."""
        return TileRule(
            HALO,
            encode=self.encode_content,
            context=grid_positions,
            transform=self.transform,
            decode=lambda content, tokens: self.decode_tokens(tokens),
        )

    def __call__(
        self,
        content: Float[ArrayLike, "b h w 3"],
        style: Float[ArrayLike, "b h2 w2 3"],
        content_mask: Bool[ArrayLike, "b h w"] | None = None,
        style_mask: Bool[ArrayLike, "b h2 w2"] | None = None,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w 3"]:
        """Stylise every content with the style of the same row.

        Args:
            train: apply dropout, and let the tail's batch norm take its statistics from the batch
                and update the running ones.
            rngs: with a `dropout` stream, needed to train with dropout.

        Raises:
            ValueError: for sides that do not suit the strides, or training without `rngs`.
        """
        memory = self.encode_style(style, style_mask, train=train, rngs=rngs)
        return self.decode(content, [memory], content_mask, train=train, rngs=rngs)

    def encode_style(
        self,
        style: Float[ArrayLike, "b h w 3"],
        mask: Bool[ArrayLike, "b h w"] | None = None,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> TokenMemory:
        """The part of the model that needs only the style; arguments as for the whole."""
        check_sides("style", style, multiple=self.config.style_stride)
        rngs = dropout_rngs(self.config.dropout, train, rngs)
        grid = self.style_projection(self.style_backbone(_normalise(style, mask))[-1])
        hidden = None if mask is None else cells(mask, self.config.style_stride)
        position = rows(grid_positions(grid, hidden))
        tokens, padding = rows(grid), None if hidden is None else hidden.reshape(len(hidden), -1)
        for layer in self.encoder:
            tokens = apply_layer(layer, tokens, position, padding, rngs, remat=self.remat)
        return TokenMemory(tokens, jnp.broadcast_to(position, tokens.shape), padding)

    def decode(
        self,
        content: Float[ArrayLike, "b h w 3"],
        memories: Sequence[TokenMemory],
        mask: Bool[ArrayLike, "b h w"] | None = None,
        *,
        weights: Float[Array, " s"] | None = None,
        padding: Bool[Array, "b h w"] | None = None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w 3"]:
        """The rest of the model; arguments as for the whole, and:

        Args:
            memories: one style for each content, or several that are blended in the
                cross-attention.
            weights: of several styles; they sum to 1.
            padding: True at the picture's mirror image beyond its borders, which convolutions see
                and no other token attends to. Not together with `mask`.

        Raises:
            ValueError: as the whole, or another number of styles than of contents.
        """
        for memory in memories:
            if content.shape[0] != memory.tokens.shape[0]:
                raise ValueError(
                    f"{content.shape[0]} contents but {memory.tokens.shape[0]} encoded styles; "
                    "expected one style for each content"
                )
        rngs = dropout_rngs(self.config.dropout, train, rngs)
        outside = mask if padding is None else padding
        hidden = None if outside is None else cells(outside, self.config.content_stride)
        grid = self.encode_content(content, mask)
        position = grid_positions(grid, hidden)
        unseen = None if padding is None else hidden
        grid = self.transform(grid, position, memories, weights, unseen, rngs)
        return self.decode_tokens(grid, train)

    def encode_content(
        self, content: Float[ArrayLike, "b h w 3"], mask: Bool[ArrayLike, "b h w"] | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        """First part of `decode`: a grid of content tokens."""
        # The tail's reflection padding needs two tokens a side.
        check_sides("content", content, multiple=self.config.content_stride, at_least=2)
        return self.content_projection(self.content_backbone(_normalise(content, mask))[-1])

    def transform(
        self,
        grid: Float[Array, "b h w c"],
        position: Float[Array, "#b h w c"],
        memories: Sequence[TokenMemory],
        weights: Float[Array, " s"] | None = None,
        hidden: Bool[Array, "b h w"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w c2"]:
        """Second part of `decode`, the only one where distant tokens meet."""
        tokens, position, memories = rows(grid), rows(position), tuple(memories)
        padding = None if hidden is None else hidden.reshape(len(hidden), -1)
        for layer in self.decoder:
            tokens = apply_layer(
                layer, tokens, position, memories, weights, padding, rngs, remat=self.remat
            )
        tokens = self.output_projection(self.decoder_norm(tokens))
        return tokens.reshape(*grid.shape[:3], -1)

    def decode_tokens(
        self, grid: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 3"]:
        """Last part of `decode`: transformed tokens to pixels."""
        return imagenet.denormalise(self.tail(grid, train).astype(jnp.float32))

    def learning_group(self, path: tuple[str | int, ...]) -> LearningGroup:
        """The pre-trained ResNets learn slowly, but for stem and first layer, which stay as they
        are: as the authors train them."""
        if path[0] not in ("content_backbone", "style_backbone"):
            return "normal"
        return "frozen" if path[2] in (0, 1) else "slow"


def _normalise(
    images: Float[ArrayLike, "b h w 3"], mask: Bool[ArrayLike, "b h w"] | None
) -> Float[Array, "b h w 3"]:
    """ImageNet-normalised pictures, zero (the mean colour) at padding."""
    images = imagenet.normalise(images)
    return images if mask is None else jnp.where(mask[..., None], 0, images)
