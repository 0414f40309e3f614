"""The mini student: STTR's transformer between light convolutions, for a CPU.

Three things beside STTR's own make it learn fast: its tail gives every pixel an affine map of the
content's colours; these colours are first changed as a whole, by the statistics of both pictures;
and a code of the style's features scales and shifts the tail's channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from student_jax.nets import imagenet
from student_jax.nets.light import LightBackbone
from student_jax.nets.pictures import check_sides
from student_jax.nets.position_encoding import cells, grid_positions
from student_jax.nets.statistics import (
    STATISTICS,
    ColourStatistics,
    colour_moments,
    colour_statistics,
    feature_statistics,
)
from student_jax.nets.transformer import (
    DecoderLayer,
    EncoderLayer,
    TokenMemory,
    apply_layer,
    dropout_rngs,
    layer_norm,
    rows,
)
from student_jax.student import LearningGroup, TileRule, blend
from student_jax.students.mini.colour import (
    ColourMap,
    QuadraticMap,
    StyleCode,
    apply_colour_map,
)
from student_jax.students.mini.config import MiniConfig
from student_jax.students.mini.tail import Tail

HALO = 8
"""Tokens that a tile sees around its core: more than backbone and tail look beyond a token."""


class StyleMemory(NamedTuple):
    """An encoded style: what the student needs of it, for any number of contents."""

    attended: TokenMemory
    """What the decoder attends to."""
    colours: ColourStatistics
    features: Float[Array, "b s"]
    """Means and deviations of the channels of the backbone's features."""


class ContentTokens(NamedTuple):
    """The tokens of a content."""

    tokens: Float[Array, "b h w c"]
    moments: Float[Array, "b h w 12"]
    """`colour_moments` of each token's pixels, in float32, in which alone sums of powers tell small
    deviations."""


class ContentContext(NamedTuple):
    """What a token has to know of the whole picture."""

    position: Float[Array, "_ h w c"]
    colours: ColourStatistics


class Transformed(NamedTuple):
    """What the tail makes a picture of."""

    tokens: Float[Array, "b h w c"]
    colour_map: QuadraticMap
    style_code: Float[Array, "b c2"]


