"""Diffusion models as methods with gradients see them: in latents, or in the pixels themselves.

A `Denoiser` has states [b c h w] that pictures are encoded to, predicts clean states from noisy
ones, and gives the feature maps of its encoder. Gradients pass through everything but `encode`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import UNet2DModel
from jaxtyping import Float
from torch import Tensor, nn

from teacher_torch.latent_diffusion import Components, load_components
from teacher_torch.teacher import Runtime
from triplets import InputError, one_line

TRAINING_STEPS = 1000
"""Steps of the noise schedule of every model here."""
NETWORK_MAPS = 26
DECODER_MAPS = 6
"""Feature maps of the first level that are alive at once (counted in `styleid.memory`)."""
GRADIENT_MAPS = 10
"""Times as many are kept for a backward pass (counted on Stable Diffusion 1.5)."""


class Prediction(NamedTuple):
    """What the network says of noisy states."""

    clean: Float[Tensor, "b c h w"]
    """x0, not clipped."""
    noise: Float[Tensor, "b c h w"]
    """epsilon."""
    variance: Float[Tensor, "b c h w"] | None
    """The learned variance's place between the smallest (-1) and the largest (1), if learned."""


class Denoiser(ABC):
    """A diffusion model."""

    network: nn.Module
    native_size: int
    """Side in pixels of the pictures that the model was trained on."""
    side_multiple: int
    """What the sides of pictures must be multiples of, in pixels."""
    levels: tuple[float, ...]
    """a[t], the share of signal (cumulative product of alphas) at each timestep."""
    feature_timestep: int
    """The first timestep that the network was trained at."""
    learns_variance: bool

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """As many timesteps, rising, as the model's own programs space them.

        Raises:
            InputError: that many do not fit.
        """
        if not 2 <= steps < TRAINING_STEPS:
            raise InputError(f"{steps} steps: expected 2 to {TRAINING_STEPS - 1}.")
        return self._spaced(steps)

    @abstractmethod
    def _spaced(self, steps: int) -> tuple[int, ...]: ...

    @abstractmethod
    def state_shape(self, size_px: int) -> tuple[int, int, int]:
        """[c h w] of the states of a square picture of that side."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h8 w8"]:
        """Pictures in [-1, 1] -> float32 states, without gradients."""

    @abstractmethod
    def decode(self, states: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """States -> float32 pictures in about [-1, 1], not clipped."""

    @abstractmethod
    def predict(self, states: Float[Tensor, "b c h w"], timestep: int) -> Prediction:
        """Clean states, noise and variance of noisy states at a timestep."""

    @abstractmethod
    def features(self, states: Float[Tensor, "b c h w"], indices: tuple[int, ...]) -> list[Tensor]:
        """Residual maps of the encoder by number (0 is the first convolution's), the states taken
        as clean."""

    @abstractmethod
    def weights_sha256(self) -> str:
        """Identifies the weights."""

    @abstractmethod
    def row_bytes(self, size_px: int) -> tuple[int, int]:
        """Memory of one row in the network, and of one picture in the decoder, no gradients."""

    @abstractmethod
    def weights_bytes(self) -> int:
        """Memory of all weights."""


class LatentDenoiser(Denoiser):
    """A Stable Diffusion, or the mini model: states are scaled latents, the text is empty."""

    feature_timestep, learns_variance = 1, False

    def __init__(self, components: Components):
        self.components = components
        self.network = components.unet
        self.native_size = components.native_size
        parts = (components.vae, components.unet)
        self.side_multiple = 2 ** (sum(len(p.config.block_out_channels) for p in parts) - 2)
        self.levels = tuple(float(a) for a in components.scheduler.alphas_cumprod)
        self._velocity = components.scheduler.config.prediction_type == "v_prediction"

    def _spaced(self, steps: int) -> tuple[int, ...]:
        """As StyleID's: 1, 1 + r, 1 + 2r, .. with r = 1000 // steps."""
        return tuple(1 + TRAINING_STEPS // steps * i for i in range(steps))

    def state_shape(self, size_px: int) -> tuple[int, int, int]:
        """As the autoencoder reduces a picture."""
        side = size_px // 2 ** (len(self.components.vae.config.block_out_channels) - 1)
        return self.network.config.in_channels, side, side

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h8 w8"]:
        """The mode of the autoencoder's posterior, scaled."""
        vae = self.components.vae
        images = images.to(vae.device, vae.dtype)
        latents = [vae.encode(x).latent_dist.mode() for x in images.split(1)]
        return torch.cat(latents).float() * vae.config.scaling_factor

    def decode(self, states: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """The decoder's pictures."""
        vae = self.components.vae
        return vae.decode((states / vae.config.scaling_factor).to(vae.dtype)).sample.float()

    def predict(self, states: Float[Tensor, "b c h w"], timestep: int) -> Prediction:
        """Of a network that predicts the noise or the velocity."""
        unet = self.network
        output = unet(
            states.to(unet.dtype),
            torch.tensor(timestep, device=unet.device),
            self.components.null_text_embedding.expand(len(states), -1, -1),
        ).sample.float()
        signal, noise = self.levels[timestep] ** 0.5, (1 - self.levels[timestep]) ** 0.5
        if self._velocity:
            clean = signal * states - noise * output
            return Prediction(clean, signal * output + noise * states, None)
        return Prediction((states - noise * output) / signal, output, None)

    def features(self, states: Float[Tensor, "b c h w"], indices: tuple[int, ...]) -> list[Tensor]:
        """Of the first convolution and the down blocks alone."""
        text = self.components.null_text_embedding.expand(len(states), -1, -1)
        return _encoder_features(self.network, states, self.feature_timestep, indices, text)

    def weights_sha256(self) -> str:
        """Of UNet and autoencoder."""
        return self.components.weights_sha256()

    def row_bytes(self, size_px: int) -> tuple[int, int]:
        """From the first level's maps."""
        unet, vae = self.network, self.components.vae
        side = size_px // 2 ** (len(vae.config.block_out_channels) - 1)
        width = vae.config.block_out_channels[0]
        return (
            NETWORK_MAPS * unet.config.block_out_channels[0] * side**2 * unet.dtype.itemsize,
            DECODER_MAPS * width * size_px**2 * vae.dtype.itemsize,
        )

    def weights_bytes(self) -> int:
        """Of UNet and autoencoder."""
        return sum(p.nbytes for m in (self.network, self.components.vae) for p in m.parameters())


class PictureDenoiser(Denoiser):
    """A guided-diffusion model (Dhariwal & Nichol, 2021), "ADM": states are the pictures.

    beta rises linearly from 1e-4 to 0.02; the six channels of the output are noise and variance.
    """

    feature_timestep, learns_variance = 0, True

    def __init__(self, network: UNet2DModel):
        self.network = network
        self.native_size = network.config.sample_size
        self.side_multiple = 2 ** (len(network.config.block_out_channels) - 1)
        betas = torch.linspace(1e-4, 0.02, TRAINING_STEPS, dtype=torch.float64)
        self.levels = tuple((1 - betas).cumprod(0).tolist())

    def _spaced(self, steps: int) -> tuple[int, ...]:
        """As guided-diffusion's respacing: both ends are among them."""
        stride = (TRAINING_STEPS - 1) / (steps - 1)
        return tuple(round(i * stride) for i in range(steps))

    def state_shape(self, size_px: int) -> tuple[int, int, int]:
        """That of the picture."""
        return self.network.config.in_channels, size_px, size_px

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h8 w8"]:
        """The pictures themselves."""
        return images.to(self.device)

    def decode(self, states: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """The states themselves."""
        return states

    def predict(self, states: Float[Tensor, "b c h w"], timestep: int) -> Prediction:
        """Of a network that predicts the noise and its variance."""
        when = torch.tensor(timestep, device=self.device)
        output = self.network(states.to(self.network.dtype), when).sample
        noise, variance = output.to(states.dtype).chunk(2, dim=1)
        level = self.levels[timestep]
        clean = states / level**0.5 - (1 / level - 1) ** 0.5 * noise
        return Prediction(clean, noise, variance)

    def features(self, states: Float[Tensor, "b c h w"], indices: tuple[int, ...]) -> list[Tensor]:
        """Of the first convolution and the down blocks alone."""
        return _encoder_features(self.network, states, self.feature_timestep, indices)

    def weights_sha256(self) -> str:
        """Of the one network."""
        return module_sha256(self.network)

    def row_bytes(self, size_px: int) -> tuple[int, int]:
        """From the first level's maps; there is no decoder."""
        config, itemsize = self.network.config, self.network.dtype.itemsize
        return NETWORK_MAPS * config.block_out_channels[0] * size_px**2 * itemsize, 0

    def weights_bytes(self) -> int:
        """Of the one network."""
        return sum(p.nbytes for p in self.network.parameters())


def _encoder_features(
    network: nn.Module,
    states: Float[Tensor, "b c h w"],
    timestep: int,
    indices: tuple[int, ...],
    text: Tensor | None = None,
) -> list[Tensor]:
    """`down_block_res_samples` of a diffusers UNet without running the rest of it."""
    when = torch.full((len(states),), timestep, device=states.device)
    embedding = network.time_embedding(network.time_proj(when).to(network.dtype))
    x = network.conv_in(states.to(network.dtype))
    maps = [x]
    for block in network.down_blocks:
        if len(maps) > max(indices):
            break
        if getattr(block, "has_cross_attention", False):
            x, more = block(hidden_states=x, temb=embedding, encoder_hidden_states=text)
        else:
            x, more = block(hidden_states=x, temb=embedding)
        maps += more
    return [maps[i] for i in indices]


def module_sha256(*modules: nn.Module) -> str:
    """A hash over names and values of the modules' state."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def open_denoiser(runtime: Runtime, dtype: torch.dtype | None = None) -> Denoiser:
    """The model that --model names: latent diffusion, or a folder that `adm` has written.

    Raises:
        InputError: it cannot be loaded.
    """
    dtype = dtype or runtime.dtype
    path = Path(runtime.model)
    if path.is_file():
        raise InputError(
            f'--model "{runtime.model}" is a file; convert a guided-diffusion checkpoint with '
            '"python -m teacher_torch.adm FILE FOLDER" and give the folder.'
        )
    if is_picture_model(path):
        try:
            network = UNet2DModel.from_pretrained(
                path, subfolder="unet", dtype=dtype, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise InputError(f'cannot load a model from "{path}": {one_line(error)}.') from error
        if network.config.out_channels != 2 * network.config.in_channels:
            raise InputError(
                f'--model "{path}": the network has {network.config.out_channels} output channels; '
                f"expected {2 * network.config.in_channels}, noise and variance."
            )
        denoiser = PictureDenoiser(network.to(runtime.device).eval().requires_grad_(False))
    else:
        denoiser = LatentDenoiser(load_components(runtime.model, runtime.device, dtype))
    if runtime.compile:
        denoiser.network.compile()
    return denoiser


def is_picture_model(folder: Path) -> bool:
    """Whether the folder holds a network on pictures, without an autoencoder."""
    try:
        config = json.loads((folder / "unet" / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return config.get("_class_name") == "UNet2DModel"
