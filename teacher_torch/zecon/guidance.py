"""ZeCon's sampling: a frozen diffusion model, guided at every step by a sum of losses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.denoisers import Denoiser, Prediction
from teacher_torch.guides import Guide
from teacher_torch.mini.perceptual import VGG16
from teacher_torch.zecon.config import WEIGHTS, ZeConConfig
from teacher_torch.zecon.losses import (
    contrastive_loss,
    directional_distance,
    feature_loss,
    range_loss,
    spherical_distance,
    squared_distance,
)
from teacher_torch.zecon.patches import PatchNumbers, cut_patches
from triplets import InputError

FEATURES = (0, 2, 5, 8, 11)
"""Encoder maps that are contrasted: the same numbers in every model, whatever they are there."""
POSITIONS = 256
"""Most positions of a map that are contrasted."""


class VGGSlices(VGG16):
    """relu1_1 and relu2_1 of VGG16 or VGG19.

    The authors give it pictures in [-1, 1] where [0, 1] is expected, so here they are too.
    """

    CONVOLUTIONS = (0, 2, 5)
    OUTPUTS: Mapping[int, str] = MappingProxyType({0: "relu1_1", 5: "relu2_1"})
    POOL_BEFORE = (5,)


@runtime_checkable
class Draws(Protocol):
    """All random numbers of a batch of pictures."""

    def noise(self, step: int, purpose: str, shape: tuple[int, ...]) -> Float[Tensor, "b c h w"]:
        """Normal noise of a step for "start", "sampler" or the content's side of a loss."""
        ...

    def patches(self, step: int, purpose: str, picture_px: tuple[int, int]) -> PatchNumbers:
        """Patches of a step for a loss; with "directional" also for "directional_content"."""
        ...

    def positions(self, step: int, layer: int, count: int) -> Int[Tensor, "b n"]:
        """At most `POSITIONS` of so many positions of a map, each once."""
        ...


class Content(NamedTuple):
    """What is kept of the contents."""

    clean: Float[Tensor, "b c h w"]
    """States of the pictures."""
    inverted: Float[Tensor, "b c h w"]
    """Where their inversion ends; not read if they become noise by drawing."""


class Target(NamedTuple):
    """Where the guide draws to."""

    target: Float[Tensor, "b d"]
    """Embedding of the style: of its prompt, or of its picture."""
    source: Float[Tensor, "b d"]
    """Embedding of what is left: of "Photo", or of the content."""


@dataclass(frozen=True)
class Step:
    """One guided step."""

    sample: Float[Tensor, "b c h w"]
    """States of the next, less noisy step."""
    clean: Float[Tensor, "b c h w"]
    """Predicted clean states, the result if this was the last step."""
    gradient: Float[Tensor, "b c h w"]
    """Of the weighted losses by the states."""
    losses: dict[str, Float[Tensor, " b"]]
    """Those with a weight, times it."""


