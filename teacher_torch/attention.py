"""The attention processor that records content queries and style keys and values and injects them.

One UNet call may hold rows of three kinds, in this order: contents, styles, stylised. At an
injected layer, content and style rows attend to themselves as always while their query (content)
or key and value (style) are kept; stylised rows then compute (Chung et al., 2024, eq. 7 to 9)

    softmax(T / sqrt(d) * (gamma * q_content + (1 - gamma) * q_stylised) k_style^T) v_style

What was kept stays until the next call overwrites it, so pictures of different sizes, which cannot
share a call, go through three calls of one step with the same effect.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """What the rows of the next UNet call are."""

    contents: int = 0
    """Content rows, which come first."""
    styles: int = 0
    """Style rows, which come second."""
    stylised_contents: Int[Tensor, " p"] | None = None
    """Index of the content of each stylised row; these rows come last, sorted by style."""
    stylised_per_style: tuple[int, ...] = ()
    """How many stylised rows each style has."""


class StyleInjection:
    """The injection over all chosen layers of one UNet; a context manager that installs it."""

    def __init__(
        self, unet: UNet2DConditionModel, layers: tuple[int, ...], gamma: float, temperature: float
    ):
        self.gamma, self.temperature = gamma, temperature
        self.rows = Rows()
        self._attentions = [
            unet.up_blocks[i // 3].attentions[i % 3].transformer_blocks[0].attn1 for i in layers
        ]

    def __enter__(self) -> "StyleInjection":
        self._previous = [attention.processor for attention in self._attentions]
        for attention in self._attentions:
            attention.set_processor(StyleInjectionProcessor(self))
        return self

    def __exit__(self, *_) -> None:
        for attention, processor in zip(self._attentions, self._previous, strict=True):
            attention.set_processor(processor)


class StyleInjectionProcessor:
    """Replaces the processor of one self-attention; see the module's docstring."""

    def __init__(self, injection: StyleInjection):
        self.injection = injection
        self.content_query = self.style_key = self.style_value = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "b n c"]:
        rows = self.injection.rows
        own = rows.contents + rows.styles

        def heads(x: Tensor) -> Float[Tensor, "b k n d"]:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = heads(attn.to_q(hidden_states))
        outputs = []
        if own:
            # Stylised rows never use their own key and value, so only these are computed.
            key, value = (
                heads(attn.to_k(hidden_states[:own])),
                heads(attn.to_v(hidden_states[:own])),
            )
            outputs.append(_attend(attn, query[:own], key, value, 1.0))
            if rows.contents:
                self.content_query = query[: rows.contents]
            if rows.styles:
                self.style_key, self.style_value = key[rows.contents :], value[rows.contents :]
        if rows.stylised_contents is not None:
            outputs.append(self._inject(attn, query[own:], rows))
        output = torch.cat(outputs).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](output))

    def _inject(
        self, attn: Attention, query: Float[Tensor, "p k n d"], rows: Rows
    ) -> Float[Tensor, "p k n d"]:
        gamma = self.injection.gamma
        query = gamma * self.content_query[rows.stylised_contents] + (1 - gamma) * query
        outputs = []
        for style, group in enumerate(query.split(rows.stylised_per_style)):
            # All pictures of one style share its key and value: folded into the query's tokens,
            # they are one attention and nothing is copied per picture.
            folded = group.transpose(0, 1).flatten(1, 2)[None]
            key, value = self.style_key[style : style + 1], self.style_value[style : style + 1]
            output = _attend(attn, folded, key, value, self.injection.temperature)
            outputs.append(output[0].unflatten(1, (len(group), -1)).transpose(0, 1))
        return torch.cat(outputs)


def _attend(
    attn: Attention, query: Tensor, key: Tensor, value: Tensor, temperature: float
) -> Tensor:
    dtype = query.dtype
    if attn.upcast_attention:  # Stable Diffusion 2.1 overflows float16 scores
        query, key, value = query.float(), key.float(), value.float()
    scale = temperature * attn.scale
    return F.scaled_dot_product_attention(query, key, value, scale=scale).to(dtype)
