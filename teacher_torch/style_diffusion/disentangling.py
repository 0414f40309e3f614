"""StyleDiffusion: removal of style, fine-tuning to one style, transfer.

Wang, Zhao and Xing, ICCV 2023. The authors published no program; constants and order follow the
paper as two independent implementations read it (README.md says where they differ).
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from teacher_torch.denoisers import Denoiser
from teacher_torch.guides import Guide
from teacher_torch.style_diffusion.config import StyleDiffusionConfig
from triplets import InputError


def luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Colour removal: ITU-R 601 luma in three equal channels, rounded to 8 bits as Pillow does.

    Pictures in [-1, 1] that come from 8 bits.
    """
    levels = ((images + 1) * 127.5).round().int()
    red, green, blue = levels.unbind(1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return (grey.to(images.dtype) / 127.5 - 1)[:, None].expand_as(images)


def points(last: int, count: int) -> tuple[int, ...]:
    """Timesteps from 0 to the last one, evenly, rounded down: S points of a DDIM way."""
    return tuple(int(i / (count - 1) * last) for i in range(count))


class Removed(NamedTuple):
    """What is left of pictures without their style."""

    states: Float[Tensor, "b c h w"]
    """Clean ones: I_c^c and I_s^c of the paper."""
    latents: Float[Tensor, "b c h w"]
    """The same at the transfer's timestep, where it starts."""


class Embedded(NamedTuple):
    """A content for tuning."""

    latents: Float[Tensor, "1 c h w"]
    """Where its transfer starts."""
    embedding: Float[Tensor, "1 d"]
    """Of the picture without its style."""


class StyleDiffusion:
    """The method on one pre-trained model."""

    def __init__(self, denoiser: Denoiser, guide: Guide, config: StyleDiffusionConfig):
        self.denoiser, self.guide, self.config = denoiser, guide, config
        self.after_call: Callable[[int], None] = lambda rows: None
        """Called with UNet rows after each call; a backward pass counts as another."""

    @torch.no_grad()
    def remove(self, images: Float[Tensor, "b 3 h w"]) -> Removed:
        """Colour and style removal with the pre-trained model, and inversion for the transfer."""
        config = self.config
        grey = self.denoiser.encode(luma(images))
        noisy = self.rise(grey, config.removal_time)
        states = self.fall(noisy, config.removal_time, config.removal_steps)
        return Removed(states, self.rise(states, config.transfer_time))

    @torch.no_grad()
    def rise(self, states: Float[Tensor, "b c h w"], last: int) -> Float[Tensor, "b c h w"]:
        """DDIM inversion from timestep 0 to the last."""
        times = points(last, self.config.forward_steps)
        for now, following in itertools.pairwise(times):
            prediction = self.denoiser.predict(states, now)
            states = self._move(following, prediction.clean, prediction.noise)
            self.after_call(len(states))
        return states

    @torch.no_grad()
    def fall(
        self,
        states: Float[Tensor, "b c h w"],
        last: int,
        steps: int,
        denoiser: Denoiser | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """DDIM sampling from the last timestep to 0 and on to no noise at all."""
        for now, following in self._way_down(last, steps):
            prediction = (denoiser or self.denoiser).predict(states, now)
            states = self._move(following, prediction.clean, prediction.noise)
            self.after_call(len(states))
        return states

    def transfer(
        self, latents: Float[Tensor, "b c h w"], tuned: Denoiser
    ) -> Float[Tensor, "b c h w"]:
        """Clean states of contents in the style that the network was tuned to."""
        return self.fall(latents, self.config.transfer_time, self.config.reverse_steps, tuned)

    @torch.no_grad()
    def embed(self, states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The guide's embeddings of clean states."""
        return self.guide.embed(self.denoiser.decode(states))

    def tune(
        self,
        style: Float[Tensor, "1 3 h w"],
        removed: Removed,
        contents: Sequence[Embedded],
        after_step: Callable[[float], None] = lambda loss: None,
    ) -> Denoiser:
        """The model with a network of its own for one style.

        Each pass samples from noisy states; after *every* step the loss of its predicted clean
        states makes an Adam step, and the states go on without gradients.

        Args:
            style: the picture, in colour, in [-1, 1].
            removed: it without its style.
            contents: taken in turn.
            after_step: called with the loss of each Adam step.

        Raises:
            InputError: the network's weights are not finite any more.
        """
        config = self.config
        tuned = copy.copy(self.denoiser)
        tuned.network = copy.deepcopy(self.denoiser.network).requires_grad_(True)
        optimiser = torch.optim.Adam(tuned.network.parameters(), lr=config.learning_rate)
        states = self.denoiser.encode(style)
        # The change that the style makes: of the picture in colour against what is left of it.
        with torch.no_grad():
            own = self.guide.embed(style.to(states.device))
        change = own - self.embed(removed.states)

        def reconstruction(clean: Tensor) -> Tensor:
            return config.style_weight * F.mse_loss(clean, states)

        for round_number in range(config.rounds):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * config.growth**round_number
            for _ in range(config.style_passes):
                self._pass(tuned, optimiser, removed.latents, reconstruction, after_step)
            for i in range(config.content_passes):
                content = contents[i % len(contents)]

                def disentanglement(clean: Tensor, content: Embedded = content) -> Tensor:
                    return self.disentanglement_loss(clean, content.embedding, change)

                self._pass(tuned, optimiser, content.latents, disentanglement, after_step)
        tuned.network.requires_grad_(False)
        if not all(parameter.isfinite().all() for parameter in tuned.network.parameters()):
            raise InputError(
                "tuning to a style diverges: give a smaller --learning-rate than "
                f"{config.learning_rate:g}, with another folder for the dataset."
            )
        return tuned

    def disentanglement_loss(
        self,
        clean: Float[Tensor, "1 c h w"],
        content: Float[Tensor, "1 d"],
        change: Float[Tensor, "1 d"],
    ) -> Float[Tensor, ""]:
        """The content shall change as the style's picture did: L1 and direction of embeddings,
        which are not normalised."""
        own = self.guide.embed(self.denoiser.decode(clean)) - content
        return self.config.l1_weight * F.l1_loss(own, change) + self.config.directional_weight * (
            1 - F.cosine_similarity(own, change).mean()
        )

    def _pass(
        self,
        tuned: Denoiser,
        optimiser: torch.optim.Optimizer,
        states: Tensor,
        loss_of: Callable[[Tensor], Tensor],
        after_step: Callable[[float], None],
    ) -> None:
        for now, following in self._way_down(self.config.transfer_time, self.config.reverse_steps):
            with torch.enable_grad():
                prediction = tuned.predict(states, now)
                loss = loss_of(prediction.clean)
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            states = self._move(following, prediction.clean.detach(), prediction.noise.detach())
            self.after_call(2)
            after_step(float(loss.detach()))

    def _way_down(self, last: int, steps: int) -> list[tuple[int, int]]:
        times = points(last, steps)[::-1]
        return list(zip(times, (*times[1:], -1), strict=True))

    def _move(self, following: int, clean: Tensor, noise: Tensor) -> Tensor:
        level = 1.0 if following < 0 else self.denoiser.levels[following]
        return level**0.5 * clean + (1 - level) ** 0.5 * noise
