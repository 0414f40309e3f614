"""Picture files to uint8 RGB arrays and back: the one place that decodes and encodes pictures."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import (
    ExifTags,
    Image,
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from triplets.atomic import atomic_write
from triplets.errors import InputError, one_line
from triplets.reading import check_file

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels; a 40-megapixel photograph passes."""

MAX_SIDE = 32_768
"""Longest side of a picture, in pixels: one of a single row would be padded to many times its
size."""

MAX_FILE_BYTES = 256 * 2**20
"""Largest file of a picture that is read."""

# A closed list: Pillow also knows formats that start other programs (EPS) or hold no picture.
_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
IMAGE_SUFFIXES = tuple(_FORMATS)
"""Suffixes, in lower case, of the files that count as pictures."""

FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
"""What a picture may be, for messages."""

# What these formats begin with, if a file's suffix is not one of theirs. Not TIFF: the raw files of
# cameras begin like it, and hold a thumbnail.
_SIGNATURES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP", re.DOTALL)

# Pictures and videos that somebody may expect to be read. Besides, by their beginning, all files of
# the ISO base media format: HEIC, AVIF, MP4, QuickTime.
_OTHER_SUFFIXES = re.compile(
    r"\.(arw|avi|avif|cr2|cr3|dng|eps|exr|hdr|heic|heif|hif|ico|j2k|jp2|jpx|jxl|m4v|mkv|mov|mp4|mpg"
    r"|nef|orf|pbm|pcx|pgm|ppm|psd|raf|rw2|svg|tga|webm|wmv)"
)

WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes, in lower case, of the pictures that can be written."""

# EXIF 2.3, tag 0x0112: how the stored pixels must be turned to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(InputError):
    """A picture cannot be read or written; the message says which one and why."""


class DecodedImage(NamedTuple):
    """Pixels of a picture, upright, and what else its file says about it."""

    pixels: UInt8[np.ndarray, "h w 3"]
    original_size: tuple[int, int]
    """Height and width in pixels before any reduced decoding."""
    profile: bytes | None = None
    """ICC profile of the pixels; None if the file has none, or has one that is not of RGB."""


def picture_or_other(path: Path) -> Literal["picture", "other"] | None:
    """Whether a file is a picture of a known format, a picture or video of another, or neither.

    By its suffix, and otherwise by its first bytes.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "picture"
    beginning = b""
    with contextlib.suppress(OSError, InputError):
        check_file(path)
        with path.open("rb") as file:
            beginning = file.read(12)
    if _SIGNATURES.match(beginning):
        return "picture"
    return "other" if _OTHER_SUFFIXES.fullmatch(suffix) or beginning[4:8] == b"ftyp" else None


