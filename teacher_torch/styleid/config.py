"""Settings of StyleID."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from triplets import InputError

ATTENTION_LAYERS = tuple(range(3, 12))
"""Decoder self-attentions of a Stable Diffusion UNet: i is up_blocks[i // 3].attentions[i % 3]."""


@dataclass(frozen=True)
class StyleIDConfig:
    """Style injection in diffusion (Chung et al., CVPR 2024).

    The authors published two programs that differ in more than speed; `convention` picks whose
    timestep pairing, initial AdaIN and final decoding are followed (see the `ddim` module).

    Raises:
        InputError: a setting that the method does not allow.
    """

    num_steps: Annotated[int, tyro.conf.arg(name="steps")] = 50
    """DDIM steps of the inversion; sampling takes as many ("port") or one less ("paper")."""
    gamma: float = 0.75
    """Query preservation, 0 (more style) to 1 (more content): the share of the content's query."""
    temperature: float = 1.5
    """Sharpness of the injected attention: multiplies its scores; 1 leaves them as they are."""
    injection_layers: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    """Decoder self-attentions that receive the style, of 3 to 11; later ones are finer."""
    convention: Literal["paper", "port"] = "paper"
    """"paper": the authors' original program; "port": their diffusers port."""
    adain_init: bool = True
    """Start from the content's inverted latents with the style's channel statistics."""
    inject_attention: bool = True
    """Inject keys and values of the style; switch it off only to study the method."""

    def __post_init__(self):
        if not 2 <= self.num_steps <= 999:
            raise InputError(f"num_steps is {self.num_steps}; expected 2 to 999.")
        if not 0 <= self.gamma <= 1:
            raise InputError(f"gamma is {self.gamma}; expected 0 (all style) to 1 (all content).")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; expected a positive number.")
        if not self.injection_layers:
            raise InputError("injection_layers is empty; expected some of 3 to 11.")
        if unknown := sorted(set(self.injection_layers) - set(ATTENTION_LAYERS)):
            raise InputError(f"injection_layers {unknown} do not exist; expected some of 3 to 11.")
        if len(set(self.injection_layers)) != len(self.injection_layers):
            raise InputError(f"injection_layers {self.injection_layers} repeats a layer.")
        if self.convention not in ("paper", "port"):
            raise InputError(f'convention is "{self.convention}"; expected "paper" or "port".')

    @classmethod
    def paper(cls) -> "StyleIDConfig":
        """The original program: 50 + 49 steps, layers 6 to 11. Reproduces the paper's figures."""
        return cls()

    @classmethod
    def port(cls) -> "StyleIDConfig":
        """The authors' diffusers port: 20 + 20 steps, layers 7 to 11."""
        return cls(num_steps=20, injection_layers=(7, 8, 9, 10, 11), convention="port")
