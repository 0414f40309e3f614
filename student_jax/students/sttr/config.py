"""Architecture of STTR."""

import dataclasses

from student_jax.student import StudentConfig

RESNET50_WIDTHS = (256, 512, 1024, 2048)


@dataclasses.dataclass(frozen=True)
class STTRConfig(StudentConfig):
    """Architecture of an `STTR`; the defaults are the released demonstration model."""

    content_widths: tuple[int, ...] = RESNET50_WIDTHS[:2]
    """Output channels of each stage of the content's ResNet-50; their number sets the stride of
    the content tokens."""
    style_widths: tuple[int, ...] = RESNET50_WIDTHS
    """Likewise of the style's ResNet-50."""
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

    @classmethod
    def reference(cls) -> "STTRConfig":
        """The released STTR demonstration model: 45.6 M parameters, 290 GFLOP at 512 px."""
        return cls()

    @property
    def content_stride(self) -> int:
        """Pixels that a content token spans."""
        # ResNet's stem halves the picture twice before the first stage, which halves nothing.
        return 2 ** (len(self.content_widths) + 1)

    @property
    def style_stride(self) -> int:
        """Pixels that a style token spans."""
        return 2 ** (len(self.style_widths) + 1)

    def __post_init__(self):
        for name in ("content_widths", "style_widths"):
            widths = getattr(self, name)
            if not widths or widths != RESNET50_WIDTHS[: len(widths)]:
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected at least 0 and below 1")
        if self.tail_dim < 1 or self.tail_dim % self.content_stride:
            raise ValueError(
                f"tail_dim is {self.tail_dim}; it is halved at every upsampling, "
                f"so expected a positive multiple of the content stride ({self.content_stride})"
            )
