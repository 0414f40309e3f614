"""CLIP (Radford et al., 2021) from a folder or the Hugging Face Hub, as transformers has it."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from teacher_torch.latent_diffusion import quiet_transformers
from triplets import InputError, one_line

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on."""


class CLIP(NamedTuple):
    """Frozen networks in float32, on the CPU."""

    model: "CLIPModel | CLIPVisionModelWithProjection"
    """Both towers, or the image tower with its projection."""
    tokenizer: "CLIPTokenizer | None"
    """With both towers."""


def load_clip(name_or_path: str, *, texts: bool = False, like: str, otherwise: str = "") -> CLIP:
    """Load CLIP.

    Args:
        name_or_path: a folder, or a hub id; the whole CLIP or, without texts, the image tower with
            its projection.
        texts: whether the text tower is needed.
        like: hub id to name as an example.
        otherwise: what else a user can do, as the end of a sentence.

    Raises:
        InputError: no such folder or model, one of another kind, or the hub cannot be reached.
    """
    transformers = quiet_transformers()
    asked = f'--clip "{name_or_path}"'
    wanted = f'expected CLIP as a folder or a hub id, such as "{like}"{otherwise}'
    local = Path(name_or_path).is_dir()
    if not local and (name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~"))):
        raise InputError(f"{asked}: no such folder; {wanted}.")
    kind = transformers.CLIPModel if texts else transformers.CLIPVisionModelWithProjection
    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path, local_files_only=local)
        if config.model_type not in ("clip", "clip_vision_model"):
            raise InputError(
                f"{asked} holds no image tower of CLIP but a {config.model_type}; {wanted}."
            )
        if texts and config.model_type != "clip":
            raise InputError(f"{asked} has no text encoder, which prompts need; {wanted}.")
        if not texts and config.model_type == "clip":
            # The image tower's own settings may hold another width than the whole's.
            config.vision_config.projection_dim = config.projection_dim
            config = config.vision_config
        model, loaded = kind.from_pretrained(
            name_or_path,
            config=config,
            dtype=torch.float32,
            local_files_only=local,
            use_safetensors=True,
            # Both are told below, in a sentence.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        tokenizer = None
        if texts:
            tokenizer = transformers.CLIPTokenizer.from_pretrained(
                name_or_path, local_files_only=local
            )
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = one_line(error).partition(". ")[0]
        raise InputError(f"{asked} cannot be loaded ({reason}); {wanted}.") from error
    # Names of weights that are not there, and triples of those of another shape.
    faults = sorted(loaded["missing_keys"]) or sorted(key for key, *_ in loaded["mismatched_keys"])
    if faults:
        raise InputError(f"{asked} lacks weights of CLIP ({faults[0]}); {wanted}.")
    return CLIP(model.eval().requires_grad_(False), tokenizer)
