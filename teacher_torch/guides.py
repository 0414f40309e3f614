"""What tells guided methods how near a picture is to a style: embeddings of CLIP or of VGG16."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from teacher_torch.clip import CLIP_MEAN, CLIP_STD, load_clip
from teacher_torch.denoisers import module_sha256
from teacher_torch.mini.perceptual import VGG16
from triplets import InputError

VARIANCE_FLOOR = 1e-5
"""Added to variances, because the root of a channel that is zero everywhere has no gradient."""


class Guide(ABC):
    """Embeds pictures so that directions between embeddings mean changes of style."""

    modules: tuple[nn.Module, ...]

    @abstractmethod
    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings, not normalised, of pictures in [-1, 1] of any size, with gradients."""

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embeddings, not normalised, of texts.

        Raises:
            InputError: this guide knows none.
        """
        raise InputError("this guide knows no texts; give CLIP with --guide clip_text --clip PATH.")

    def weights_sha256(self) -> str:
        """Identifies the weights."""
        return module_sha256(*self.modules)

    def weights_bytes(self) -> int:
        """Memory of the weights."""
        return sum(t.nbytes for m in self.modules for t in m.state_dict().values())

    @abstractmethod
    def picture_bytes(self, size_px: int) -> int:
        """Memory of one picture of that side with what a backward pass keeps."""


class VGGGuide(Guide):
    """Channel means and deviations of VGG16's relu1_1 to relu4_1: texture and colour, no meaning.

    Each layer's numbers are divided by the root of its channels; 1,920 numbers in all.
    """

    def __init__(self, vgg: VGG16):
        self.vgg, self.modules = vgg, (vgg,)

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Statistics over all positions."""
        parts = []
        for layer in self.vgg(images / 2 + 0.5).values():
            flat = layer.flatten(2)
            variance = flat.var(-1, correction=0)
            statistics = [flat.mean(-1), (variance + VARIANCE_FLOOR).sqrt()]
            parts += [part / flat.shape[1] ** 0.5 for part in statistics]
        return torch.cat(parts, dim=1)

    def picture_bytes(self, size_px: int) -> int:
        """Maps in and out of each convolution and rectifier, 4 bytes per number."""
        per_pixel = 2 * (64 + 64) + 2 * (128 + 128) / 4 + 2 * 3 * 256 / 16 + 2 * 512 / 64
        return int(4 * per_pixel * size_px**2)


class CLIPGuide(Guide):
    """CLIP's image and text towers (Radford et al., 2021), in float32."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer=None,
        resize: Literal["pool", "bicubic"] = "pool",
    ):
        """
        Args:
            model: transformers' CLIPModel, or CLIPVisionModelWithProjection for pictures alone.
            tokenizer: the model's, for texts.
            resize: to CLIP's size by adaptive average pooling, as ZeCon, or by a bicubic filter.
        """
        self.model, self.tokenizer, self.resize = model, tokenizer, resize
        self.modules = (model,)
        vision = getattr(model.config, "vision_config", model.config)
        self.size, self._layers, self._width = (
            vision.image_size,
            vision.num_hidden_layers,
            vision.hidden_size,
        )
        self._tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Projected embeddings of the whole pictures."""
        if self.resize == "pool":
            images = F.adaptive_avg_pool2d(images, self.size)
        else:
            images = F.interpolate(
                images, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            )
        mean, std = self._mean.to(images), self._std.to(images)
        pixels = (images / 2 + 0.5 - mean) / std
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(pooled)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Projected embeddings of the texts."""
        if self.tokenizer is None:
            raise InputError(
                "--clip: the model has no text encoder, which --guide clip_text needs."
            )
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model.text_model(**tokens).pooler_output
        return self.model.text_projection(hidden)

    def picture_bytes(self, size_px: int) -> int:
        """About 34 numbers per token, channel and layer, 4 bytes each."""
        return 4 * 34 * self._tokens * self._width * self._layers


def load_vgg_guide(device: torch.device) -> VGGGuide:
    """The guide of the bundled VGG16."""
    return VGGGuide(VGG16().to(device).eval())


def load_clip_guide(
    name_or_path: str, device: torch.device, resize: Literal["pool", "bicubic"], texts: bool
) -> CLIPGuide:
    """The guide of a CLIP; see `load_clip`.

    Raises:
        InputError: it cannot be loaded.
    """
    clip = load_clip(
        name_or_path,
        texts=texts,
        like="openai/clip-vit-base-patch16",
        otherwise=", or --guide vgg16, which is bundled",
    )
    return CLIPGuide(clip.model.to(device), clip.tokenizer, resize)
