"""The modulated student: convolutions steered by a code of the style, and features of the painting.

One encoder leads content and style to stride 4, normalised so that nothing of contrast and colours
remains but where they are. There the content takes on the style's features where the two look
alike; from there to the pixels, the style's code scales, shifts and filters the features. No pixel
of the content is wired to the output, so flat parts can be painted. The finest detail,
waves of two pixels, is smoothed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from student_jax.nets import imagenet
from student_jax.nets.convolution import (
    EdgeUpsampleConv,
    SmoothConvOfCells,
    UpsampleConvToCells,
    from_cells,
    to_cells,
)
from student_jax.nets.light import LightBackbone, LightStage
from student_jax.nets.mixture import places
from student_jax.nets.pictures import check_sides
from student_jax.nets.position_encoding import cells
from student_jax.nets.statistics import (
    STATISTICS,
    ColourStatistics,
    colour_moments,
    colour_statistics,
    feature_statistics,
)
from student_jax.student import LearningGroup, TileRule, blend
from student_jax.students.modulated.config import ModulatedConfig
from student_jax.students.modulated.modulation import (
    ModulatedBlock,
    Modulation,
    StyleFilter,
    StyleSwap,
    instance_norm,
    instance_norm_of_cells,
    noise_cells,
)

STYLE_SIDE = 24
"""The cells of a style that are kept are an even grid of so many rows and columns; of a style that
has fewer, some count several times."""
HALO = 4
"""Tokens that a tile sees around its core: more than encoder and decoder look beyond a token."""


class StyleMemory(NamedTuple):
    """An encoded style: what the student needs of it, for any number of contents."""

    colours: ColourStatistics
    features: Float[Array, "b s"]
    """Means and deviations of the channels of the backbone's features."""
    keys: Float[Array, "b n k"]
    values: Float[Array, "b n c"]
    """Normalised features of cells at stride 8, and what they are found by."""


class Transformed(NamedTuple):
    """What the decoder makes a picture of."""

    tokens: Float[Array, "b h w c"]
    colours: ColourStatistics
    code: Float[Array, "b d"]


