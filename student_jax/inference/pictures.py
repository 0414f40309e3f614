"""Pictures as people have them, to arrays for the student, and arrays back to encoded pictures."""

import io
import os

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from triplets import ImageError, InputError, decode_image, float_from_uint8

Picture = str | os.PathLike | Image.Image | np.ndarray | jax.Array
"""A path, a PIL image, or RGB pixels [h w 3]: uint8, or floats in [0, 1]."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What can be written, by suffix."""

_OPTIONS = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


def float_pixels(
    name: str, picture: Picture
) -> Float32[np.ndarray, "h w 3"] | Float32[np.ndarray, "b h w 3"]:
    """Pixels in [0, 1] of a picture, or of an array that is a batch of pictures.

    Raises:
        InputError: unreadable, of another shape or dtype, or values outside [0, 1].
    """
    if isinstance(picture, str | os.PathLike):
        return float_from_uint8(decode_image(picture).pixels)
    if isinstance(picture, Image.Image):
        return float_from_uint8(_rgb(name, picture))
    pixels = np.asarray(picture)
    if pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise InputError(
            f"the {name} has shape {list(pixels.shape)}; expected RGB pixels [h w 3] or [b h w 3]."
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


def mask_pixels(mask: Picture, shape: tuple[int, ...]) -> Float32[np.ndarray, "*b h w 1"]:
    """How much of the effect every pixel gets, 0 to 1.

    Args:
        mask: a path or PIL image (its brightness), which is brought to the content's size when it
            has the content's proportions, to a hundredth; or an array [h w] or [b h w]: bool,
            uint8, or floats in [0, 1].
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
    # Unlike Lanczos, this filter leaves black and white areas as they are up to their edges.
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


def colour_profile(encoded: bytes) -> bytes | None:
    """The ICC profile in an encoded picture, if it has one that suits RGB pixels."""
    with Image.open(io.BytesIO(encoded)) as picture:
        profile = picture.info.get("icc_profile")
    # ICC.1:2022, 7.2: bytes 16 to 19 of the header name the colour space of the pixels.
    return profile if profile and profile[16:20] == b"RGB " else None


def encode(pixels: UInt8[np.ndarray, "h w 3"], suffix: str, profile: bytes | None = None) -> bytes:
    """Pixels as PNG, JPEG (quality 95) or WebP (lossless), by the suffix, with an ICC profile.

    Raises:
        ImageError: a size that the format cannot hold.
    """
    kind = FORMATS[suffix.lower()]
    options = _OPTIONS[kind] | ({"icc_profile": profile} if profile else {})
    encoded = io.BytesIO()
    try:
        Image.fromarray(pixels).save(encoded, format=kind, **options)
    except (ValueError, OSError) as error:
        raise ImageError(f"cannot write {suffix} of {list(pixels.shape)}: {error}") from error
    return encoded.getvalue()


def _rgb(name: str, picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "RGB":
        return np.array(picture)
    # The other modes go through the one place that decodes pixels.
    encoded = io.BytesIO()
    picture.save(encoded, "PNG" if picture.has_transparency_data else "TIFF")
    return decode_image(encoded, name=name).pixels
