"""StyleID: training-free style transfer with a pre-trained latent diffusion model."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.latent_diffusion import decode, encode
from teacher_torch.styleid.attention import Rows, StyleInjection, cut, plan_calls
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.ddim import DDIMSchedule, adain


@dataclass(frozen=True)
class Inversion:
    """DDIM inversion of a batch of pictures: latents only, features are recomputed when needed."""

    latents: Float[Tensor, "n b c h w"]
    """float32, N + 1 steps: [0] is the picture, [i] is seen by the network at t_i, [N] is noise."""

    def __len__(self) -> int:
        """Number of pictures."""
        return self.latents.shape[1]

    def __getitem__(self, index: int) -> "Inversion":
        """One of the pictures, as a batch."""
        return Inversion(self.latents[:, index, None])

    def to(self, device: str | torch.device) -> "Inversion":
        """The same on another device."""
        return Inversion(self.latents.to(device))

    @staticmethod
    def cat(inversions: list["Inversion"]) -> "Inversion":
        """Several batches of pictures of one size as one."""
        return Inversion(torch.cat([inversion.latents for inversion in inversions], dim=1))


def side_multiple(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
    """What the sides of pictures must be multiples of, in pixels: each level halves them."""
    levels = len(vae.config.block_out_channels) + len(unet.config.block_out_channels)
    return 2 ** (levels - 2)


class StyleID:
    """The method (Chung et al., "Style Injection in Diffusion", CVPR 2024).

    Each content and style picture is inverted once; any grid of pairs is then sampled jointly: the
    UNet rows of a step are the contents, the styles and the stylised pictures, and the latter read
    queries, keys and values of the former as they pass. Nothing but latents outlives a step.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler,
        null_text_embedding: Float[Tensor, "1 n d"],
        config: StyleIDConfig | None = None,
        rows_per_call: int = 64,
    ):
        """
        Args:
            unet: the denoising network.
            vae: the autoencoder.
            scheduler: any diffusers scheduler of the model: its noise schedule and prediction
                type are read, its own stepping is not used.
            null_text_embedding: the condition of every UNet row.
            config: the method's settings.
            rows_per_call: most rows of one UNet call, which bounds the memory. The same rows in
                other calls give the same pictures but for rounding.
        """
        self.unet, self.vae = unet, vae
        self.config = config or StyleIDConfig()
        self.rows_per_call = rows_per_call
        self.after_call: Callable[[int], None] = lambda rows: None
        """Called with the number of rows after each UNet call, to follow the progress."""
        self.null_text_embedding = null_text_embedding.to(unet.device, unet.dtype)
        self.schedule = DDIMSchedule.from_scheduler(
            scheduler, self.config.num_steps, self.config.convention
        )
        self._injection = StyleInjection(
            unet, self.config.injection_layers, self.config.gamma, self.config.temperature
        )

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h8 w8"]:
        """Pictures in [-1, 1] -> scaled float32 latents: the mode of the posterior."""
        return encode(self.vae, images).mean

    def decode(self, latents: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """Scaled latents -> float32 pictures in about [-1, 1], not clipped."""
        return decode(self.vae, latents)

    @torch.inference_mode()
    def invert(self, images: Float[Tensor, "b 3 h w"]) -> Inversion:
        """DDIM inversion of pictures in [-1, 1] whose sides suit the autoencoder and the UNet."""
        multiple = side_multiple(self.unet, self.vae)
        if images.shape[-2] % multiple or images.shape[-1] % multiple:
            raise ValueError(
                f"pictures are {images.shape[-1]} x {images.shape[-2]} px; "
                f"this model needs multiples of {multiple}."
            )
        trajectory = [self.encode(images)]
        levels = self.schedule.inversion_levels
        for i, timestep in enumerate(self.schedule.timesteps):
            output = self._predict_in_calls(trajectory[-1], timestep)
            latents, _ = self.schedule.step(trajectory[-1], output, levels[i], levels[i + 1])
            trajectory.append(latents)
        return Inversion(torch.stack(trajectory))

    def stylise(self, content: Inversion, style: Inversion) -> Float[Tensor, "b 3 h w"]:
        """Stylise b contents with one style, or each with its own of b styles.

        Returns float32 pictures in about [-1, 1], not clipped.
        """
        if len(style) not in (1, len(content)):
            raise ValueError(
                f"{len(content)} contents cannot pair with {len(style)} styles: give one style, "
                "one for each content, or use stylise_pairs."
            )
        contents = torch.arange(len(content))
        styles = torch.zeros_like(contents) if len(style) == 1 else contents
        return self.stylise_pairs(content, style, torch.stack([contents, styles], dim=1))

    def stylise_pairs(
        self, content: Inversion, style: Inversion, pairs: Int[Tensor, "p 2"]
    ) -> Float[Tensor, "p 3 h w"]:
        """Stylise any pairs (index of the content, index of the style), sampled jointly.

        Returns float32 pictures in about [-1, 1], not clipped, in the order of the pairs.
        """
        return self.decode(self.sample(content, style, pairs))

    def initial_latents(
        self, content: Inversion, style: Inversion, pairs: Int[Tensor, "p 2"]
    ) -> Float[Tensor, "p c h w"]:
        """Noise that sampling starts from: the content's with the style's statistics (eq. 10)."""
        noise = content.latents[-1][pairs[:, 0]]
        if not self.config.adain_init:
            return noise
        eps = 1e-4 if self.config.convention == "port" else 0.0
        return adain(noise, style.latents[-1][pairs[:, 1]], eps)

    @torch.inference_mode()
    def sample(
        self, content: Inversion, style: Inversion, pairs: Int[Tensor, "p 2"]
    ) -> Float[Tensor, "p c h w"]:
        """Joint sampling of pairs (index of the content, index of the style); final latents."""
        order = torch.argsort(pairs[:, 1], stable=True)
        pairs = pairs[order]
        contents, styles = len(content), len(style)
        limits = (self.rows_per_call, self.unet.device)
        if content.latents.shape[3:] == style.latents.shape[3:]:
            calls = list(plan_calls(contents, styles, pairs, *limits))
        else:  # pictures of different sizes cannot share a call
            calls = list(plan_calls(0, styles, pairs[:0], *limits))
            calls += plan_calls(contents, 0, pairs, *limits)
        schedule, levels = self.schedule, self.schedule.sampling_levels
        latents = self.initial_latents(content, style, pairs)
        for i in range(schedule.sampling_start, -1, -1):
            timestep = schedule.timesteps[i]
            if self.config.inject_attention:
                output = self._predict_injected(
                    content.latents[i], style.latents[i], latents, calls, timestep
                )
            else:
                output = self._predict_in_calls(latents, timestep)
            latents, x0 = schedule.step(latents, output, levels[i + 1], levels[i])
        return (x0 if schedule.decodes_x0 else latents)[torch.argsort(order)]

    def _predict_injected(
        self, content: Tensor, style: Tensor, latents: Tensor, calls: list[Rows], timestep: int
    ) -> Tensor:
        """The UNet's output for the stylised rows, which follow the others in `calls`."""
        sources = (iter(content), iter(style), iter(latents))
        outputs = []
        with self._injection as injection:
            for rows in calls:
                counts = (rows.contents, rows.styles, rows.stylised)
                parts = [islice(source, n) for source, n in zip(sources, counts, strict=True)]
                injection.rows = rows
                output = self._predict(torch.stack(list(chain(*parts))), timestep)
                if rows.stylised:
                    outputs.append(output[-rows.stylised :])
        return torch.cat(outputs)

    def _predict_in_calls(self, latents: Float[Tensor, "b c h w"], timestep: int) -> Tensor:
        parts = latents.split(cut(len(latents), self.rows_per_call))
        return torch.cat([self._predict(part, timestep) for part in parts])

    def _predict(self, latents: Float[Tensor, "b c h w"], timestep: int) -> Tensor:
        """One UNet call."""
        output = self.unet(
            latents.to(self.unet.dtype),
            # As a tensor, because a compiled network would be compiled anew for other numbers.
            torch.tensor(timestep, device=self.unet.device),
            self.null_text_embedding.expand(len(latents), -1, -1),
        ).sample
        self.after_call(len(latents))
        return output
