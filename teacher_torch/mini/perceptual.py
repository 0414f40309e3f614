"""VGG16 features, Gram distance and LPIPS, from the small networks that the project carries."""

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


def _channel(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


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
        self.register_buffer("mean", _channel(IMAGENET_MEAN))
        self.register_buffer("std", _channel(IMAGENET_STD))
        for name, value in load_file(weights).items():
            self.register_buffer(name.replace(".", "_"), value.float())

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


def gram_matrix(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    """F^T F / (h w c) of each sample (Gatys et al., 2016, eq. 3, normalised)."""
    _, c, h, w = features.shape
    flat = features.flatten(2).float()
    return flat @ flat.transpose(1, 2) / (h * w * c)


def relative_gram_distance(
    features: Mapping[str, Tensor], style_features: Mapping[str, Tensor]
) -> Float[Tensor, " b"]:
    """Mean over the slices of ||G(x) - G(s)||_F / ||G(s)||_F: 0 for the style itself."""
    distances = []
    for name, style in style_features.items():
        gram, target = gram_matrix(features[name]), gram_matrix(style)
        distances.append((gram - target).norm(dim=(1, 2)) / target.norm(dim=(1, 2)))
    return torch.stack(distances).mean(0)


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


class LPIPS(nn.Module):
    """LPIPS v0.1 `alex` (Zhang et al., CVPR 2018).

    Call: two float [b 3 h w] in [0, 1], h and w at least 64 -> distance [b], 0 for equal pictures.
    """

    LAYERS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # index, stride, padding
    SHIFT = (-0.030, -0.088, -0.188)
    SCALE = (0.458, 0.448, 0.450)

    def __init__(self, weights: Path = WEIGHTS / "lpips_alex.fp16.safetensors"):
        super().__init__()
        self.register_buffer("shift", _channel(self.SHIFT))
        self.register_buffer("scale", _channel(self.SCALE))
        for name, value in load_file(weights).items():
            self.register_buffer(name.replace(".", "_"), value.float())

    def _features(self, images: Tensor) -> list[Tensor]:
        x = (2 * images - 1 - self.shift) / self.scale
        features = []
        for i, stride, padding in self.LAYERS:
            if i in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (
                getattr(self, f"features_{i}_weight"),
                getattr(self, f"features_{i}_bias"),
            )
            x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
            features.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return features

    def forward(
        self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        total = torch.zeros(len(a), device=a.device)
        for i, (x, y) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            head = getattr(self, f"lin{i}_weight").view(1, -1, 1, 1)
            total = total + ((x - y).square() * head).sum(1).mean((1, 2))
        return total
