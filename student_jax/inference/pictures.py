"""Whatever is given as a picture or a mask, as arrays for the student."""

import io
import os
import sys
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from student_jax.nets.colour import LUMA
from triplets import InputError, decode_image, float_from_uint8, uint8_from_float
from triplets.images import MAX_SIDE

PictureLike = Any
"""A path, a PIL image, or RGB pixels, as a NumPy or JAX array [h w 3] or as a torch tensor [3 h w]:
uint8, or floats in [0, 1]."""

Kind = Literal["numpy", "pil", "jax", "torch"]
"""What stylised pictures are returned as."""


def float_pixels(
    name: str, picture: PictureLike
) -> Float32[np.ndarray, "h w 3"] | Float32[np.ndarray, "b h w 3"]:
    """Pixels in [0, 1] of a picture, or of an array that is a batch of pictures.

    Raises:
        InputError: unreadable, of another shape or dtype, or values outside [0, 1].
    """
    if isinstance(picture, str | os.PathLike):
        return float_from_uint8(decode_image(picture).pixels)
    if isinstance(picture, Image.Image):
        return float_from_uint8(_rgb(name, picture))
    pixels = np.asarray(_channels_last(picture) if _is_torch(picture) else picture)
    if pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise InputError(
            f"the {name} has shape {list(pixels.shape)}; expected RGB pixels [h w 3] or [b h w 3]."
        )
    if max(pixels.shape[-3:-1]) > MAX_SIDE:
        raise InputError(
            f"the {name} has shape {list(pixels.shape)}; a side may have {MAX_SIDE} pixels."
        )
    if pixels.dtype == np.uint8:
        return float_from_uint8(pixels)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(
            f"the {name} has dtype {pixels.dtype}; expected uint8, or floats in [0, 1]."
        )
    pixels = pixels.astype(np.float32, copy=False)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(
            f"the {name} has values from {pixels.min()} to {pixels.max()}; expected [0, 1]."
        )
    return pixels


def as_kind(pixels: Float32[np.ndarray, "*b h w 3"], kind: str) -> Any:
    """Pixels in [0, 1] as NumPy or JAX arrays [*b h w 3], a torch tensor [*b 3 h w], or a PIL image
    (of a batch, a list).

    Raises:
        InputError: torch is not imported, or another kind.
    """
    if kind == "numpy":
        return pixels
    if kind == "jax":
        import jax.numpy as jnp  # the start of the command does without it

        return jnp.asarray(pixels)
    if kind == "pil":
        if pixels.ndim == 4:
            return [as_kind(one, kind) for one in pixels]
        return Image.fromarray(uint8_from_float(pixels))
    if kind == "torch":
        torch = sys.modules.get("torch")  # students work without it; who wants a tensor has it
        if torch is None:
            raise InputError("returns is 'torch'; import torch first.")
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3)))
    raise InputError(f"returns is {kind!r}; expected one of {', '.join(get_args(Kind))}.")


def _is_torch(picture: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(picture, torch.Tensor)


def _channels_last(tensor: Any) -> np.ndarray:
    """A torch tensor [*b 3 h w] on any device, as an array [*b h w 3]."""
    array = tensor.detach().cpu().numpy()
    return np.moveaxis(array, -3, -1) if array.ndim > 2 else array


def changed(
    pixels: Float32[np.ndarray, "*b h w 3"],
    prediction: Float32[np.ndarray, "*b h w 3"],
    share: Float32[np.ndarray, "*b h w 1"] | np.float32,
    preserve_colour: bool,
) -> Float32[np.ndarray, "*b h w 3"]:
    """The content with a share of the prediction's change, or of its luminance's alone."""
    if np.ndim(share) == 0 and share == 1 and not preserve_colour:
        return np.clip(prediction, 0, 1)
    change = prediction - pixels
    if preserve_colour:
        change = (change @ LUMA.astype(np.float32))[..., None]
    change *= share
    stylised = np.add(pixels, change, out=None if preserve_colour else change)
    return np.clip(stylised, 0, 1, out=stylised)


def mask_pixels(mask: PictureLike, shape: tuple[int, ...]) -> Float32[np.ndarray, "*b h w 1"]:
    """How much of the effect every pixel gets, 0 to 1.

    Args:
        mask: a path or PIL image, of which the brightness counts; it is resized to the content
            and needs the content's proportions, to one percent. Or an array [h w] or [b h w] of
            bool, uint8, or floats in [0, 1].
        shape: [h w 3] or [b h w 3] of the content.

    Raises:
        InputError: unreadable, or not of the content's size or proportions.
    """
    name = f"mask {str(mask)!r}" if isinstance(mask, str | os.PathLike) else "mask"
    if isinstance(mask, str | os.PathLike | Image.Image):
        mask = _fitted_mask(name, float_pixels("mask", mask).mean(axis=-1), *shape[-3:-1])
    mask = np.asarray(mask)
    if mask.ndim < 2 or mask.shape not in (shape[:-1], shape[-3:-1]):
        raise InputError(
            f"the mask has shape {list(mask.shape)} for a content of {list(shape)}; expected one "
            "value for each pixel."
        )
    if mask.dtype == np.uint8:
        mask = mask / 255
    mask = mask.astype(np.float32)
    if not (mask.min() >= 0 and mask.max() <= 1):
        raise InputError(f"the mask has values from {mask.min()} to {mask.max()}; expected [0, 1].")
    return mask[..., None]


def _fitted_mask(
    name: str, mask: Float32[np.ndarray, "h w"], height: int, width: int
) -> Float32[np.ndarray, "h2 w2"]:
    h, w = mask.shape
    if abs(h * width / w - height) > max(1, height / 100):
        raise InputError(
            f"the {name} has {w} x {h} px for a content of {width} x {height} px; expected the "
            "same proportions."
        )
    # Unlike Lanczos, this filter does not overshoot: black and white stay so up to the edges.
    fitted = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).clip(0, 1)


def resize(
    image: Float32[np.ndarray, "h w 3"], height: int, width: int
) -> Float32[np.ndarray, "h2 w2 3"]:
    """Resize pixels in [0, 1] with a Lanczos filter, without rounding them to 8 bits."""
    if (height, width) == image.shape[:2]:
        return image
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., c])).resize(
            (width, height), Image.Resampling.LANCZOS
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)


def _rgb(name: str, picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "RGB":
        return np.array(picture)
    # `triplets.images` alone knows how the other modes become RGB.
    encoded = io.BytesIO()
    picture.save(encoded, "PNG" if picture.has_transparency_data else "TIFF")
    return decode_image(encoded, name=name).pixels
