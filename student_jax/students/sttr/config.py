"""Architecture of STTR."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

RESNET50_WIDTHS = (256, 512, 1024, 2048)


@dataclasses.dataclass(frozen=True)
class STTRConfig:
    """Architecture of an `STTR`: everything needed to build one before its weights are loaded.

    `dataclasses.asdict` and `from_dict` are inverses of each other, also through JSON.
    """

    backbone: Literal["resnet50", "light"] = "resnet50"
    """"resnet50": torchvision's with frozen batch norm, for ImageNet or released STTR weights;
    "light": a few plain convolutions, trained from scratch with the rest."""
    content_widths: tuple[int, ...] = RESNET50_WIDTHS[:2]
    """Output channels of each stage of the content's backbone; their number sets the stride of
    the content tokens."""
    style_widths: tuple[int, ...] = RESNET50_WIDTHS
    """Likewise of the style's backbone."""
    hidden_dim: int = 256
    """Channels of a token."""
    num_heads: int = 8
    """Attention heads, each with an equal share of the channels."""
    num_encoder_layers: int = 6
    """Transformer layers over the style tokens."""
    num_decoder_layers: int = 6
    """Transformer layers over the content tokens."""
    mlp_dim: int = 2048
    """Hidden channels of the feed-forward part of a layer."""
    dropout: float = 0.1
    """Of attention weights, feed-forward and residual branches, in training."""
    tail_dim: int = 512
    """Channels of the tail at the content tokens' stride, halved at every upsampling."""
    tail_batch_norm: bool = True
    """Batch norm in the tail, over the batches of all devices together."""
    content_skips: bool = False
    """Add the backbone's finer content features, and the content's pixels, to the tail."""

    colour_map: bool = False
    """Change the content's colours as a whole by the style's statistics before the tail sees them;
    needs `content_skips`."""
    style_code: int = 0
    """Numbers that describe the style as a whole, by the statistics of its features, and scale and
    shift the tail's channels; 0 for none; needs `colour_map`."""

    @classmethod
    def reference(cls) -> "STTRConfig":
        """The released STTR demonstration model: 45.6 M parameters, 290 GFLOP at 512 px."""
        return cls()

    @classmethod
    def mini(cls) -> "STTRConfig":
        """A small model to train from scratch, on a CPU if need be."""
        return cls(
            backbone="light",
            content_widths=(24, 48, 96, 128),
            style_widths=(24, 48, 96, 128),
            hidden_dim=128,
            num_heads=4,
            num_encoder_layers=2,
            num_decoder_layers=3,
            mlp_dim=384,
            dropout=0.0,
            tail_dim=128,
            tail_batch_norm=False,
            content_skips=True,
            colour_map=True,
            style_code=64,
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "STTRConfig":
        """Rebuild a configuration from `dataclasses.asdict(config)`, read back from JSON or not.

        Raises:
            ValueError: when a field is unknown or missing, or a value is out of its range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if fields.keys() != names:
            raise ValueError(
                "not the fields of an STTRConfig: "
                f"unknown {sorted(fields.keys() - names)}, missing {sorted(names - fields.keys())}"
            )
        # JSON has lists only.
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    @property
    def content_stride(self) -> int:
        """Pixels a content token spans: content sides must be multiples of it."""
        return self._stride(self.content_widths)

    @property
    def style_stride(self) -> int:
        """Pixels a style token spans: style sides must be multiples of it."""
        return self._stride(self.style_widths)

    def _stride(self, widths: tuple[int, ...]) -> int:
        # ResNet's stem halves the picture twice before the first stage, which halves nothing.
        return 2 ** (len(widths) + 1) if self.backbone == "resnet50" else 2 ** len(widths)

    def __post_init__(self):
        if self.backbone not in ("resnet50", "light"):
            raise ValueError(f"backbone is {self.backbone!r}; expected 'resnet50' or 'light'")
        for name in ("content_widths", "style_widths"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ValueError(f"{name} is {widths}; expected one or more positive numbers")
            if self.backbone == "resnet50" and widths != RESNET50_WIDTHS[: len(widths)]:
                raise ValueError(
                    f"{name} is {widths}; a resnet50 has the first of {RESNET50_WIDTHS}"
                )
        for name in ("num_heads", "num_encoder_layers", "num_decoder_layers", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        # A head takes an equal share; the position encoding is sines and cosines of y and x.
        for divisor in (self.num_heads, 4):
            if self.hidden_dim < 1 or self.hidden_dim % divisor:
                raise ValueError(
                    f"hidden_dim is {self.hidden_dim}; expected a positive multiple of 4 "
                    f"and of num_heads ({self.num_heads})"
                )
        if self.colour_map and not self.content_skips:
            raise ValueError("colour_map is on without content_skips; it acts on what they carry")
        if self.style_code < 0:
            raise ValueError(f"style_code is {self.style_code}; expected 0 or more")
        if self.style_code and not self.colour_map:
            raise ValueError("style_code is set without colour_map; its numbers travel together")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected at least 0 and below 1")
        if self.tail_dim < 1 or self.tail_dim % self.content_stride:
            raise ValueError(
                f"tail_dim is {self.tail_dim}; it is halved at every upsampling, "
                f"so expected a positive multiple of the content stride ({self.content_stride})"
            )
