"""Loading a latent diffusion model: from the hub, from a folder, or the bundled mini model."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from triplets import InputError, one_line

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

MINI = Path(__file__).parent / "mini"
NULL_TEXT = "null_text.safetensors"

Loaded = TypeVar("Loaded")


class Components(NamedTuple):
    """A latent diffusion model and its condition for the empty text."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDIMScheduler
    null_text_embedding: Float[Tensor, "1 n d"]

    @property
    def native_size(self) -> int:
        """Side in pixels of the pictures that the model was trained on."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def weights_sha256(self) -> str:
        """Identifies the weights of the UNet and the autoencoder."""
        return weights_sha256(self.unet, self.vae)


def weights_sha256(*modules: nn.Module) -> str:
    """Identifies weights: a hash over their names and values."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_components(
    name_or_path: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    null_text_embedding: Float[Tensor, "1 n d"] | None = None,
) -> Components:
    """Load a Stable Diffusion 1.x or 2.x model, or one of the same structure.

    Args:
        name_or_path: "mini" for the bundled model, a local folder in the layout of diffusers, or
            an id on the Hugging Face Hub such as "stable-diffusion-v1-5/stable-diffusion-v1-5".
        device: where the networks go.
        dtype: of the networks' weights; latents and noise schedule stay float32. An autoencoder
            whose config asks for it (`force_upcast`) stays float32 where float16 would overflow.
        null_text_embedding: that of the empty text if it is known from an earlier run. Else it
            is computed with the model's own tokenizer and text encoder, which are then dropped, or
            read from the folder's null_text.safetensors.

    Raises:
        InputError: no such folder or model, or the hub cannot be reached.
    """
    folder = MINI if name_or_path == "mini" else Path(name_or_path)
    if (folder / NULL_TEXT).is_file():
        components = _load_folder(folder, dtype, null_text_embedding)
    else:
        components = _load_pipeline(name_or_path, dtype, null_text_embedding)
    for module in (components.unet, components.vae):
        module.to(device).eval().requires_grad_(False)
    if dtype == torch.float16 and _overflows_in_float16(components.vae):
        components.vae.float()
    # Measured on a CPU: decoding takes a quarter less time. The UNet gains nothing.
    components.vae.to(memory_format=torch.channels_last)
    null_text = components.null_text_embedding.to(device, dtype)
    return components._replace(null_text_embedding=null_text)


class Posterior(NamedTuple):
    """What an autoencoder makes of pictures: normal distributions of scaled latents, float32."""

    mean: Float[Tensor, "b c h w"]
    std: Float[Tensor, "b c h w"]


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]) -> Posterior:
    """Pictures in [-1, 1] -> the distributions of their scaled latents."""
    images = images.to(vae.device, vae.dtype)
    # One at a time: a picture takes the autoencoder more memory than a row takes the UNet, and
    # larger batches are no faster.
    rows = [vae.encode(x).latent_dist for x in images.split(1)]
    scale = vae.config.scaling_factor
    mean, std = (torch.cat([getattr(row, name) for row in rows]) for name in ("mean", "std"))
    return Posterior(mean.float() * scale, std.float() * scale)


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h8 w8"]:
    """Scaled latents -> float32 pictures in about [-1, 1], not clipped; one at a time, too."""
    latents = (latents / vae.config.scaling_factor).to(vae.dtype)
    return torch.cat([vae.decode(z).sample.float() for z in latents.split(1)])


def _overflows_in_float16(vae: AutoencoderKL) -> bool:
    # The default of `force_upcast` is True, also for models that are older than it and fit.
    by_default = vae.config.get("_use_default_values") or ()
    return vae.config.force_upcast and "force_upcast" not in by_default


class TextEncoder(NamedTuple):
    """A model's own tokenizer and text encoder."""

    tokenizer: "CLIPTokenizer"
    encoder: "CLIPTextModel"

    def tokenise(self, texts: Sequence[str]) -> Int[Tensor, "b n"]:
        """Ids of the texts' tokens, each text padded to the longest that the encoder takes."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return tokens.input_ids.to(self.encoder.device)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Last hidden states of the texts."""
        return self.encoder(self.tokenise(texts))[0]


