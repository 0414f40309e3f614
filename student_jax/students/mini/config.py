"""Architecture of the mini student."""

import dataclasses

from student_jax.student import StudentConfig


@dataclasses.dataclass(frozen=True)
class MiniConfig(StudentConfig):
    """Architecture of a `MiniStudent`; the defaults are the bundled model's, with 2.6 M
    parameters."""

    content_widths: tuple[int, ...] = (24, 48, 96, 128)
    """Output channels of each stage of the content's backbone, which each halve the picture."""
    style_widths: tuple[int, ...] = (24, 48, 96, 128)
    """Likewise of the style's backbone."""
    hidden_dim: int = 128
    """Channels of a token."""
    num_heads: int = 4
    """Attention heads, each with an equal share of the channels."""
    num_encoder_layers: int = 2
    """Transformer layers over the style tokens."""
    num_decoder_layers: int = 3
    """Transformer layers over the content tokens."""
    mlp_dim: int = 384
    """Hidden channels of the feed-forward part of a layer."""
    dropout: float = 0.0
    """Of attention weights, feed-forward and residual branches, in training."""
    tail_dim: int = 128
    """Channels of the tail at the content tokens' stride, halved at every upsampling."""
    style_code: int = 64
    """Size of the code, computed from statistics of the style's features, that scales and shifts
    the tail's channels."""

    @property
    def content_stride(self) -> int:
        """Pixels that a content token spans."""
        return 2 ** len(self.content_widths)

    @property
    def style_stride(self) -> int:
        """Pixels that a style token spans."""
        return 2 ** len(self.style_widths)

    def __post_init__(self):
        for name in ("content_widths", "style_widths"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ValueError(f"{name} is {widths}; expected one or more positive numbers")
        positive = ("num_heads", "num_encoder_layers", "num_decoder_layers", "mlp_dim")
        for name in (*positive, "style_code"):
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