class MiniStudent(nnx.Module):
    """Content and style pictures to a stylised picture; a `Student`.

    Pixels are in [0, 1]; the prediction is not clipped. The sides of contents must be multiples of
    `config.content_stride`, those of styles of `config.style_stride`; the two need not be alike.

    Args:
        config: the architecture.
        dtype: in which to compute; parameters, softmax and statistics remain float32.
        remat: in training, compute each transformer layer again in the backward pass.
        rngs: for the initial parameters.
    """

    def __init__(
        self,
        config: MiniConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.remat = remat
        dim = config.hidden_dim
        shape = (dim, config.num_heads, config.mlp_dim, config.dropout)
        self.content_backbone = LightBackbone(config.content_widths, dtype=dtype, rngs=rngs)
        self.style_backbone = LightBackbone(config.style_widths, dtype=dtype, rngs=rngs)
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
        self.colour_map = ColourMap(rngs=rngs)
        # Statistics of both pictures' colours, and two for each channel of the style's features.
        in_dim = 2 * STATISTICS + 2 * sum(config.style_widths)
        self.style_code = StyleCode(in_dim, config.style_code, rngs=rngs)
        self.tail = Tail(config, config.content_widths[:-1], dtype=dtype, rngs=rngs)

    @property
    def tiles(self) -> TileRule:
        """Backbone and tail act on tiles, the decoder on all tokens."""
        return TileRule(
            HALO,
            encode=lambda content: self.encode_content(content)[0],
            context=self.context,
            transform=self.transform,
            decode=lambda content, transformed: self.decode_tokens(
                transformed, self._features(content)
            ),
        )

    def __call__(
        self,
        content: Float[ArrayLike, "b h w 3"],
        style: Float[ArrayLike, "b h2 w2 3"],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w 3"]:
        """Stylise every content with the style of the same row.

        Args:
            train: apply dropout.
            rngs: with a `dropout` stream, needed to train with dropout.

        Raises:
            ValueError: for sides that do not suit the strides, or training without `rngs`.
        """
        memory = self.encode_style(style, train=train, rngs=rngs)
        return self.decode(content, [memory], train=train, rngs=rngs)

    def encode_style(
        self,
        style: Float[ArrayLike, "b h w 3"],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> StyleMemory:
        """The part of the model that needs only the style; arguments as for the whole."""
        check_sides("style", style, multiple=self.config.style_stride)
        rngs = dropout_rngs(self.config.dropout, train, rngs)
        style = imagenet.normalise(style)
        features = self.style_backbone(style)
        grid = self.style_projection(features[-1])
        tokens, position = rows(grid), rows(grid_positions(grid))
        for layer in self.encoder:
            tokens = apply_layer(layer, tokens, position, None, rngs, remat=self.remat)
        return StyleMemory(
            TokenMemory(tokens, jnp.broadcast_to(position, tokens.shape), None),
            colour_statistics(colour_moments(style, self.config.style_stride)),
            jnp.concatenate([feature_statistics(x) for x in features], axis=-1),
        )

    def decode(
        self,
        content: Float[ArrayLike, "b h w 3"],
        memories: Sequence[StyleMemory],
        *,
        weights: Float[Array, " s"] | None = None,
        padding: Bool[Array, "b h w"] | None = None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w 3"]:
        """The rest of the model; arguments as for the whole, and:

        Args:
            memories: one style for each content, or several that are blended: in the
                cross-attention, and as the means of their statistics.
            weights: of several styles; they sum to 1.
            padding: True at the picture's mirror image beyond its borders, which convolutions see,
                but neither the other tokens nor the statistics.

        Raises:
            ValueError: as the whole, or another number of styles than of contents.
        """
        for memory in memories:
            if content.shape[0] != memory.features.shape[0]:
                raise ValueError(
                    f"{content.shape[0]} contents but {memory.features.shape[0]} encoded styles; "
                    "expected one style for each content"
                )
        rngs = dropout_rngs(self.config.dropout, train, rngs)
        hidden = None if padding is None else cells(padding, self.config.content_stride)
        tokens, features = self.encode_content(content)
        context = self.context(tokens, hidden)
        transformed = self.transform(tokens, context, memories, weights, hidden, rngs)
        return self.decode_tokens(transformed, features)

    def encode_content(
        self, content: Float[ArrayLike, "b h w 3"]
    ) -> tuple[ContentTokens, tuple[Float[Array, "b _ _ _"], ...]]:
        """First part of `decode`: content tokens, and the finer features for `decode_tokens`."""
        features = self._features(content)
        moments = colour_moments(features[0], self.config.content_stride)
        return ContentTokens(self.content_projection(features[-1]), moments), features

    def _features(
        self, content: Float[ArrayLike, "b h w 3"]
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """The normalised pixels, and what each stage of the backbone makes of them."""
        # The tail's reflection padding needs two tokens a side.
        check_sides("content", content, multiple=self.config.content_stride, at_least=2)
        content = imagenet.normalise(content)
        return (content, *self.content_backbone(content))

    def context(
        self, tokens: ContentTokens, hidden: Bool[Array, "b h w"] | None = None
    ) -> ContentContext:
        """What `transform` has to know of the whole picture; hidden tokens do not count."""
        return ContentContext(
            grid_positions(tokens.tokens, hidden), colour_statistics(tokens.moments, hidden)
        )

    def transform(
        self,
        content: ContentTokens,
        context: ContentContext,
        memories: Sequence[StyleMemory],
        weights: Float[Array, " s"] | None = None,
        hidden: Bool[Array, "b h w"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Transformed:
        """Second part of `decode`, the only one where distant tokens meet."""
        grid = content.tokens
        tokens, position = rows(grid), rows(context.position)
        padding = None if hidden is None else hidden.reshape(len(hidden), -1)
        attended = tuple(memory.attended for memory in memories)
        for layer in self.decoder:
            tokens = apply_layer(
                layer, tokens, position, attended, weights, padding, rngs, remat=self.remat
            )
        tokens = self.output_projection(self.decoder_norm(tokens))
        colours = blend([memory.colours for memory in memories], weights)
        features = blend([memory.features for memory in memories], weights)
        statistics = jnp.concatenate([*context.colours, *colours, features], axis=-1)
        return Transformed(
            tokens.reshape(*grid.shape[:3], -1),
            self.colour_map(context.colours, colours),
            self.style_code(statistics),
        )

    def decode_tokens(
        self, transformed: Transformed, features: tuple[Float[Array, "b _ _ _"], ...]
    ) -> Float[Array, "b h2 w2 3"]:
        """Last part of `decode`: transformed tokens and features of the content to pixels."""
        colours = apply_colour_map(transformed.colour_map, features[0])
        prediction = self.tail(transformed.tokens, features[1:-1], colours, transformed.style_code)
        return imagenet.denormalise(prediction.astype(jnp.float32))

    def learning_group(self, path: tuple[str | int, ...]) -> LearningGroup:
        """The backbones have a rate of their own; the preset's is that of the rest."""
        return "slow" if path[0] in ("content_backbone", "style_backbone") else "normal"
