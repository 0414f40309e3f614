"""Settings of attention distillation."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from teacher_torch.styleid.config import ATTENTION_LAYERS, StyleIDConfig
from triplets import InputError


@dataclass(frozen=True)
class AttentionDistillationConfig:
    """Attention distillation (Zhou et al., CVPR 2025), alone or after StyleID.

    Raises:
        InputError: a setting that the method does not allow.
    """

    num_steps: Annotated[int, tyro.conf.arg(name="steps")] = 200
    """Timesteps that the latents are optimised at, from noisy to clean."""
    iterations: int = 1
    """Adam steps per timestep."""
    learning_rate: float = 0.05
    """Of Adam, in units of the scaled latents."""
    decay: bool = False
    """Let the learning rate fall linearly to zero over all steps; the paper keeps it constant."""
    content_weight: float = 0.25
    """Weight of the queries' distance to the content's (lambda); lower is more style."""
    layers: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    """Decoder self-attentions whose outputs are distilled, of 3 to 11; later is finer."""
    style_scale: float = 1.0
    """Multiplies the attention scores of the targets; above 1 is sharper. The authors use 1."""
    start: Literal["content", "styleid"] = "content"
    """Where the latents start: at the content, as published, or at StyleID's result."""
    styleid_steps: int = 10
    """DDIM steps of StyleID, if it is the start."""
    gamma: float = 0.75
    """Query preservation of StyleID, if it is the start."""
    temperature: float = 1.5
    """Attention temperature of StyleID, if it is the start."""

    def __post_init__(self):
        for name, most in (("num_steps", 999), ("iterations", 1000)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; expected 1 to {most}.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}; expected more than 0.")
        if not 0 <= self.content_weight < math.inf:
            raise InputError(f"content_weight is {self.content_weight}; expected 0 or more.")
        if not 0 < self.style_scale < math.inf:
            raise InputError(f"style_scale is {self.style_scale}; expected more than 0.")
        if not self.layers or set(self.layers) - set(ATTENTION_LAYERS):
            raise InputError(f"layers is {self.layers}; expected some of 3 to 11.")
        if len(set(self.layers)) != len(self.layers):
            raise InputError(f"layers {self.layers} repeats a layer.")
        self.styleid()  # refuses what StyleID cannot do

    def styleid(self) -> StyleIDConfig:
        """Settings of the StyleID that may come first."""
        return StyleIDConfig(
            num_steps=self.styleid_steps, gamma=self.gamma, temperature=self.temperature
        )

    @classmethod
    def paper(cls) -> "AttentionDistillationConfig":
        """As published: 200 steps from the content. 413 TFLOP per pair on Stable Diffusion 1.5."""
        return cls()

    @classmethod
    def after_styleid(cls) -> "AttentionDistillationConfig":
        """10 steps from the result of 10 steps of StyleID: an eighth of the published cost."""
        return cls(num_steps=10, start="styleid")
