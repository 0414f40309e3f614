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
from student_jax.nets.resnet import ResNet
from student_jax.students.mini.colour import (
    MAP_NUMBERS,
    MOMENTS,
    STATISTICS,
    ColourMap,
    StyleCode,
    apply_colour_map,
    cell_moments,
    feature_statistics,
    statistics,
)
from student_jax.students.mini.light import LightBackbone
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.position_encoding import position_encoding
from student_jax.students.sttr.tail import Tail
from student_jax.students.sttr.transformer import (
    DecoderLayer,
    EncoderLayer,
    StyleMemory,
    layer_norm,
)


class STTR(nnx.Module):
    """Content and style pictures to a stylised picture.

    Pixels are in [0, 1]; the prediction is not clipped. The sides of contents must be multiples of
    `config.content_stride`, those of styles of `config.style_stride`; the two need not be alike.

    Padding masks (True = padding) allow pictures of several sizes in one batch: padding is read
    as the ImageNet mean colour, does not count in position encodings, and padded style tokens get
    no attention. Padded content tokens are not hidden from the others, as in the paper's code.

    Args:
        config: the architecture.
        dtype: in which to compute; parameters, softmax and statistics remain float32.
        remat: in training, compute each transformer layer again in the backward pass instead of
            keeping what is inside it (Chen et al., "Training Deep Nets with Sublinear Memory
            Cost", 2016).
        rngs: for the initial parameters. The model keeps no random state: dropout takes its keys
            from the `rngs` of a call.
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
        self.dtype = dtype
        self.remat = remat
        backbone = ResNet if config.backbone == "resnet50" else LightBackbone
        dim = config.hidden_dim
        self.content_backbone = backbone(config.content_widths, dtype=dtype, rngs=rngs)
        self.style_backbone = backbone(config.style_widths, dtype=dtype, rngs=rngs)
        # 1 x 1 convolutions: linear maps of the channels.
        self.content_projection = nnx.Linear(config.content_widths[-1], dim, dtype=dtype, rngs=rngs)
        self.style_projection = nnx.Linear(config.style_widths[-1], dim, dtype=dtype, rngs=rngs)
        self.encoder = nnx.List(
            EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_encoder_layers)
        )
        self.decoder = nnx.List(
            DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_decoder_layers)
        )
        self.decoder_norm = layer_norm(config, dtype=dtype, rngs=rngs)
        self.output_projection = nnx.Linear(dim, config.tail_dim, dtype=dtype, rngs=rngs)
        if config.colour_map:
            self.colour_map = ColourMap(rngs=rngs)
        if config.style_code:
            in_dim = 2 * STATISTICS + 2 * sum(self.style_backbone.dims)
            self.style_code = StyleCode(in_dim, config.style_code, rngs=rngs)
        skip_dims = (3, *self.content_backbone.dims[:-1])
        self.tail = Tail(config, skip_dims, dtype=dtype, rngs=rngs)

    @property
    def token_dim(self) -> int:
        """Channels of what `encode_content` gives."""
        return self.config.hidden_dim + MOMENTS * self.config.colour_map

    @property
    def painted_dim(self) -> int:
        """Channels of what `transform` gives."""
        config = self.config
        return config.tail_dim + MAP_NUMBERS * config.colour_map + config.style_code

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
        return self.decode(content, memory, content_mask, train=train, rngs=rngs)

    def encode_style(
        self,
        style: Float[ArrayLike, "b h w 3"],
        mask: Bool[ArrayLike, "b h w"] | None = None,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> StyleMemory:
        """The part of the model that needs only the style; arguments as for the whole."""
        config = self.config
        _check_sides("style", style, multiple=config.style_stride, minimum=config.style_stride)
        rngs = self._dropout_rngs(train, rngs)
        style = _normalise(style, mask)
        features = self.style_backbone(style)
        grid = self.style_projection(features[-1])
        tokens, position, padding = _flatten(grid, mask, config.hidden_dim)
        for layer in self.encoder:
            tokens = self._apply(layer, tokens, position, padding, rngs)
        whole = None
        if config.colour_map:
            moments = cell_moments(style, mask, config.style_stride)
            whole = statistics(moments.reshape(style.shape[0], -1, MOMENTS))
        if config.style_code:
            whole = jnp.concatenate(
                [whole, *(feature_statistics(x, mask) for x in features)], axis=-1
            )
        return StyleMemory(tokens, position, padding, whole)

    def decode(
        self,
        content: Float[ArrayLike, "b h w 3"],
        memory: StyleMemory | Sequence[StyleMemory],
        mask: Bool[ArrayLike, "b h w"] | None = None,
        *,
        weights: Float[Array, " s"] | None = None,
        mirrored: bool = False,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w 3"]:
        """The rest of the model; arguments as for the whole, and:

        Args:
            memory: one style, or several that are mixed in the decoder's cross-attention.
            weights: of several styles; they sum to 1.
            mirrored: the padding is the picture's mirror image. It is then seen by convolutions
                near the border, and hidden from all other tokens.
        """
        memories = (memory,) if isinstance(memory, StyleMemory) else tuple(memory)
        for memory in memories:
            if content.shape[0] != memory.tokens.shape[0]:
                raise ValueError(
                    f"{content.shape[0]} contents but {memory.tokens.shape[0]} encoded styles; "
                    "expected one style for each content"
                )
        rngs = self._dropout_rngs(train, rngs)
        grid, skips = self.encode_content(content, None if mirrored else mask)
        tokens, position, padding = _flatten(grid, mask, self.config.hidden_dim)
        padding = padding if mirrored else None
        tokens = self.transform(tokens, position, memories, weights, padding, rngs)
        return self.paint(tokens.reshape(*grid.shape[:3], -1), skips, train)

    def encode_content(
        self, content: Float[ArrayLike, "b h w 3"], mask: Bool[ArrayLike, "b h w"] | None = None
    ) -> tuple[Float[Array, "b h2 w2 c"], tuple[Float[Array, "b _ _ _"], ...]]:
        """First part of `decode`: a grid of content tokens, and the finer features for `paint`.

        With a colour map, the tokens have `MOMENTS` more channels, which `transform` takes off.
        """
        # The tail's reflection padding needs two tokens a side.
        minimum = 2 * self.config.content_stride
        _check_sides("content", content, multiple=self.config.content_stride, minimum=minimum)
        content = _normalise(content, mask)
        features = self.content_backbone(content)
        grid = self.content_projection(features[-1])
        if self.config.colour_map:
            moments = cell_moments(content, mask, self.config.content_stride)
            # All float32, in which alone sums of powers tell small deviations.
            grid = jnp.concatenate([grid, moments], axis=-1)
        return grid, (content, *features[:-1])

    def transform(
        self,
        tokens: Float[Array, "b n t"],
        position: Float[Array, "#b n c"],
        memories: Sequence[StyleMemory],
        weights: Float[Array, " s"] | None = None,
        padding: Bool[Array, "b n"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n c2"]:
        """Second part of `decode`, the only one where distant tokens meet.

        With a colour map, its `MAP_NUMBERS` follow the channels of every token, and the style's
        code follows those.
        """
        dim = self.config.hidden_dim
        tokens, moments = tokens[..., :dim].astype(self.dtype), tokens[..., dim:]
        position = position.astype(self.dtype)
        for layer in self.decoder:
            tokens = self._apply(layer, tokens, position, memories, weights, padding, rngs)
        tokens = self.output_projection(self.decoder_norm(tokens))
        if not self.config.colour_map:
            return tokens
        style = [memory.statistics for memory in memories]
        if weights is None:
            (style,) = style
        else:
            style = sum(w * whole for w, whole in zip(weights, style, strict=True))
        content = statistics(moments, padding)
        whole = self.colour_map(content, style[:, :STATISTICS])
        if self.config.style_code:
            code = self.style_code(jnp.concatenate([content, style], axis=-1))
            whole = jnp.concatenate([whole, code], axis=-1)
        whole = jnp.broadcast_to(whole[:, None], (*tokens.shape[:2], whole.shape[-1]))
        return jnp.concatenate([tokens, whole], axis=-1)

    def paint(
        self,
        grid: Float[Array, "b h w c"],
        skips: tuple[Float[Array, "b _ _ _"], ...],
        train: bool = False,
    ) -> Float[Array, "b h2 w2 3"]:
        """Last part of `decode`: transformed tokens to pixels."""
        code = None
        if self.config.colour_map:
            dim = self.config.tail_dim
            # What describes the picture as a whole is the same at all tokens.
            grid, whole = grid[..., :dim].astype(self.dtype), grid[..., dim:].mean((1, 2))
            skips = (apply_colour_map(whole[:, :MAP_NUMBERS], skips[0]), *skips[1:])
            if self.config.style_code:
                code = whole[:, MAP_NUMBERS:]
        prediction = self.tail(grid, skips, code, train)
        return imagenet.denormalise(prediction.astype(jnp.float32))

    def _apply(self, layer: nnx.Module, tokens: Float[Array, "b n c"], *args):
        def apply(layer, *args):
            return layer(*args)

        return (nnx.remat(apply) if self.remat else apply)(layer, tokens, *args)

    def _dropout_rngs(self, train: bool, rngs: nnx.Rngs | None) -> nnx.Rngs | None:
        if train and self.config.dropout > 0 and rngs is None:
            raise ValueError(
                f"training with dropout {self.config.dropout} needs keys: "
                "pass rngs=nnx.Rngs(dropout=key)"
            )
        return rngs if train else None


def _check_sides(
    name: str, images: Float[ArrayLike, "b h w 3"], multiple: int, minimum: int
) -> None:
    h, w = images.shape[1:3]
    if h % multiple or w % multiple or min(h, w) < minimum:
        raise ValueError(
            f"the {name} is {w} x {h} px; expected sides that are multiples of {multiple} px and "
            f"at least {minimum} px: resize or pad it"
        )


def _normalise(
    images: Float[ArrayLike, "b h w 3"], mask: Bool[ArrayLike, "b h w"] | None
) -> Float[Array, "b h w 3"]:
    """ImageNet-normalised pictures, zero (the mean colour) at padding."""
    images = imagenet.normalise(images)
    return images if mask is None else jnp.where(mask[..., None], 0, images)


def _flatten(grid, mask, dim):
    """The cells of a grid in row-major order, with their position encodings and padding."""
    b, h, w, c = grid.shape
    if mask is None:
        padding = None
        position = position_encoding(jnp.zeros((1, h, w), bool), dim)
    else:
        # A cell is padding when its first pixel is: nearest-neighbour resizing.
        padding = jnp.asarray(mask)[:, :: mask.shape[1] // h, :: mask.shape[2] // w]
        position = position_encoding(padding, dim)
        padding = padding.reshape(b, h * w)
    return grid.reshape(b, h * w, c), position.astype(grid.dtype).reshape(-1, h * w, dim), padding
