"""Settings of the StyleID teacher."""

import math
from dataclasses import dataclass
from typing import Literal

ATTENTION_LAYERS = tuple(range(3, 12))
"""Decoder self-attentions of a Stable Diffusion UNet: i is up_blocks[i // 3].attentions[i % 3]."""


@dataclass(frozen=True)
class StyleIDConfig:
    """Style injection in diffusion (Chung et al., CVPR 2024).

    The authors published two programs that differ in more than speed; `convention` picks whose
    timestep pairing, initial AdaIN and final decoding are followed (see `teacher_torch.ddim`).
    """

    num_steps: int = 50
    """DDIM steps of the inversion. Sampling takes as many ("port") or one less ("paper")."""
    gamma: float = 0.75
    """Query preservation, 0 to 1: the share of the content's query; lower is more style (eq. 8)."""
    temperature: float = 1.5
    """Multiplies the attention scores of injected layers; above 1 is sharper (eq. 9)."""
    injection_layers: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    """Decoder self-attentions that receive the style, 3 to 11; later is finer."""
    convention: Literal["paper", "port"] = "paper"
    """"paper": the authors' original program; "port": their diffusers port."""
    adain_init: bool = True
    """Start from the content's inverted latents with the style's channel statistics (eq. 10)."""
    inject_attention: bool = True
    """Inject keys and values of the style; off only to study the method."""

    def __post_init__(self):
        if not 2 <= self.num_steps <= 999:
            raise ValueError(f"num_steps is {self.num_steps}; expected 2 to 999.")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; expected 0 (all style) to 1 (all content).")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; expected a positive number.")
        if not self.injection_layers:
            raise ValueError("injection_layers is empty; expected some of 3 to 11.")
        if unknown := sorted(set(self.injection_layers) - set(ATTENTION_LAYERS)):
            raise ValueError(f"injection_layers {unknown} do not exist; expected some of 3 to 11.")
        if len(set(self.injection_layers)) != len(self.injection_layers):
            raise ValueError(f"injection_layers {self.injection_layers} repeats a layer.")
        if self.convention not in ("paper", "port"):
            raise ValueError(f'convention is "{self.convention}"; expected "paper" or "port".')

    @classmethod
    def paper(cls) -> "StyleIDConfig":
        """The original program: 50 + 49 steps, layers 6 to 11. Reproduces the paper's figures."""
        return cls()

    @classmethod
    def port(cls) -> "StyleIDConfig":
        """The authors' diffusers port: 20 + 20 steps, layers 7 to 11."""
        return cls(num_steps=20, injection_layers=(7, 8, 9, 10, 11), convention="port")
