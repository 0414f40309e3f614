"""The losses of ZeCon (Yang et al., ICCV 2023, section 3), each one number per row.

The weights multiply means, and the total is their plain sum. Embeddings are [b d] or, of several
patches of each picture, [b n d]; directions and targets [b d].
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE = 0.07
"""Divides the similarities of features (tau)."""
EPS = 1e-7
"""Added to the norms of features."""


def spherical_distance(
    x: Float[Tensor, "*#b d"], y: Float[Tensor, "*#b d"]
) -> Float[Tensor, "*#b"]:
    """2 arcsin^2(|x - y| / 2) of the normalised embeddings: half the squared angle."""
    chord = (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).norm(dim=-1)
    return 2 * (chord / 2).arcsin().square()


def directional_distance(
    change: Float[Tensor, "*#b d"], direction: Float[Tensor, "*#b d"]
) -> Float[Tensor, "*#b"]:
    """1 - cosine of two changes of embeddings; StyleGAN-NADA normalises embeddings first, ZeCon
    does not."""
    return 1 - F.cosine_similarity(change, direction, dim=-1)


def contrastive_loss(
    queries: Sequence[Float[Tensor, "b _ _ _"]],
    keys: Sequence[Float[Tensor, "b _ _ _"]],
    positions: Sequence[Int[Tensor, "b _"]],
) -> Float[Tensor, " b"]:
    """Patch-wise contrast of the encoder's features: mean over positions, sum over layers.

    Each position of the picture shall be more like the same position of the content than like the
    content's other chosen ones. The authors put the similarity of the position itself beside a row
    of all of them in which it is replaced by -10: that is the cross entropy of the plain row, but
    for e^(-10 / 0.07). Keys are constants.
    """
    layers = []
    for query, key, chosen in zip(queries, keys, positions, strict=True):
        q, k = (_normalised(x, chosen) for x in (query, key.detach()))
        logits = q @ k.transpose(1, 2) / TEMPERATURE
        layers.append(-logits.log_softmax(-1).diagonal(dim1=1, dim2=2).mean(-1))
    return torch.stack(layers).sum(0)


def _normalised(
    features: Float[Tensor, "b c h w"], chosen: Int[Tensor, "b n"]
) -> Float[Tensor, "b n c"]:
    flat = features.float().flatten(2).transpose(1, 2)
    chosen = chosen.to(flat.device)[..., None].expand(-1, -1, flat.shape[-1])
    flat = flat.gather(1, chosen)
    return flat / (flat.norm(dim=-1, keepdim=True) + EPS)


def range_loss(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean squared distance of pixels from [-1, 1]."""
    return (images - images.clamp(-1, 1)).square().mean((1, 2, 3))


def squared_distance(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Tensor:
    """Mean squared difference per row."""
    return (x.float() - y.float()).square().mean((1, 2, 3))


def feature_loss(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
    """Sum over layers of the mean squared difference of VGG features, which are taken *after* the
    rectifiers: torchvision's work in place, so that the authors' "conv1_1" is relu1_1."""
    return torch.stack([squared_distance(x[name], y[name]) for name in x]).sum(0)
