"""What tells guided methods how near a picture is to a style: embeddings of CLIP or of VGG16."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from teacher_torch.denoisers import module_sha256
from teacher_torch.mini.perceptual import VGG16
from triplets import InputError, one_line

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
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
    """Load CLIP from a local folder or the Hugging Face Hub.

    Raises:
        InputError: no such folder or model, one of another kind, or the hub cannot be reached.
    """
    import transformers

    local = Path(name_or_path).is_dir()
    if not local and (name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~"))):
        raise InputError(
            f'--clip "{name_or_path}": no such folder; expected a folder of transformers\' '
            'CLIPModel or a hub id such as "openai/clip-vit-base-patch16".'
        )
    transformers.logging.set_verbosity_error()
    kinds = (transformers.CLIPModel, transformers.CLIPTokenizer)
    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path, local_files_only=local)
        if config.model_type == "clip_vision_model" and not texts:
            kinds = (transformers.CLIPVisionModelWithProjection, None)
        elif config.model_type != "clip":
            raise InputError(
                f'--clip "{name_or_path}" is a {config.model_type}; expected a CLIP model'
                f"{' with its text encoder' if texts else ''}."
            )
        model, report = kinds[0].from_pretrained(
            name_or_path, local_files_only=local, use_safetensors=True, output_loading_info=True
        )
        tokenizer = None
        if texts:
            tokenizer = kinds[1].from_pretrained(name_or_path, local_files_only=local)
    except (OSError, ValueError, RuntimeError) as error:  # of shapes
        if isinstance(error, InputError):
            raise
        reason = one_line(error).partition(". ")[0]
        raise InputError(
            f'cannot load CLIP from "{name_or_path}" ({reason}); give a folder that holds it with '
            "--clip PATH, or take --guide vgg16, which is bundled."
        ) from error
    if report["missing_keys"]:
        raise InputError(f'--clip "{name_or_path}" lacks weights: {min(report["missing_keys"])}.')
    return CLIPGuide(
        model.to(device, torch.float32).eval().requires_grad_(False), tokenizer, resize
    )