class ZeCon:
    """The method on one model; rows are independent of each other."""

    def __init__(
        self,
        denoiser: Denoiser,
        guide: Guide,
        config: ZeConConfig,
        vgg: VGGSlices | None = None,
    ):
        """
        Args:
            denoiser: the frozen model.
            guide: embeds pictures.
            config: the settings.
            vgg: for the loss of features; needed if that has a weight.
        """
        self.denoiser, self.guide, self.config, self.vgg = denoiser, guide, config, vgg
        self.timesteps = denoiser.timesteps(config.num_steps)
        self.levels = tuple(denoiser.levels[t] for t in self.timesteps)
        self.start = config.num_steps - config.skip - 1
        """Index of the first step of sampling."""
        self.after_call: Callable[[int], None] = lambda rows: None
        """Called with UNet rows after each call; a backward pass counts as another."""

    @property
    def rows_per_step(self) -> int:
        """UNet rows of a step of one picture: forward and backward, and the encoder's three
        quarters of another if the contrastive loss is on."""
        return 3 if self.config.zecon_weight else 2

    @torch.no_grad()
    def invert(self, clean: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """DDIM inversion up to the level one above that of the first step of sampling."""
        x = clean
        for i in range(self.start + 1):
            prediction = self.denoiser.predict(x, self.timesteps[i])
            x = self._at(i + 1, prediction.clean, prediction.noise)
            self.after_call(len(x))
        return x

    def initial(self, content: Content, draws: Draws) -> Float[Tensor, "b c h w"]:
        """States that sampling starts from.

        With the sampler "ddpm" the inverted latents are the *noise* of a second noising, so that
        the content enters twice; with "ddim" they are the start, one level too noisy.
        """
        drawn = self.config.inversion == "ddpm"
        if self.config.sampler == "ddpm":
            noise = self._start_noise(content, draws) if drawn else content.inverted
            return self._at(self.start, content.clean, noise)
        if drawn:
            return self._at(self.start + 1, content.clean, self._start_noise(content, draws))
        return content.inverted

    def sample(
        self,
        content: Content,
        target: Target,
        draws: Draws,
        after_step: Callable[[int, Step], None] = lambda index, step: None,
    ) -> Float[Tensor, "b c h w"]:
        """The clean states that the last step predicts (with "ddpm" its gradient does nothing)."""
        x = self.initial(content, draws)
        for i in range(self.start, -1, -1):
            step = self.step(x, i, content.clean, target, draws)
            after_step(i, step)
            x = step.sample
            self.after_call(self.rows_per_step * len(x))
        return step.clean

    def step(
        self,
        x: Float[Tensor, "b c h w"],
        index: int,
        clean: Float[Tensor, "b c h w"],
        target: Target,
        draws: Draws,
    ) -> Step:
        """From the states of one step to those of the next.

        Raises:
            InputError: a gradient overflows.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            prediction = self.denoiser.predict(x, self.timesteps[index])
            losses = self.losses(x, prediction.clean, index, clean, target, draws)
            weighted = {name: self.config.weight(name) * loss for name, loss in losses.items()}
            gradient = torch.zeros_like(x)
            if weighted:
                (gradient,) = torch.autograd.grad(torch.stack(list(weighted.values())).sum(), x)
        # There are no values on the meta device, where operations are counted.
        if gradient.device.type != "meta" and not gradient.isfinite().all():
            raise InputError(
                f"a gradient of the guidance overflows in {self._dtype()}: use --dtype bfloat16 or "
                "float32, with another folder for the dataset."
            )
        x, prediction = (
            x.detach(),
            Prediction(*(p if p is None else p.detach() for p in prediction)),
        )
        weighted = {name: loss.detach() for name, loss in weighted.items()}
        if self.config.sampler == "ddim":
            noise = prediction.noise + (1 - self.levels[index]) ** 0.5 * gradient
            moved = self._clean(x, noise, index)
            return Step(self._at(index - 1, moved, noise), moved, gradient, weighted)
        mean, variance = self.posterior(x, prediction, index)
        sample = mean - variance * gradient
        if index > 0:
            noise = draws.noise(index, "sampler", tuple(x.shape)).to(x)
            sample = sample + variance.sqrt() * noise
        return Step(sample, prediction.clean, gradient, weighted)

    def posterior(
        self, x: Float[Tensor, "b c h w"], prediction: Prediction, index: int
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of the step before (Ho et al., 2020, eq. 7; Nichol & Dhariwal, 2021,
        eq. 15). A model that learned no variance takes the smaller one."""
        small, beta = self._variances(index)
        level, before = self.levels[index], self._level(index - 1)
        mean = (
            beta * before**0.5 / (1 - level) * prediction.clean
            + (1 - before) * (1 - beta) ** 0.5 / (1 - level) * x
        )
        # At the last step the smaller is zero; its logarithm is that of the step before.
        small = small if index > 0 else self._variances(1)[0]
        smallest = torch.tensor(small, dtype=torch.float64).log().to(x)
        largest = torch.tensor(beta, dtype=torch.float64).log().to(x)
        share = 0.0 if prediction.variance is None else (prediction.variance + 1) / 2
        log_variance = share * largest + (1 - share) * smallest
        return mean, log_variance.exp().expand_as(x)

    def losses(
        self,
        x: Float[Tensor, "b c h w"],
        predicted: Float[Tensor, "b c h w"],
        index: int,
        clean: Float[Tensor, "b c h w"],
        target: Target,
        draws: Draws,
    ) -> dict[str, Float[Tensor, " b"]]:
        """The losses that have a weight, before it, with gradients to `x`.

        Args:
            x: noisy states.
            predicted: clean states that the network predicts of them, with gradients.
            index: of the step.
            clean: states of the contents.
            target: of the guide.
            draws: random numbers; the content's noise is drawn anew for every loss.
        """
        share = (1 - self.levels[index]) ** 0.5
        mixed = predicted * share + x * (1 - share)
        on = {name for name in WEIGHTS if self.config.weight(name)}
        picture = self.denoiser.decode(mixed) if on - {"zecon", "mse"} else None
        size = () if picture is None else tuple(picture.shape[-2:])

        @torch.no_grad()
        def content(purpose: str) -> Tensor:
            noise = draws.noise(index, purpose, tuple(x.shape)).to(x)
            return clean * share + self._at(index, clean, noise) * (1 - share)

        def embedded(images: Tensor, purpose: str) -> Float[Tensor, "b n d"]:
            patches = cut_patches(images, draws.patches(index, purpose, size), self.config.patch_px)
            return self.guide.embed(patches).unflatten(0, (len(x), -1))

        direction = (target.target - target.source)[:, None]
        losses = {}
        for name in ("global", "global_patch"):
            if name in on:
                distance = spherical_distance(embedded(picture, name), target.target[:, None])
                losses[name] = distance.mean(1)
        if "directional" in on:
            with torch.no_grad():
                other = embedded(
                    self.denoiser.decode(content("directional")), "directional_content"
                )
            change = embedded(picture, "directional") - other
            losses["directional"] = directional_distance(change, direction).mean(1)
        if "directional_patch" in on:
            with torch.no_grad():  # of the whole picture, which the authors embed for every patch
                whole = self.guide.embed(self.denoiser.decode(content("directional_patch")))
            change = embedded(picture, "directional_patch") - whole[:, None]
            losses["directional_patch"] = directional_distance(change, direction).mean(1)
        if "zecon" in on:
            queries = self.denoiser.features(mixed, FEATURES)
            with torch.no_grad():
                keys = self.denoiser.features(content("zecon"), FEATURES)
            positions = [
                draws.positions(index, layer, q.shape[-2] * q.shape[-1])
                for layer, q in zip(FEATURES, queries, strict=True)
            ]
            losses["zecon"] = contrastive_loss(queries, keys, positions)
        if "mse" in on:
            losses["mse"] = squared_distance(mixed, content("mse"))
        if "vgg" in on:
            with torch.no_grad():
                other = self.vgg(self.denoiser.decode(content("vgg")))
            losses["vgg"] = feature_loss(self.vgg(picture), other)
        if self.config.range_weight:
            losses["range"] = range_loss(self.denoiser.decode(predicted))
        return losses

    def _start_noise(self, content: Content, draws: Draws) -> Tensor:
        return draws.noise(self.start, "start", tuple(content.clean.shape)).to(content.clean)

    def _level(self, index: int) -> float:
        """Signal before the first step is all, after the last none."""
        if index < 0:
            return 1.0
        return self.levels[index] if index < len(self.levels) else 0.0

    def _at(self, index: int, clean: Tensor, noise: Tensor) -> Tensor:
        level = self._level(index)
        return level**0.5 * clean + (1 - level) ** 0.5 * noise

    def _clean(self, x: Tensor, noise: Tensor, index: int) -> Tensor:
        level = self.levels[index]
        return x / level**0.5 - (1 / level - 1) ** 0.5 * noise

    def _variances(self, index: int) -> tuple[float, float]:
        """The smaller and the larger variance of a step."""
        level, before = self.levels[index], self._level(index - 1)
        beta = 1 - level / before
        return beta * (1 - before) / (1 - level), beta

    def _dtype(self) -> str:
        return str(self.denoiser.network.dtype).removeprefix("torch.")


def load_vgg_slices(path: Path | None, device: torch.device) -> VGGSlices:
    """The network of a file with torchvision's names, or the bundled VGG16.

    Raises:
        InputError: the file cannot be read, or lacks a layer.
    """
    if path is None:
        return VGGSlices().to(device).eval()
    try:
        vgg = VGGSlices(path)
        for i in VGGSlices.CONVOLUTIONS:
            getattr(vgg, f"features_{i}_weight"), getattr(vgg, f"features_{i}_bias")
    except Exception as error:  # safetensors raises its own kinds
        raise InputError(
            f'--vgg19 "{path}" is no safetensors file with torchvision\'s VGG19 '
            "(features.0.weight and so on)."
        ) from error
    return vgg.to(device).eval()
