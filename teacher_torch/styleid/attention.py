"""The attention processor that records content queries and style keys and values and injects them.

The rows of one step of joint sampling are contents, styles and stylised pictures, in this order.
At an injected layer, content and style rows attend to themselves as always while their query
(content) or key and value (style) are kept; stylised rows then compute (Chung et al., 2024,
eq. 7 to 9)

    softmax(T / sqrt(d) * (gamma * q_content + (1 - gamma) * q_stylised) k_style^T) v_style

The rows may go through the network in one call or in several: what was kept stays until the end of
the step. So a step of a large grid fits a small memory without computing any row twice, and so can
pictures of different sizes be combined, which cannot share a call.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """What the rows of one UNet call are."""

    contents: int = 0
    """Content rows, which come first."""
    styles: int = 0
    """Style rows, which come second."""
    stylised_contents: Int[Tensor, " p"] | None = None
    """Index of the content of each stylised row; these rows come last, sorted by style."""
    stylised_per_style: tuple[int, ...] = ()
    """How many stylised rows each style has."""

    @property
    def stylised(self) -> int:
        """Stylised rows."""
        return sum(self.stylised_per_style)


def cut(rows: int, rows_per_call: int) -> list[int]:
    """Sizes of the fewest calls of at most `rows_per_call` rows; they differ by one at most."""
    calls = math.ceil(rows / rows_per_call)
    return [rows * (k + 1) // calls - rows * k // calls for k in range(calls)]


def plan_calls(
    contents: int,
    styles: int,
    pairs: Int[Tensor, "p 2"],
    rows_per_call: int,
    device: torch.device,
) -> Iterator[Rows]:
    """Cut contents, styles and `pairs` (content, style; sorted by style) into UNet calls."""
    sources = contents + styles
    start = 0
    for size in cut(sources + len(pairs), rows_per_call):
        stop = start + size
        pairs_of_call = pairs[max(0, start - sources) : max(0, stop - sources)]
        yield Rows(
            contents=max(0, min(stop, contents) - start),
            styles=max(0, min(stop, sources) - max(start, contents)),
            stylised_contents=pairs_of_call[:, 0].to(device),
            stylised_per_style=tuple(torch.bincount(pairs_of_call[:, 1]).tolist()),
        )
        start = stop


class StyleInjection:
    """The injection over all chosen layers of one UNet.

    A context manager: on entry it replaces the layers' processors, on exit it puts them back and
    forgets the kept features, so one block is one step of sampling.
    """

    def __init__(
        self, unet: UNet2DConditionModel, layers: tuple[int, ...], gamma: float, temperature: float
    ):
        self.gamma, self.temperature = gamma, temperature
        self.rows = Rows()
        self._attentions = [
            unet.up_blocks[i // 3].attentions[i % 3].transformer_blocks[0].attn1 for i in layers
        ]
        self._processors = [StyleInjectionProcessor(self) for _ in layers]

    def __enter__(self) -> "StyleInjection":
        self._previous = [attention.processor for attention in self._attentions]
        self._set_processors(self._processors)
        return self

    def __exit__(self, *_) -> None:
        self._set_processors(self._previous)
        for processor in self._processors:
            processor.drop()

    def _set_processors(self, processors: list) -> None:
        for attention, processor in zip(self._attentions, processors, strict=True):
            attention.set_processor(processor)


class StyleInjectionProcessor:
    """Replaces the processor of one self-attention; see the module's docstring."""

    def __init__(self, injection: StyleInjection):
        self.injection = injection
        self.drop()

    def drop(self) -> None:
        """Forget the kept features."""
        self.content_query = self.style_key = self.style_value = None

    # Compiled, every new grouping of the rows would be another program.
    @torch.compiler.disable
    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "b n c"]:
        rows = self.injection.rows
        sources = rows.contents + rows.styles

        def heads(x: Tensor) -> Float[Tensor, "b k n d"]:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = heads(attn.to_q(hidden_states))
        outputs = []
        if sources:
            # Stylised rows never use their own key and value, so only these are computed.
            key, value = (
                heads(attn.to_k(hidden_states[:sources])),
                heads(attn.to_v(hidden_states[:sources])),
            )
            outputs.append(_attend(attn, query[:sources], key, value, 1.0))
            if rows.contents:
                self.content_query = _append(self.content_query, query[: rows.contents])
            if rows.styles:
                self.style_key = _append(self.style_key, key[rows.contents :])
                self.style_value = _append(self.style_value, value[rows.contents :])
        if rows.stylised:
            outputs.append(self._inject(attn, query[sources:], rows))
        output = torch.cat(outputs).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](output))

    def _inject(
        self, attn: Attention, query: Float[Tensor, "p k n d"], rows: Rows
    ) -> Float[Tensor, "p k n d"]:
        gamma = self.injection.gamma
        query = gamma * self.content_query[rows.stylised_contents] + (1 - gamma) * query
        outputs = []
        ends = itertools.accumulate(rows.stylised_per_style)
        for style, (count, end) in enumerate(zip(rows.stylised_per_style, ends, strict=True)):
            if count == 0:
                continue
            # All pictures of one style share its key and value: folded into the query's tokens,
            # they are one attention and nothing is copied per picture.
            folded = query[end - count : end].transpose(0, 1).flatten(1, 2)[None]
            key, value = self.style_key[style : style + 1], self.style_value[style : style + 1]
            output = _attend(attn, folded, key, value, self.injection.temperature)
            outputs.append(output[0].unflatten(1, (count, -1)).transpose(0, 1))
        return torch.cat(outputs)


def _append(stored: Tensor | None, new: Tensor) -> Tensor:
    # A copy, because a view would keep the features of all rows of the call in memory.
    return new.clone() if stored is None else torch.cat([stored, new])


def _attend(
    attn: Attention, query: Tensor, key: Tensor, value: Tensor, temperature: float
) -> Tensor:
    dtype = query.dtype
    if attn.upcast_attention:  # Stable Diffusion 2.1 overflows float16 scores
        query, key, value = query.float(), key.float(), value.float()
    scale = temperature * attn.scale
    return F.scaled_dot_product_attention(query, key, value, scale=scale).to(dtype)
