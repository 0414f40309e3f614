"""Settings of InST."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from triplets import InputError

PLACEHOLDER = "*"
"""The word whose embedding is the style's."""
TIMESTEPS = 1000
"""Of Stable Diffusion's noise schedule, and of the mini model's."""


@dataclass(frozen=True)
class InSTConfig:
    """Inversion-based style transfer (Zhang et al., CVPR 2023).

    Raises:
        InputError: a setting that the method does not allow.
    """

    learned: Literal["module", "direct"] = "module"
    """What is learned of a style: the authors' inversion module in front of the text encoder, or
    the condition itself, which needs neither a text encoder nor CLIP."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP with its image tower, for the module: a folder or a hub id."""
    clip_input: Literal["released", "picture"] = "picture"
    """What CLIP sees: the style picture, or the nearly black one that the authors' program makes of
    it, which their published embeddings need."""
    prompt: str = PLACEHOLDER
    """Text of the condition; the style's embedding replaces the word *."""
    embeddings: Path | None = None
    """Folder of learned embeddings instead of a training: the authors' embeddings.pt or files of
    textual inversion, each named as its style picture."""
    training_steps: int = 6100
    """Optimiser steps per style."""
    batch: int = 1
    """Noises per style and step."""
    draws: int | None = None
    """Steps after which a style's noises come again; by default never, as published. A few noises
    are learned in few steps, at the price of others."""
    learning_rate: float = 1e-4
    """Of AdamW."""
    weight_decay: float = 0.01
    """Of AdamW."""
    together: int = 8
    """Styles that are trained together, which is faster than one after the other."""
    num_steps: Annotated[int, tyro.conf.arg(name="steps")] = 50
    """DDIM steps of the whole schedule, of which sampling takes the last: steps x strength."""
    strength: float = 0.7
    """How far the content is noised, above 0 to 0.999: more is more style."""
    guidance: float = 10.0
    """How far the style's condition is exaggerated; 1 is not at all, and halves the cost."""
    adain: bool = False
    """Start from the content's latents with the style's channel statistics."""

    def __post_init__(self):
        if PLACEHOLDER not in self.prompt:
            raise InputError(
                f'prompt is "{self.prompt}"; expected a text with the word {PLACEHOLDER}, in whose '
                "place the style goes."
            )
        for name in ("training_steps", "batch", "together"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.draws is not None and self.draws < 1:
            raise InputError(f"draws is {self.draws}; expected at least 1, or None.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}; expected more than 0.")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay is {self.weight_decay}; expected 0 or more.")
        if self.num_steps < 1 or TIMESTEPS % self.num_steps:
            raise InputError(
                f"num_steps is {self.num_steps}; expected a number that divides {TIMESTEPS}, such "
                "as 10, 20, 25 or 50."
            )
        if not 0 < self.strength <= 0.999:
            raise InputError(f"strength is {self.strength}; expected more than 0, at most 0.999.")
        if self.sampling_steps == 0:
            raise InputError(
                f"strength {self.strength} of {self.num_steps} steps is none; expected a strength "
                f"of at least {1 / self.num_steps:g}."
            )
        if not math.isfinite(self.guidance):
            raise InputError(f"guidance is {self.guidance}; expected a number, such as 10.")
        if self.learned == "direct" and self.embeddings is not None:
            raise InputError(
                'learned is "direct", which reads no embeddings; expected "module" with them.'
            )

    @property
    def sampling_steps(self) -> int:
        """DDIM steps that are taken; rounded down as in the authors' program."""
        return int(self.strength * self.num_steps)

    @property
    def noise_timestep(self) -> int:
        """Timestep that the content is noised to."""
        return int(self.strength * TIMESTEPS)

    @classmethod
    def direct(cls) -> "InSTConfig":
        """Without a text encoder, at the mini model's scale: no published setting."""
        return cls(
            learned="direct",
            training_steps=24,
            batch=8,
            draws=1,
            learning_rate=0.3,
            weight_decay=0.0,
            num_steps=10,
            guidance=3.0,
            adain=True,
        )

    @classmethod
    def paper(cls) -> "InSTConfig":
        """As published, on Stable Diffusion 1.x; steps and learning rate are the program's."""
        return cls()

    @classmethod
    def notebook(cls) -> "InSTConfig":
        """The authors' program of 2024, and what their published embeddings were made for."""
        return cls(clip_input="released", adain=True)
