"""Both towers of CLIP: pictures to embeddings, and a text with one embedding put in."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from teacher_torch.clip import CLIP_MEAN, CLIP_STD, load_clip
from teacher_torch.inst.config import PLACEHOLDER
from teacher_torch.latent_diffusion import TextEncoder
from triplets import InputError

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

TEXT_MAPS = 15
"""Tensors of the hidden states' size that a frozen layer of the text tower keeps for its backward
pass: counted on that of Stable Diffusion 1.x."""


def released_input(images: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
    """What the authors' program shows CLIP: black, with white dots where a channel is 0.

    It casts pictures in [-1, 1] to uint8. This is that cast on x86-64, where -1 becomes 255.
    """
    table = np.zeros(256, np.uint8)
    table[[0, 255]] = 255, 1
    return table[images]


class ImageTower:
    """CLIP's image tower, on the CPU: a style needs it twice, and it is large."""

    def __init__(self, model: "CLIPVisionModelWithProjection"):
        self.model = model

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return self.model.config.projection_dim

    def pixel_values(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 s s"]:
        """Square pictures as the tower takes them: its side, normalised."""
        side = self.model.config.image_size
        resized = [
            np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
            for image in images
        ]
        pixels = torch.from_numpy(np.stack(resized)).float() / 255
        normal = (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        return normal.movedim(-1, 1)

    @torch.no_grad()
    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b d"]:
        """Embeddings of square pictures, of norm 1."""
        embeds = self.model(self.pixel_values(images).to(self.model.dtype)).image_embeds
        return embeds / embeds.norm(dim=-1, keepdim=True)


def load_image_tower(name_or_path: str) -> ImageTower:
    """Load CLIP's image tower, in float32; see `load_clip`.

    Raises:
        InputError: it cannot be loaded.
    """
    return ImageTower(load_clip(name_or_path, like="openai/clip-vit-large-patch14").model)


class PromptWithStyle:
    """The condition of a prompt in which an embedding stands for the placeholder.

    Weights are frozen; gradients reach the embeddings.

    Raises:
        InputError: the tokenizer finds no free-standing placeholder in the prompt.
    """

    def __init__(self, text: TextEncoder, prompt: str):
        self.encoder = text.encoder
        self._ids = text.tokenise([prompt])
        placeholder = text.tokenise([PLACEHOLDER])[0, 1]
        self._replaced = (self._ids == placeholder)[..., None]
        if not self._replaced.any():
            raise InputError(
                f'prompt is "{prompt}", where {PLACEHOLDER} is part of another word for the model; '
                "expected it between spaces."
            )

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return self.encoder.config.hidden_size

    def kept_bytes(self) -> int:
        """What the backward pass of one embedding keeps."""
        config = self.encoder.config
        values = self._ids.shape[1] * config.hidden_size * config.num_hidden_layers
        return TEXT_MAPS * values * self.encoder.dtype.itemsize

    def __call__(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        """Last hidden states of the prompt, after the final layer norm, for each embedding."""

        def replace(module: torch.nn.Module, arguments: tuple, words: Tensor) -> Tensor:
            return torch.where(self._replaced, embeddings[:, None].to(words.dtype), words)

        # In front of the position embedding. CLIPTextModel takes ids alone, so a hook it is.
        hook = self.encoder.get_input_embeddings().register_forward_hook(replace)
        try:
            return self.encoder(self._ids.expand(len(embeddings), -1))[0]
        finally:
            hook.remove()