def has_text_encoder(name_or_path: str) -> bool:
    """Whether a model has a text encoder; of one on the hub it is supposed."""
    folder = MINI if name_or_path == "mini" else Path(name_or_path)
    return not folder.is_dir() or (folder / "text_encoder").is_dir()


def load_text_encoder(
    name_or_path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """Load the text encoder of a model, for methods that need more than the empty text.

    Raises:
        InputError: no such folder or model, one without a text encoder, or the hub cannot be
            reached.
    """
    transformers = quiet_transformers()
    path = str(MINI) if name_or_path == "mini" else name_or_path
    local = Path(path).is_dir()
    if not has_text_encoder(name_or_path):
        raise InputError(f'--model "{name_or_path}" has no text encoder.')

    def load(variant: str | None) -> TextEncoder:
        encoder = transformers.CLIPTextModel.from_pretrained(
            path,
            subfolder="text_encoder",
            variant=variant,
            dtype=dtype,
            local_files_only=local,
            use_safetensors=True,
        )
        tokenizer = transformers.CLIPTokenizer.from_pretrained(
            path, subfolder="tokenizer", local_files_only=local
        )
        return TextEncoder(tokenizer, encoder.to(device).eval().requires_grad_(False))

    return _first_variant(load, path, dtype)


def _load_folder(folder: Path, dtype: torch.dtype, null_text: Tensor | None) -> Components:
    def load(kind: type[nn.Module], name: str) -> nn.Module:
        return kind.from_pretrained(
            folder, subfolder=name, dtype=dtype, local_files_only=True, use_safetensors=True
        )

    try:
        return Components(
            load(UNet2DConditionModel, "unet"),
            load(AutoencoderKL, "vae"),
            DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True),
            load_file(folder / NULL_TEXT)["null_text"] if null_text is None else null_text,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f'cannot load a model from "{folder}": {one_line(error)}.') from error


def _load_pipeline(name_or_path: str, dtype: torch.dtype, null_text: Tensor | None) -> Components:
    quiet_transformers()
    from diffusers import StableDiffusionPipeline

    def load(variant: str | None) -> StableDiffusionPipeline:
        return StableDiffusionPipeline.from_pretrained(
            name_or_path,
            variant=variant,
            dtype=dtype,
            local_files_only=Path(name_or_path).is_dir(),
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            text_encoder=None,
            tokenizer=None,
        )

    pipeline = _first_variant(load, name_or_path, dtype)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    if null_text is None:
        null_text = load_text_encoder(name_or_path, dtype=dtype)([""])
    return Components(pipeline.unet, pipeline.vae, scheduler, null_text)


def quiet_transformers():
    """The library, without its comments."""
    import transformers

    # Its import warns of image processors without torchvision, which nothing here uses.
    transformers.logging.set_verbosity_error()
    # Without a network it reports each attempt; the error below says all that is needed.
    diffusers.logging.set_verbosity_error()
    return transformers


def _first_variant(
    load: Callable[[str | None], Loaded], name_or_path: str, dtype: torch.dtype
) -> Loaded:
    """What `load` makes of the model's files of the given precision, or else of the other ones.

    Repositories hold float16 files, float32 files or both; the other kind still loads.

    Raises:
        InputError: no such folder or model, or the hub cannot be reached.
    """
    local = Path(name_or_path).is_dir()
    if not local and (name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~"))):
        raise InputError(
            f'--model "{name_or_path}": no such folder; expected "mini", a diffusers folder or a '
            'hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5".'
        )
    errors = []
    for variant in ("fp16", None) if dtype == torch.float16 else (None, "fp16"):
        try:
            return load(variant)
        except (OSError, ValueError) as error:
            errors.append(error)
    if local:
        raise InputError(
            f'cannot load a model from "{name_or_path}": {one_line(errors[-1])}.'
        ) from errors[-1]
    reason = str(errors[0]).partition("(")[0].strip()
    raise InputError(
        f'cannot load "{name_or_path}" from the Hugging Face Hub ({reason}); without a network, '
        f"download https://huggingface.co/{name_or_path} elsewhere and give it with --model PATH."
    ) from errors[0]
