"""Stochastic inversion of a content and guided sampling under a style's condition."""

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from teacher_torch.inst.config import TIMESTEPS, InSTConfig
from teacher_torch.styleid.ddim import DDIMSchedule
from triplets import InputError


def adain(
    content: Float[Tensor, "b c h w"], style: Float[Tensor, "b c h2 w2"]
) -> Float[Tensor, "b c h w"]:
    """Content latents with the style's mean and deviation of each channel.

    As the authors do: of both the deviation is sqrt(unbiased variance + 1e-5).
    """

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        dims = (-2, -1)
        return x.mean(dims, keepdim=True), (x.var(dims, keepdim=True) + 1e-5).sqrt()

    (mean, std), (style_mean, style_std) = statistics(content), statistics(style)
    return (content - mean) / std * style_std + style_mean


class Stylisation:
    """How InST stylises, given conditions of styles (Zhang et al., CVPR 2023, section 3.3).

    Latents are scaled float32; row i of everything belongs to pair i, and pairs do not touch.

    The content is noised to level t0 = 1000 strength; the UNet, told of the style, predicts that
    noise; and noised again with the prediction, the content is where DDIM starts. Of its timesteps
    1 + i (1000 / N) it visits those below i = int(N strength). As in the authors' program, the
    latents of level t0 are taken for ones of the first of these, 681 for 700.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler,
        null_condition: Float[Tensor, "1 n d"],
        config: InSTConfig,
        rows_per_call: int = 64,
    ):
        """
        Args:
            unet: the denoising network.
            scheduler: any diffusers scheduler of the model; its noise schedule is read.
            null_condition: what guidance leads away from, the condition of the empty text.
            config: the method's settings.
            rows_per_call: most rows of one UNet call.

        Raises:
            InputError: a schedule of another length.
        """
        self.unet, self.config, self.rows_per_call = unet, config, rows_per_call
        self.null_condition = null_condition.to(unet.device, unet.dtype)
        self.after_call: Callable[[int], None] = lambda rows: None
        """Called with the number of rows after each UNet call, to follow the progress."""
        self._alphas = [float(a) for a in scheduler.alphas_cumprod]
        if len(self._alphas) != TIMESTEPS:
            raise InputError(
                f"--model has a noise schedule of {len(self._alphas)} timesteps; InST expects "
                f"{TIMESTEPS}, as Stable Diffusion has."
            )
        self._schedule = DDIMSchedule.from_scheduler(scheduler, config.num_steps, "paper")

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Those of sampling, from the noisiest."""
        return self._schedule.timesteps[: self.config.sampling_steps][::-1]

    def rows(self, pairs: int) -> int:
        """UNet rows of so many pairs."""
        guided = 1 if self.config.guidance == 1 else 2
        return pairs * (1 + guided * self.config.sampling_steps)

    def start(
        self, content: Float[Tensor, "b c h w"], style: Float[Tensor, "b c h2 w2"]
    ) -> Float[Tensor, "b c h w"]:
        """Clean latents to begin with: the content's, in the style's statistics if so set."""
        return adain(content, style) if self.config.adain else content

    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Latents at level t0."""
        level = self._alphas[self.config.noise_timestep]
        return level**0.5 * latents + (1 - level) ** 0.5 * noise

    @torch.inference_mode()
    def predict_noise(
        self, noisy: Float[Tensor, "b c h w"], conditions: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise that the UNet finds at level t0 under the style's condition, unguided."""
        timestep = self.config.noise_timestep
        output = self._predict(noisy, timestep, conditions.to(self.unet.dtype))
        if self._schedule.prediction_type == "epsilon":
            return output
        level = self._alphas[timestep]
        return level**0.5 * output + (1 - level) ** 0.5 * noisy

    def invert(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        conditions: Float[Tensor, "b n d"],
    ) -> Float[Tensor, "b c h w"]:
        """Stochastic inversion: clean latents at level t0, with the noise that fits the style."""
        predicted = self.predict_noise(self.add_noise(latents, noise), conditions)
        return self.add_noise(latents, predicted)

    @torch.inference_mode()
    def step(
        self, latents: Float[Tensor, "b c h w"], index: int, conditions: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """A DDIM step with guidance u + g (c - u), from timestep i = index to the one below.

        Returns the latents there, and the clean ones that the step predicts.
        """
        timestep, guidance = self._schedule.timesteps[index], self.config.guidance
        conditions = conditions.to(self.unet.dtype)
        if guidance == 1:
            output = self._predict(latents, timestep, conditions)
        else:
            both = torch.cat([self.null_condition.expand_as(conditions), conditions])
            null, own = self._predict(latents.repeat(2, 1, 1, 1), timestep, both).chunk(2)
            output = null + guidance * (own - null)
        levels = self._schedule.sampling_levels
        return self._schedule.step(latents, output, levels[index + 1], levels[index])

    def sample(
        self, latents: Float[Tensor, "b c h w"], conditions: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c h w"]:
        """Clean latents from those of level t0."""
        for index in reversed(range(self.config.sampling_steps)):
            latents, _ = self.step(latents, index, conditions)
        return latents

    def stylise(
        self,
        content: Float[Tensor, "b c h w"],
        style: Float[Tensor, "b c h2 w2"],
        noise: Float[Tensor, "b c h w"],
        conditions: Float[Tensor, "b n d"],
    ) -> Float[Tensor, "b c h w"]:
        """Stylised latents of contents, each with its own style, noise and condition."""
        inverted = self.invert(self.start(content, style), noise, conditions)
        return self.sample(inverted, conditions)

    def _predict(
        self, latents: Float[Tensor, "b c h w"], timestep: int, conditions: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c h w"]:
        outputs = []
        parts = (x.split(self.rows_per_call) for x in (latents, conditions))
        for some, told in zip(*parts, strict=True):
            t = torch.tensor(timestep, device=self.unet.device)
            outputs.append(self.unet(some.to(self.unet.dtype), t, told).sample.float())
            self.after_call(len(some))
        return torch.cat(outputs)
