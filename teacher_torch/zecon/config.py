"""Settings of ZeCon and of what is honestly called after it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from triplets import InputError

NAMES = {
    "clip_text": "ZeCon",
    "clip_image": "ZeCon, image-guided variant",
    "vgg16": "patch-contrastive guidance with VGG style statistics (after ZeCon)",
}
"""What the method may be called, by its guide."""
WEIGHTS = ("global", "global_patch", "directional", "directional_patch", "zecon", "mse", "vgg")
"""Losses that have a weight, in the order in which the authors' program draws their noise; the
range's comes last and draws none."""


@dataclass(frozen=True)
class ZeConConfig:
    """Zero-shot contrastive loss for text-guided style transfer (Yang et al., ICCV 2023).

    Raises:
        InputError: a setting that the method does not allow.
    """

    guide: Literal["clip_text", "clip_image", "vgg16"] = "clip_text"
    """What draws towards the style: "clip_text" the prompt that is the style picture's file name,
    as published; "clip_image" the style picture in CLIP's eyes; "vgg16" its VGG16 statistics."""
    clip: str = "openai/clip-vit-base-patch16"
    """CLIP's weights: a folder or a hub id."""
    source_prompt: str = "Photo"
    """Text that describes the contents, for guide "clip_text"."""
    vgg19: Path | None = None
    """safetensors file with torchvision's VGG19 for the loss of features; by default the bundled
    VGG16, which is of the same shape there."""
    num_steps: Annotated[int, tyro.conf.arg(name="steps")] = 50
    """Steps of the whole noise schedule."""
    skip: int = 25
    """Noisiest steps that are left out: fewer give more style and less content."""
    inversion: Literal["ddim", "ddpm"] = "ddim"
    """How the content becomes noise: DDIM inversion, or drawn noise."""
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    """"ddpm" puts the inverted latents in the noise's place of a second noising, as the authors'
    program; "ddim" starts from them."""
    patches: int = 32
    """Random patches that the guide sees of each picture and step."""
    patch_areas: tuple[float, float] = (0.01, 0.3)
    """Least and largest share of the picture that a patch is cut from."""
    patch_px: int = 128
    """Side of the patches in pixels, before the guide's own size."""
    distortion: float = 0.7
    """Of the patches' perspective, 0 to 1."""
    global_weight: float = 0.0
    """Weight of the whole pictures' distance to the target."""
    global_patch_weight: float = 10000.0
    """Weight of the patches' distance to the target."""
    directional_weight: float = 0.0
    """Weight of the direction in which whole pictures leave the content."""
    directional_patch_weight: float = 20000.0
    """Weight of the direction in which patches leave the content."""
    zecon_weight: float = 500.0
    """Weight of the contrastive loss that keeps the content."""
    mse_weight: float = 5000.0
    """Weight of the states' squared distance to the content's."""
    vgg_weight: float = 100.0
    """Weight of the VGG features' squared distance to the content's."""
    range_weight: float = 50.0
    """Weight that keeps pixels within their range."""

    def __post_init__(self):
        if self.guide not in NAMES:
            raise InputError(
                f'guide is "{self.guide}"; expected {" or ".join(f"{name!r}" for name in NAMES)}.'
            )
        for name, kinds in (("inversion", ("ddim", "ddpm")), ("sampler", ("ddpm", "ddim"))):
            if getattr(self, name) not in kinds:
                raise InputError(
                    f'{name} is "{getattr(self, name)}"; expected "{kinds[0]}" or "{kinds[1]}".'
                )
        if not 2 <= self.num_steps <= 999:
            raise InputError(f"num_steps is {self.num_steps}; expected 2 to 999.")
        if not 1 <= self.skip < self.num_steps:
            raise InputError(
                f"skip is {self.skip}; expected 1 to {self.num_steps - 1}, less than the steps."
            )
        if self.guide == "clip_text" and not self.source_prompt.strip():
            raise InputError("source_prompt is empty; expected words such as Photo.")
        low, high = self.patch_areas
        if not 0 < low <= high <= 1:
            raise InputError(f"patch_areas is {low} {high}; expected two shares, 0 to 1, rising.")
        for name, least in (("patches", 1), ("patch_px", 16)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected {least} or more.")
        if not 0 <= self.distortion <= 1:
            raise InputError(f"distortion is {self.distortion}; expected 0 to 1.")
        for name in (*WEIGHTS, "range"):
            if not 0 <= self.weight(name) < math.inf:
                raise InputError(f"{name}_weight is {self.weight(name)}; expected 0 or more.")

    def weight(self, loss: str) -> float:
        """The weight of a loss of `WEIGHTS`, or of "range"."""
        return getattr(self, f"{loss}_weight")

    @classmethod
    def vgg_statistics(cls) -> "ZeConConfig":
        """Runs offline on the mini model: VGG16 statistics of the style picture, 12 of 20 steps."""
        return cls(
            guide="vgg16",
            num_steps=20,
            skip=8,
            sampler="ddim",
            patches=4,
            patch_areas=(0.05, 0.2),
            patch_px=64,
            distortion=0.0,
            global_patch_weight=500.0,
            directional_patch_weight=2000.0,
            zecon_weight=10.0,
            mse_weight=200.0,
            vgg_weight=0.0,
            range_weight=0.0,
        )

    @classmethod
    def paper(cls) -> "ZeConConfig":
        """The authors' command: a prompt per style, 25 of 50 steps, CLIP ViT-B/16."""
        return cls()

    @classmethod
    def clip_image(cls) -> "ZeConConfig":
        """The same with the style picture's CLIP embedding in the prompt's place."""
        return cls(guide="clip_image")
