"""What the mini teacher is told of a picture: its VGG16 statistics, as a few tokens."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from teacher_torch.mini.perceptual import VGG16

TOKENS, WIDTH = 8, 64
STATISTICS = 2 * (64 + 128 + 256 + 512)
"""Numbers that describe a picture: two for each channel of VGG16's relu1_1 to relu4_1."""
CONDITION = "condition.safetensors"
_SEED = 0


def null_condition() -> Float[Tensor, "1 n d"]:
    """The condition that tells nothing: a fixed normal draw, far from that of any picture.

    Zeros would be the average picture, and would leave the tokens alike for ever where a condition
    is learnt from them.
    """
    return torch.randn((1, TOKENS, WIDTH), generator=torch.Generator().manual_seed(_SEED))


def picture_statistics(features: Mapping[str, Tensor]) -> Float[Tensor, "b s"]:
    """Square roots of the mean and the deviation of each channel of VGG16 features.

    The roots make the skewed numbers of rectified features nearly symmetric.
    """
    rows = []
    for layer in features.values():
        flat = layer.float().flatten(2)
        rows += [flat.mean(-1).clamp(min=0).sqrt(), flat.std(-1).sqrt()]
    return torch.cat(rows, dim=1)


class PictureCondition(nn.Module):
    """Tokens from statistics by a fixed random projection, of mean 0 and deviation 1 over data.

    The projection follows from a seed; only the data's mean and deviation are stored.
    """

    def __init__(self, mean: Float[Tensor, " s"], std: Float[Tensor, " s"]):
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())
        projection = torch.randn(
            (STATISTICS, TOKENS * WIDTH), generator=torch.Generator().manual_seed(_SEED + 1)
        )
        self.register_buffer("projection", projection / STATISTICS**0.5, persistent=False)

    @classmethod
    def load(cls, folder: Path) -> "PictureCondition":
        """Read what `save` wrote."""
        return cls(**load_file(folder / CONDITION))

    def save(self, folder: Path) -> None:
        """Write the data's mean and deviation to condition.safetensors."""
        save_file(
            {k: v.contiguous().cpu() for k, v in self.state_dict().items()}, folder / CONDITION
        )

    def forward(self, statistics: Float[Tensor, "b s"]) -> Float[Tensor, "b n d"]:
        """Tokens of pictures with these statistics; what is beyond 5 deviations is clipped."""
        normal = ((statistics.float() - self.mean) / self.std).clamp(-5, 5)
        # Not in the bfloat16 of a surrounding autocast: conditions are the same wherever made.
        with torch.autocast(normal.device.type, enabled=False):
            return (normal @ self.projection).view(-1, TOKENS, WIDTH)

    def of_pictures(self, vgg: VGG16, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Tokens of pictures in [-1, 1]."""
        return self(picture_statistics(vgg(images / 2 + 0.5)))