def decode_image(
    file: str | os.PathLike | io.BytesIO,
    *,
    name: str | None = None,
    at_least: int | None = None,
    min_side: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> DecodedImage:
    """Decode a picture to upright 8-bit RGB.

    The EXIF orientation is applied. Transparent pictures are composited on white. 16-bit greys
    are scaled to 8 bits, float greys are taken as [0, 1], or as [0, 255] if any exceeds 1.
    The first frame of an animation is read. Colour profiles (ICC) are not applied.

    Args:
        file: path, or an encoded picture in memory; JPEG, PNG, WebP, GIF, BMP or TIFF.
        name: what messages call the picture, by default the path.
        at_least: shorter side in pixels that the caller needs. Large JPEG files are then decoded
            at a half, quarter or eighth of their size, never below twice `at_least`: much
            faster, and after `crop_and_resize` within one grey level on average.
        min_side: refuse pictures whose shorter side has fewer pixels.
        max_pixels: refuse larger pictures, by their header, before anything is decoded, and those
            with a side of more than `MAX_SIDE`.

    Raises:
        ImageError: missing, unreadable, truncated, too small or too large.
    """
    with _opened(file, name, min_side, max_pixels) as picture:
        width, height = picture.size
        if at_least is not None:
            picture.draft(None, (2 * at_least, 2 * at_least))
        picture.load()
        orientation = _orientation(picture)
        if orientation in _UPRIGHT:
            picture = picture.transpose(_UPRIGHT[orientation])
        if orientation >= 5:  # these swap rows and columns
            width, height = height, width
        return DecodedImage(_rgb_pixels(picture), (height, width), _rgb_profile(picture))


def read_image(
    path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Read a picture file at its full size; see `decode_image`."""
    return decode_image(path, max_pixels=max_pixels).pixels


def encode_image(
    pixels: np.ndarray,
    suffix: str,
    *,
    profile: bytes | None = None,
    quality: int = 95,
    name: str | None = None,
) -> bytes:
    """Encode uint8 [h w 3] pixels as PNG, JPEG or WebP (lossless), by the suffix.

    Args:
        pixels: the pixels.
        suffix: one of `WRITABLE_SUFFIXES`, in letters of either case.
        profile: ICC profile of these pixels, to embed; nothing is converted.
        quality: of a JPEG, 1 to 95; below 95 the colours have half the resolution.
        name: what messages call the picture, by default "a SUFFIX picture".

    Raises:
        ImageError: another suffix, dtype or shape, or a size that the format cannot hold.
    """
    label = f"a {suffix} picture" if name is None else repr(name)
    suffix = suffix.lower()
    if suffix not in WRITABLE_SUFFIXES:
        raise ImageError(
            f"cannot write {label}: the suffix must be one of {', '.join(WRITABLE_SUFFIXES)}."
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ImageError(
            f"cannot write {label}: expected uint8 pixels [h w 3], "
            f"got {pixels.dtype} {list(pixels.shape)}."
        )
    options = {
        # Half of the time for 4 per cent more bytes.
        "PNG": {"compress_level": 1},
        "JPEG": {"quality": quality, "subsampling": "4:4:4" if quality >= 95 else "4:2:0"},
        "WEBP": {"lossless": True},
    }.get(_FORMATS[suffix], {})
    if profile is not None:
        options["icc_profile"] = profile
    encoded = io.BytesIO()
    try:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture.save(encoded, format=_FORMATS[suffix], **options)
    except (ValueError, OSError) as error:
        raise ImageError(f"cannot write {label}: {one_line(error)}.") from error
    return encoded.getvalue()


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write uint8 [h w 3] pixels as PNG, JPEG (quality 95) or WebP (lossless), by the suffix.

    An existing file is replaced only by a whole new one.

    Raises:
        ImageError: another suffix, dtype or shape, or a size that the format cannot hold.
        OSError: no such folder, disk full and so on.
    """
    encoded = encode_image(image, Path(path).suffix, name=str(path))
    with atomic_write(path) as file:
        file.write(encoded)


def centre_crop(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "s s c"]:
    """Cut the central square out of an image; its side is the image's shorter side.

    Half pixels are rounded to even, as in torchvision's `CenterCrop`, which the authors of
    StyleID use.
    """
    top, left, side = _central_square(image.shape[:2])
    return image[top : top + side, left : left + side]


def crop_and_resize(
    image: UInt8[np.ndarray, "h w 3"], size: int, *, original_size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "s s 3"]:
    """Centre crop to a square and resize it to `size` pixels a side with a Lanczos filter.

    This is how StyleID prepares its pictures ("Style Injection in Diffusion", Chung et al. 2024,
    code of the authors).

    Args:
        image: the pixels.
        size: side of the result.
        original_size: height and width before `decode_image` reduced the picture, so that the
            cut falls on the same place as in the whole picture.
    """
    original_size = original_size or image.shape[:2]
    reduction = round(max(original_size) / max(image.shape[:2]))
    top, left, side = _central_square(original_size)
    box = np.array([left, top, left + side, top + side]) / reduction
    # Cropped to whole pixels first: a resize looks beyond its box, a crop does not.
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    square = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
    box = tuple(box - [x0, y0, x0, y0])
    return np.array(square.resize((size, size), Image.Resampling.LANCZOS, box))


def resize_shorter_side(
    image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Reduce an image, with a Lanczos filter, until its shorter side has `size` pixels.

    The aspect ratio is kept to the pixel; smaller images stay as they are.
    """
    height, width = image.shape[:2]
    factor = size / min(height, width)
    if factor >= 1:
        return image
    target = (max(size, round(width * factor)), max(size, round(height * factor)))
    return np.array(Image.fromarray(image).resize(target, Image.Resampling.LANCZOS))


def float_from_uint8(image: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Convert pixels 0..255 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def uint8_from_float(image: np.ndarray) -> UInt8[np.ndarray, "*shape"]:
    """Convert float pixels in [0, 1] to 0..255: values outside are clipped, the rest rounded.

    Raises:
        ImageError: not floating point, or a value is not a number.
    """
    if not np.issubdtype(image.dtype, np.floating):
        raise ImageError(f"expected float pixels in [0, 1], got {image.dtype}.")
    if np.isnan(image).any():
        raise ImageError("expected pixels in [0, 1], got NaN.")
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _central_square(size: tuple[int, int]) -> tuple[int, int, int]:
    """Top, left and side of the largest central square."""
    side = min(size)
    return round((size[0] - side) / 2), round((size[1] - side) / 2), side


@contextlib.contextmanager
def _opened(
    file: str | os.PathLike | io.BytesIO, name: str | None, min_side: int, max_pixels: int
) -> Iterator[Image.Image]:
    """Open a picture, check its size by the header, and turn every failure into an ImageError."""
    # repr() keeps the message on one line and printable whatever the file is called.
    label = repr(str(file) if name is None else name)
    if not isinstance(file, io.BytesIO):
        try:
            check_file(file, MAX_FILE_BYTES, name=name)
        except InputError as error:
            raise ImageError(f"cannot read {one_line(error)}.") from error
    try:
        # With TIFF and WebP, imported above, these are all of ours. For a format that it does not
        # have yet, Pillow would load every format that it knows.
        Image.preinit()
        with Image.open(file, formats=sorted(set(_FORMATS.values()))) as picture:
            width, height = picture.size
            if max(width, height) > MAX_SIDE:
                raise ImageError(
                    f"{label} has {width} x {height} pixels; a side may have {MAX_SIDE}."
                )
            if width * height > max_pixels:
                raise ImageError(
                    f"{label} has {width} x {height} pixels, more than the limit of {max_pixels}."
                )
            if min(width, height) < min_side:
                raise ImageError(
                    f"{label} has {width} x {height} pixels; its shorter side needs {min_side}."
                )
            yield picture
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"cannot read {label}: no {FORMATS} picture found in it.") from error
    except Exception as error:
        # Decoders raise nearly anything on damaged files: SyntaxError, struct.error, EOFError...
        raise ImageError(f"cannot read {label}: {one_line(error)}.") from error


def _orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1  # a damaged EXIF block does not spoil the pixels
    return orientation if orientation in range(1, 9) else 1


def _rgb_profile(picture: Image.Image) -> bytes | None:
    profile = picture.info.get("icc_profile")
    # ICC.1:2022, 7.2: bytes 16 to 19 of the header name the colour space of the pixels.
    return profile if profile and profile[16:20] == b"RGB " else None


def _rgb_pixels(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if picture.mode == "F" or picture.mode.startswith("I"):
        grey = _eight_bit_grey(np.asarray(picture))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _eight_bit_grey(values: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """Scale 16-bit, 32-bit or float greys to 8 bits; Pillow itself would clip them at 255."""
    low, high = values.min(), values.max()
    white = 1.0 if high <= 1 else 255.0
    if np.issubdtype(values.dtype, np.integer):
        white = 65535.0
    if not (low >= 0 and high <= white):
        raise ValueError(
            f"its grey values run from {low} to {high}, outside the known ranges "
            "0..65535 (integer), 0..1 and 0..255 (float)"
        )
    return np.rint(values * (255.0 / white)).astype(np.uint8)
