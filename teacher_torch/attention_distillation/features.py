"""Recording the features that are distilled, and taking the losses as rows pass the network."""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.attention_distillation.losses import (
    attention_target,
    content_loss,
    same_region,
    style_loss,
)


class Masks(NamedTuple):
    """Regions of pictures by their labels; a result's region is painted by the style's of its
    label. Any resolution will do, of the aspect of the latents."""

    results: Int[Tensor, "p h w"]
    styles: Int[Tensor, "s h2 w2"]


@dataclass(frozen=True)
class Rows:
    """What the rows of one UNet call are: pictures to record, or stylised rows with losses."""

    contents: int = 0
    """Rows whose queries are recorded; they come first."""
    styles: int = 0
    """Rows whose keys and values are recorded; they come second."""
    stylised_contents: Int[Tensor, " p"] | None = None
    """Index of the content of each stylised row, sorted by style; None where there is none."""
    stylised_per_style: tuple[int, ...] = ()
    """How many stylised rows each style has; empty for a call that records."""
    masks: Masks | None = None
    """Of the stylised rows and of all styles; None where every token may find every other."""


class DistilledAttention:
    """The chosen self-attentions of one UNet, as a context manager around one timestep.

    Inside, calls that record come before calls with stylised rows, whose losses by row then lie in
    `style_losses` and `content_losses`, summed over the layers. On exit the UNet is as it was.
    """

    def __init__(self, unet: UNet2DConditionModel, layers: tuple[int, ...], style_scale: float):
        self.style_scale = style_scale
        self.rows = Rows()
        self.style_losses: Tensor | float = 0.0
        self.content_losses: Tensor | float = 0.0
        self._attentions = [
            unet.up_blocks[i // 3].attentions[i % 3].transformer_blocks[0].attn1 for i in layers
        ]
        self._processors = [_Processor(self) for _ in layers]

    def start_call(self, rows: Rows) -> None:
        """Say what the rows of the next UNet call are."""
        self.rows, self.style_losses, self.content_losses = rows, 0.0, 0.0

    def __enter__(self) -> "DistilledAttention":
        self._previous = [attention.processor for attention in self._attentions]
        for attention, processor in zip(self._attentions, self._processors, strict=True):
            attention.set_processor(processor)
        return self

    def __exit__(self, *_) -> None:
        for attention, previous in zip(self._attentions, self._previous, strict=True):
            attention.set_processor(previous)
        for processor in self._processors:
            processor.drop()


class _Processor:
    """Replaces the processor of one self-attention."""

    def __init__(self, distilled: DistilledAttention):
        self.distilled = distilled
        self.drop()

    def drop(self) -> None:
        self.content_queries: list[Tensor] = []
        self.style_keys: list[Tensor] = []
        self.style_values: list[Tensor] = []

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
        def heads(x: Tensor) -> Float[Tensor, "b k n d"]:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        rows = self.distilled.rows
        query, key, value = (
            heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        dtype = query.dtype
        if attn.upcast_attention:  # Stable Diffusion 2.1 overflows float16 scores
            query, key, value = query.float(), key.float(), value.float()
        output = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        if rows.stylised_per_style:
            self._take_losses(query, output, rows)
        else:
            # Copies, because views would keep the features of all rows in memory.
            self.content_queries += [q[None].clone() for q in query[: rows.contents]]
            for k, v in zip(key[rows.contents :], value[rows.contents :], strict=True):
                self.style_keys.append(k[None].clone())
                self.style_values.append(v[None].clone())
        output = output.to(dtype).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](output))

    def _take_losses(self, query: Tensor, output: Tensor, rows: Rows) -> None:
        targets = []
        ends = itertools.accumulate(rows.stylised_per_style)
        for style, (count, end) in enumerate(zip(rows.stylised_per_style, ends, strict=True)):
            if count:
                key, value = self.style_keys[style], self.style_values[style]
                here = slice(end - count, end)
                allowed = None
                if rows.masks is not None:
                    regions = (rows.masks.results[here], rows.masks.styles[style])
                    allowed = same_region(*regions, query.shape[2], key.shape[2])
                own, scale = query.detach()[here], self.distilled.style_scale
                targets.append(attention_target(own, key, value, scale, allowed))
        self.distilled.style_losses += style_loss(output, torch.cat(targets))
        if rows.stylised_contents is not None:
            contents = torch.cat([self.content_queries[i] for i in rows.stylised_contents.tolist()])
            self.distilled.content_losses += content_loss(query, contents)
