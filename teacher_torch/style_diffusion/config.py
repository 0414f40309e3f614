"""Settings of StyleDiffusion and of what is honestly called after it."""

import math
from dataclasses import dataclass
from typing import Literal

from triplets import InputError

NAMES = {
    "clip": "StyleDiffusion",
    "vgg16": "per-style fine-tuning with VGG statistics (after StyleDiffusion)",
}
"""What the method may be called, by its guide."""
LAST_TIMESTEP = 999


@dataclass(frozen=True)
class StyleDiffusionConfig:
    """Style disentangled, then learned by one fine-tuned network per style (Wang et al., 2023).

    Raises:
        InputError: a setting that the method does not allow.
    """

    guide: Literal["clip", "vgg16"] = "clip"
    """In whose eyes style is disentangled: CLIP's, as published, or VGG16's statistics."""
    clip: str = "openai/clip-vit-base-patch16"
    """CLIP's weights: a folder or a hub id."""
    tuning_contents: str | None = None
    """Folder of pictures, or tfds:NAME:SPLIT, that every style is tuned on, of which the first are
    taken; by default the five bundled samples."""
    removal_time: int = 603
    """Timestep up to which style is removed; higher removes more."""
    transfer_time: int = 301
    """Timestep from which style is put in; higher keeps less of the content."""
    forward_steps: int = 40
    """Points of the way up, of removal and transfer (S_for)."""
    removal_steps: int = 40
    """Steps of the way down of the removal."""
    reverse_steps: int = 6
    """Steps of the way down of the transfer, in tuning and afterwards (S_rev)."""
    rounds: int = 5
    """Rounds of tuning (K)."""
    style_passes: int = 50
    """Reconstructions of the style per round (K_s)."""
    content_passes: int = 50
    """Contents per round; every pass takes `reverse_steps` Adam steps."""
    learning_rate: float = 4e-6
    """Of Adam, in the first round."""
    growth: float = 1.2
    """What the learning rate is multiplied by after each round."""
    style_weight: float = 1.0
    """Weight of the style's reconstruction."""
    l1_weight: float = 10.0
    """Weight of the absolute difference of changes of style."""
    directional_weight: float = 1.0
    """Weight of the direction of changes of style."""
    keep_states: bool = False
    """Keep each tuned network in the dataset; by default it goes when its last pair is written."""

    def __post_init__(self):
        if self.guide not in NAMES:
            raise InputError(f'guide is "{self.guide}"; expected "clip" or "vgg16".')
        for name in ("removal_time", "transfer_time"):
            if not 1 <= getattr(self, name) <= LAST_TIMESTEP:
                raise InputError(
                    f"{name} is {getattr(self, name)}; expected 1 to {LAST_TIMESTEP}, a timestep."
                )
        for name, time in (
            ("forward_steps", min(self.removal_time, self.transfer_time)),
            ("removal_steps", self.removal_time),
            ("reverse_steps", self.transfer_time),
        ):
            if not 2 <= getattr(self, name) <= time + 1:
                raise InputError(
                    f"{name} is {getattr(self, name)}; expected 2 to {time + 1}, so that no "
                    "timestep comes twice."
                )
        for name in ("rounds", "style_passes", "content_passes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        for name in ("learning_rate", "growth"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0.")
        for name in ("style_weight", "l1_weight", "directional_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more.")

    @property
    def adam_steps(self) -> int:
        """Of tuning one style: 3,000 as published."""
        return self.rounds * (self.style_passes + self.content_passes) * self.reverse_steps

    @property
    def removal_rows(self) -> int:
        """UNet rows that take one picture to where transfer starts."""
        return 2 * (self.forward_steps - 1) + self.removal_steps

    @classmethod
    def vgg_statistics(cls) -> "StyleDiffusionConfig":
        """Runs offline on the mini model: VGG16 statistics, 90 Adam steps, larger ones."""
        return cls(
            guide="vgg16",
            forward_steps=10,
            removal_steps=10,
            rounds=1,
            style_passes=10,
            content_passes=5,
            learning_rate=1e-4,
        )

    @classmethod
    def paper(cls) -> "StyleDiffusionConfig":
        """3,000 Adam steps of 4e-6 per style, CLIP ViT-B/16."""
        return cls()
