"""VGG16 features, from the small network that the project carries, and a distance of them."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from triplets.bundled import WEIGHTS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VGG16(nn.Module):
    """VGG16 up to relu4_1 (Simonyan & Zisserman, 2015), torchvision's ImageNet weights.

    Call: float [b 3 h w] in [0, 1] -> {"relu1_1": [b 64 h w], "relu2_1": [b 128 h/2 w/2],
    "relu3_1": [b 256 h/4 w/4], "relu4_1": [b 512 h/8 w/8]}. Normalisation is inside.
    """

    CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17)  # indices in torchvision's `features`
    OUTPUTS: Mapping[int, str] = {0: "relu1_1", 5: "relu2_1", 10: "relu3_1", 17: "relu4_1"}
    POOL_BEFORE = (5, 10, 17)

    def __init__(self, weights: Path = WEIGHTS / "vgg16_relu4_1.fp16.safetensors"):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        tensors = load_file(weights)
        for name in (
            f"features.{i}.{kind}" for i in self.CONVOLUTIONS for kind in ("weight", "bias")
        ):
            self.register_buffer(name.replace(".", "_"), tensors[name].float())

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        x = (images - self.mean) / self.std
        features = {}
        for i in self.CONVOLUTIONS:
            if i in self.POOL_BEFORE:
                x = F.max_pool2d(x, 2)
            weight, bias = (
                getattr(self, f"features_{i}_weight"),
                getattr(self, f"features_{i}_bias"),
            )
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            if i in self.OUTPUTS:
                features[self.OUTPUTS[i]] = x
        return features


def feature_distance(
    features: Mapping[str, Tensor], target_features: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """Mean over slices and positions of the squared distance of channel-normalised features.

    LPIPS (Zhang et al., 2018, eq. 1) with unit weights, usable with any feature network.
    """
    terms = []
    for name, target in target_features.items():
        a = F.normalize(features[name].float(), dim=1, eps=1e-10)
        b = F.normalize(target.float(), dim=1, eps=1e-10)
        terms.append((a - b).square().sum(1).mean())
    return torch.stack(terms).mean()
