"""The two losses of attention distillation (Zhou et al., CVPR 2025, section 3).

Queries, keys, values and outputs are those of a self-attention after the projections and the split
into heads, [b k n d], and before the output projection. Every loss is a mean over heads, tokens and
channels, one number for each row, so that a row does not depend on how many others there are.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def attention_target(
    query: Float[Tensor, "b k n d"],
    style_key: Float[Tensor, "s k m d"],
    style_value: Float[Tensor, "s k m d"],
    scale: float = 1.0,
    allowed: Bool[Tensor, "b n s*m"] | None = None,
) -> Float[Tensor, "b k n d"]:
    """What the queries would find in the style: softmax(scale q K^T / sqrt(d)) V, a constant.

    Several style pictures (s > 1) are one set of s m keys for every row. `scale` multiplies the
    scores of the target only. `allowed` says which keys each query may find, by default all; one
    that may find none has the target 0.
    """
    key, value = (x.transpose(0, 1).flatten(1, 2)[None] for x in (style_key, style_value))
    with torch.no_grad():
        # All rows ask one style: folded into the tokens they are one attention, nothing is copied.
        folded = query.transpose(0, 1).flatten(1, 2)[None]
        factor = scale / query.shape[-1] ** 0.5
        mask = None if allowed is None else allowed.flatten(0, 1)
        output = F.scaled_dot_product_attention(folded, key, value, mask, scale=factor)
        if mask is not None:  # where nothing may be found, kernels differ
            output = output.masked_fill(~mask.any(-1)[:, None], 0)
        return output[0].unflatten(1, (query.shape[0], -1)).transpose(0, 1)


def same_region(
    result: Int[Tensor, "b h w"],
    style: Int[Tensor, "h2 w2"],
    result_tokens: int,
    style_tokens: int,
) -> Bool[Tensor, "b n m"]:
    """Which tokens of a result have the label of which tokens of the style.

    Both masks hold a label for each place and are reduced to a layer's tokens as the authors do, by
    the nearest place.
    """
    of_result, of_style = _reduced(result, result_tokens), _reduced(style[None], style_tokens)
    return of_result[:, :, None] == of_style[:, None]


def _reduced(mask: Int[Tensor, "b h w"], tokens: int) -> Float[Tensor, "b n"]:
    height, width = mask.shape[1:]
    factor = (tokens / (height * width)) ** 0.5
    size = (round(height * factor), round(width * factor))
    return F.interpolate(mask[:, None].float(), size, mode="nearest").flatten(1)


def style_loss(
    output: Float[Tensor, "b k n d"], target: Float[Tensor, "b k n d"]
) -> Float[Tensor, " b"]:
    """Mean absolute difference of outputs and targets, per row, in float32 at least."""
    return (_wide(output) - _wide(target.detach())).abs().mean((1, 2, 3))


def content_loss(
    query: Float[Tensor, "b k n d"], content_query: Float[Tensor, "b k n d"]
) -> Float[Tensor, " b"]:
    """Mean absolute difference of queries from the content's, per row, in float32 at least."""
    return (_wide(query) - _wide(content_query.detach())).abs().mean((1, 2, 3))


def _wide(x: Tensor) -> Tensor:
    # Differences of half precision lose what is small beside the features.
    return x.to(torch.promote_types(x.dtype, torch.float32))
