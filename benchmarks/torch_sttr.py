"""The reference student in PyTorch, to time ours against, by the names of its authors' weights.

The network is that of Wang et al., "Fine-Grained Image Style Transfer with Visual Transformers",
ACCV 2022, without dropout; pictures are float [b 3 h w] in [0, 1].
"""

import math

import torch
from torch import nn

from student_jax.nets import imagenet
from student_jax.nets.resnet import BLOCKS

MEAN, STD = (torch.from_numpy(x).view(1, 3, 1, 1) for x in (imagenet.MEAN, imagenet.STD))


class FrozenBatchNorm(nn.Module):
    """Batch norm of constants."""

    def __init__(self, dim):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(dim))

    def forward(self, x):
        """Normalise every channel."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class Bottleneck(nn.Module):
    """torchvision's, v1.5."""

    def __init__(self, in_dim, out_dim, stride):
        super().__init__()
        mid = out_dim // 4
        self.conv1, self.bn1 = nn.Conv2d(in_dim, mid, 1, bias=False), FrozenBatchNorm(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False)
        self.bn2 = FrozenBatchNorm(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, out_dim, 1, bias=False), FrozenBatchNorm(out_dim)
        self.downsample = nn.Identity()
        if in_dim != out_dim:
            conv = nn.Conv2d(in_dim, out_dim, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, FrozenBatchNorm(out_dim))

    def forward(self, x):
        """Residual block."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu()


class Backbone(nn.Module):
    """ResNet-50 up to a layer."""

    def __init__(self, widths):
        super().__init__()
        body = {"conv1": nn.Conv2d(3, 64, 7, 2, 3, bias=False), "bn1": FrozenBatchNorm(64)}
        body |= {"relu": nn.ReLU(), "maxpool": nn.MaxPool2d(3, 2, 1)}
        dim = 64
        for i, width in enumerate(widths):
            blocks = [
                Bottleneck(dim if j == 0 else width, width, 2 if i and j == 0 else 1)
                for j in range(BLOCKS[i])
            ]
            body[f"layer{i + 1}"], dim = nn.Sequential(*blocks), width
        self.body = nn.Sequential()
        for name, module in body.items():
            self.body.add_module(name, module)

    def forward(self, x):
        """The last layer's features."""
        return self.body(x)


class Layer(nn.Module):
    """A post-norm transformer layer; with `cross` it also attends to a memory."""

    def __init__(self, config, cross, weights):
        super().__init__()
        dim, self.weights = config.hidden_dim, weights
        self.self_attn = nn.MultiheadAttention(dim, config.num_heads, batch_first=True)
        self.multihead_attn = (
            nn.MultiheadAttention(dim, config.num_heads, batch_first=True) if cross else None
        )
        self.linear1, self.linear2 = nn.Linear(dim, config.mlp_dim), nn.Linear(config.mlp_dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if cross else None

    def forward(self, x, position, memory=None, memory_position=None):
        """Tokens to tokens."""
        q = x + position
        # With the weights asked for, PyTorch computes whole matrices, as the authors' code does.
        x = self.norm1(x + self.self_attn(q, q, x, need_weights=self.weights)[0])
        if self.multihead_attn is None:
            return self.norm2(x + self.linear2(self.linear1(x).relu()))
        key = memory + memory_position
        y = self.multihead_attn(x + position, key, memory, need_weights=self.weights)[0]
        x = self.norm2(x + y)
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class ResBlock(nn.Module):
    """Pre-activation bottleneck of half the width."""

    def __init__(self, dim):
        super().__init__()
        mid, parts = dim // 2, []
        for a, b, size in ((dim, mid, 1), (mid, mid, 3), (mid, dim, 1)):
            parts += [nn.BatchNorm2d(a), nn.LeakyReLU(0.01), nn.Conv2d(a, b, size, 1, size // 2)]
        self.net = nn.Sequential(*parts)

    def forward(self, x):
        """Residual block."""
        return x + self.net(x)


class TorchSTTR(nn.Module):
    """The whole network.

    Args:
        config: an `STTRConfig` of the authors' kind.
        weights: compute attention by whole matrices, rather than by
            `scaled_dot_product_attention`.
    """

    def __init__(self, config, weights):
        super().__init__()
        dim, tail_dim = config.hidden_dim, config.tail_dim
        self.backbone_content = Backbone(config.content_widths)
        self.backbone_style = Backbone(config.style_widths)
        self.input_proj_c = nn.Conv2d(config.content_widths[-1], dim, 1)
        self.input_proj_s = nn.Conv2d(config.style_widths[-1], dim, 1)
        self.output_proj = nn.Conv2d(dim, tail_dim, 1)
        transformer = {
            "encoder": [Layer(config, False, weights) for _ in range(config.num_encoder_layers)],
            "decoder": [Layer(config, True, weights) for _ in range(config.num_decoder_layers)],
        }
        self.transformer = nn.ModuleDict(
            {
                name: nn.ModuleDict({"layers": nn.ModuleList(layers)})
                for name, layers in transformer.items()
            }
        )
        self.transformer["decoder"]["norm"] = nn.LayerNorm(dim)
        tail = []
        stages = config.content_stride.bit_length() - 1
        for r in range(stages):
            width = tail_dim // 2**r
            out = 3 if r == stages - 1 else width // 2
            tail += [
                ResBlock(width),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.ReflectionPad2d(1),
                nn.Conv2d(width, out, 3),
            ]
        self.tail = nn.Sequential(*tail)

    def forward(self, content, style):
        """Stylise."""
        style = self.input_proj_s(self.backbone_style((style - MEAN) / STD))
        memory, memory_position = style.flatten(2).mT, position_encoding(style)
        for layer in self.transformer["encoder"]["layers"]:
            memory = layer(memory, memory_position)
        content = self.input_proj_c(self.backbone_content((content - MEAN) / STD))
        x, position = content.flatten(2).mT, position_encoding(content)
        for layer in self.transformer["decoder"]["layers"]:
            x = layer(x, position, memory, memory_position)
        x = self.transformer["decoder"]["norm"](x).mT.reshape(content.shape)
        return self.tail(self.output_proj(x)) * STD + MEAN


def position_encoding(grid):
    """Of DETR: sines and cosines of the row, then of the column."""
    _, c, h, w = grid.shape
    frequencies = 10000.0 ** (-torch.arange(0, c // 2, 2) / (c // 2))

    def encode(n):
        angle = 2 * math.pi * torch.arange(1, n + 1) / (n + 1e-6)
        angle = angle[:, None] * frequencies
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)

    rows = encode(h)[:, None].expand(h, w, c // 2)
    columns = encode(w)[None].expand(h, w, c // 2)
    return torch.cat([rows, columns], -1).reshape(1, h * w, c)