class ModulatedStudent(nnx.Module):
    """Content and style pictures to a stylised picture; a `Student`.

    Pixels are in [0, 1]; the prediction is not clipped. The sides of contents must be multiples of
    8, those of styles of `config.style_stride`; the two need not be alike.

    Args:
        config: the architecture.
        dtype: in which to compute; parameters and statistics remain float32.
        remat: in training, compute each residual block again in the backward pass.
        rngs: for the initial parameters.
    """

    def __init__(
        self,
        config: ModulatedConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.remat = remat
        options = {"dtype": dtype, "rngs": rngs}
        half, quarter, eighth = config.widths
        code = config.style_code
        self.style_backbone = LightBackbone(config.style_widths, **options)
        statistics = STATISTICS + 2 * sum(config.style_widths)
        self.code1 = nnx.Linear(statistics, 2 * code, rngs=rngs)
        self.code2 = nnx.Linear(2 * code, code, rngs=rngs)

        self.content1 = LightStage(3, half, **options)
        self.content2 = LightStage(half, quarter, **options)

        self.swap = StyleSwap(code, quarter, **options)
        self.entrance = Modulation(code, quarter, **options)
        self.down = nnx.Linear(4 * quarter, eighth, **options)
        self.blocks = nnx.List(
            ModulatedBlock(eighth, code, **options) for _ in range(config.num_blocks)
        )
        self.up4 = EdgeUpsampleConv(eighth, quarter, **options)
        self.block4 = ModulatedBlock(quarter, code, **options)

        self.exit = Modulation(code, quarter, **options)
        self.up2 = EdgeUpsampleConv(quarter, half, **options)
        self.filter2 = StyleFilter(code, half, **options)
        self.modulation2 = Modulation(code, half, **options)
        self.up1 = UpsampleConvToCells(half, config.pixel_width, **options)
        self.pixels = SmoothConvOfCells(config.pixel_width, 3, **options)

    @property
    def tiles(self) -> TileRule:
        """Encoder and decoder act on tiles; what normalises sees all tokens."""
        return TileRule(
            HALO,
            encode=self.encode_content,
            context=self.context,
            transform=self.transform,
            decode=lambda content, transformed: self.decode_tokens(transformed),
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
            train: without effect, like `rngs`: nothing here is random.

        Raises:
            ValueError: for sides that do not suit the strides.
        """
        return self.decode(content, [self.encode_style(style)])

    def encode_style(self, style: Float[ArrayLike, "b h w 3"]) -> StyleMemory:
        """The part of the model that needs only the style.

        Raises:
            ValueError: for sides that do not suit `config.style_stride`.
        """
        check_sides("style", style, multiple=self.config.style_stride)
        style = imagenet.normalise(style)
        fine = instance_norm(self.content2(self.content1(style)))
        values = _even_grid(to_cells(fine), STYLE_SIDE)
        return StyleMemory(
            colour_statistics(colour_moments(style, self.config.style_stride)),
            jnp.concatenate([feature_statistics(x) for x in self.style_backbone(style)], axis=-1),
            self.swap.keys(values),
            values,
        )

    def decode(
        self,
        content: Float[ArrayLike, "b h w 3"],
        memories: Sequence[StyleMemory],
        *,
        weights: Float[Array, " s"] | None = None,
        padding: Bool[Array, "b h w"] | None = None,
    ) -> Float[Array, "b h w 3"]:
        """The rest of the model; arguments as in `Student.decode`.

        Raises:
            ValueError: for sides that do not suit, or another number of styles than of contents.
        """
        for memory in memories:
            if content.shape[0] != memory.features.shape[0]:
                raise ValueError(
                    f"{content.shape[0]} contents but {memory.features.shape[0]} encoded styles; "
                    "expected one style for each content"
                )
        hidden = None if padding is None else cells(padding, self.config.content_stride)
        tokens = self.encode_content(content)
        transformed = self.transform(tokens, self.context(tokens), memories, weights, hidden)
        return self.decode_tokens(transformed)

    def encode_content(self, content: Float[ArrayLike, "b h w 3"]) -> Float[Array, "b h/8 w/8 c"]:
        """First part of `decode`: features at stride 4, 2 x 2 of them to a token of 8 pixels."""
        # Reflection and upsampling need two positions a side.
        check_sides("content", content, multiple=self.config.content_stride, at_least=2)
        return to_cells(self.content2(self.content1(imagenet.normalise(content))))

    def context(
        self, tokens: Float[Array, "b h w c"], hidden: Bool[Array, "b h w"] | None = None
    ) -> Float[Array, "1 h w n"]:
        """What `transform` has to know of the whole picture: the noise of every position."""
        return noise_cells(*tokens.shape[1:3])

    def transform(
        self,
        tokens: Float[Array, "b h w c"],
        context: Float[Array, "_ h w n"],
        memories: Sequence[StyleMemory],
        weights: Float[Array, " s"] | None = None,
        hidden: Bool[Array, "b h w"] | None = None,
    ) -> Transformed:
        """Second part of `decode`, the only one that looks at the picture as a whole."""
        fine = instance_norm_of_cells(tokens, hidden)
        style = _mixed(memories, weights)
        statistics = jnp.concatenate([*style.colours, style.features], axis=-1)
        code = nnx.gelu(self.code2(nnx.gelu(self.code1(statistics))))

        fine_noise = from_cells(context)
        noise = 2 * context.reshape(*context.shape[:3], 4, -1).mean(3)
        # A mean of many cells has less contrast than each.
        swapped = self.swap.swapped(fine, style.keys, style.values)
        fine = self.swap(fine, instance_norm_of_cells(swapped, hidden), code)
        fine = self.entrance(fine, code)
        coarse = self.down(fine)
        for block in self.blocks:
            apply = nnx.remat(type(block).__call__) if self.remat else type(block).__call__
            coarse = apply(block, coarse, noise, code, hidden)
        fine = from_cells(fine) + self.up4(coarse)
        fine_hidden = None if hidden is None else hidden.repeat(2, 1).repeat(2, 2)
        fine = self.block4(fine, fine_noise, code, fine_hidden)
        return Transformed(to_cells(instance_norm(fine, fine_hidden)), style.colours, code)

    def decode_tokens(self, transformed: Transformed) -> Float[Array, "b h2 w2 3"]:
        """Last part of `decode`: transformed tokens to pixels."""
        code = transformed.code
        x = nnx.leaky_relu(self.exit(from_cells(transformed.tokens), code), 0.2)
        x = self.filter2(self.up2(x), code)
        x = nnx.leaky_relu(self.modulation2(x, code), 0.2)
        x = from_cells(self.pixels(nnx.leaky_relu(self.up1(x), 0.2)))
        return map_colours(x.astype(jnp.float32), *_colour_map(transformed.colours))

    def learning_group(self, path: tuple[str | int, ...]) -> LearningGroup:
        """The style's backbone has a rate of its own; the preset's is that of the rest."""
        return "slow" if path[0] == "style_backbone" else "normal"


def _mixed(memories: Sequence[StyleMemory], weights: Float[Array, " s"] | None) -> StyleMemory:
    """Several styles as one: the means of their statistics, and cells of each in such shares that
    their number stays the same."""
    if weights is None:
        (memory,) = memories
        return memory
    statistics = blend([memory._replace(keys=None, values=None) for memory in memories], weights)
    keys, values = (
        jnp.stack([getattr(memory, name) for memory in memories]) for name in ("keys", "values")
    )
    chosen = jnp.sum(places(keys.shape[2])[:, None] >= jnp.cumsum(weights)[None, :-1], axis=1)
    keys, values = (
        jnp.take_along_axis(x, chosen[None, None, :, None], axis=0)[0] for x in (keys, values)
    )
    return statistics._replace(keys=keys, values=values)


def _colour_map(colours: ColourStatistics) -> tuple[Float[Array, "b 3 3"], Float[Array, "b 3"]]:
    """The matrix L and the vector m of the style that make pixels, L x + m, of values in standard
    units.

    L L^T is the covariance of the style's colours (the Cholesky decomposition, written out) and m
    their mean: white noise would get the style's colours. Green, the most like luminance, is first.
    """
    red, green, blue = (colours.deviation[:, i] for i in range(3))
    red_green, red_blue, green_blue = (
        jnp.clip(colours.correlation[:, i], -0.99, 0.99) for i in range(3)
    )
    own_red = jnp.sqrt(1 - red_green**2)
    blue_red = (red_blue - green_blue * red_green) / own_red
    own_blue = jnp.sqrt(jnp.maximum(1 - green_blue**2 - blue_red**2, 1e-4))
    none = jnp.zeros_like(red)
    rows = [
        [red * red_green, red * own_red, none],
        [green, none, none],
        [blue * green_blue, blue * blue_red, blue * own_blue],
    ]
    matrix = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    pixels = imagenet.denormalise(colours.mean[:, None, None])[:, 0, 0]
    return matrix * imagenet.STD[0, 0, :, None], pixels


@jax.jit  # in name: see `reflect_sides`
def map_colours(
    x: Float[Array, "b h w 3"], matrix: Float[Array, "b 3 3"], shift: Float[Array, "b 3"]
) -> Float[Array, "b h w 3"]:
    """Another colour for each: matrix x + shift, in sums written out, which suits a CPU."""
    matrix, shift = matrix[:, None, None], shift[:, None, None]
    return jnp.stack(
        [
            sum((matrix[..., i, j] * x[..., j] for j in range(3)), start=shift[..., i])
            for i in range(3)
        ],
        axis=-1,
    )


def _even_grid(cells: Float[Array, "b h w c"], side: int) -> Float[Array, "b n c"]:
    """The cells that an even grid of `side` x `side` points hits, row by row."""
    b, h, w, c = cells.shape
    points, twice = 2 * jnp.arange(side, dtype=jnp.int32) + 1, jnp.int32(2 * side)
    rows, columns = (jax.lax.div(points * n, twice) for n in (h, w))
    inside: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
    grid = cells.at[:, rows].get(**inside).at[:, :, columns].get(**inside)
    return grid.reshape(b, side * side, c)
