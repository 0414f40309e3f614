"""The inversion module: from CLIP's embedding of a picture to the embedding of one word."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ATTENTION_WIDTH = 512
"""8 heads of 64."""
DROPOUT = 0.05


class InversionModule(nn.Module):
    """The authors' `Attentions`, which is an affine map: y = N (O (V x) + o) + n.

    They compute two cross-attentions over a sequence of length 1. A softmax over one key is 1, so
    queries and keys do not matter; the first attention only asks the second, so it does not matter
    either. V, O and o are the second attention's value and output projections; N and n are the
    linear layer behind it. The seven other tensors are there to be loaded and saved.
    """

    def __init__(self, width: int, generator: torch.Generator | None = None):
        """
        Args:
            width: of CLIP's embeddings and of the words': 768 in Stable Diffusion 1.x.
            generator: draws the weights, from the distribution that PyTorch gives linear layers.
        """
        super().__init__()
        self.attn1, self.attn2 = _attention(width), _attention(width)
        self.net = nn.ModuleDict({"1": nn.Linear(width, width)})
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                for parameter in layer.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return self.net["1"].in_features

    def live(self) -> dict[str, nn.Parameter]:
        """The five tensors that the output depends on."""
        dead = ("attn1.", "attn2.to_q.", "attn2.to_k.")
        return {n: p for n, p in self.named_parameters() if not n.startswith(dead)}

    @classmethod
    def live_bytes(cls, width: int) -> int:
        """Bytes of the live tensors."""
        with torch.device("meta"):
            return sum(p.nbytes for p in cls(width).live().values())

    def forward(
        self,
        image_embeds: Float[Tensor, "b d"],
        kept: tuple[Float[Tensor, "#b d"], Float[Tensor, "#b d"]] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Embeddings of the placeholder.

        Args:
            image_embeds: CLIP's embeddings of pictures, of norm 1.
            kept: masks of 0 and 1 of the two dropouts in a row, while training; by default none.
        """
        hidden = self.attn2["to_out"]["0"](self.attn2["to_v"](image_embeds))
        for mask in kept or ():
            hidden = hidden * mask / (1 - DROPOUT)
        return self.net["1"](hidden)

    def draw_kept(
        self, generator: torch.Generator
    ) -> tuple[Float[Tensor, "1 d"], Float[Tensor, "1 d"]]:
        """Random masks for `forward`, on the CPU."""
        first, second = (torch.rand(2, 1, self.width, generator=generator) >= DROPOUT).float()
        return first, second

    @torch.no_grad()
    def collapsed(self) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
        """Matrix and bias of the map, N O V and N o + n."""
        out, last = self.attn2["to_out"]["0"], self.net["1"]
        matrix = last.weight @ out.weight @ self.attn2["to_v"].weight
        return matrix, F.linear(out.bias, last.weight, last.bias)


def _attention(width: int) -> nn.ModuleDict:
    """The layers of one attention, by the names in the authors' files."""
    projections = {
        name: nn.Linear(width, ATTENTION_WIDTH, bias=False) for name in ("to_q", "to_k", "to_v")
    }
    out = nn.ModuleDict({"0": nn.Linear(ATTENTION_WIDTH, width)})
    return nn.ModuleDict({**projections, "to_out": out})
