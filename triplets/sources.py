"""Where content and style pictures come from: a folder, or a TensorFlow Datasets split."""

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from triplets.errors import InputError, is_utf8, one_line
from triplets.images import (
    FORMATS,
    IMAGE_SUFFIXES,
    MAX_SIDE,
    DecodedImage,
    ImageError,
    crop_and_resize,
    decode_image,
    picture_or_other,
)

MIN_SIDE = 16
"""Shorter side, in pixels, below which a source refuses a picture: nothing there to stylise."""

# The last colon outside brackets divides name and split: coco/2017:1.1.0:train[:100]
TFDS_SPEC = re.compile(r"tfds:(?P<name>[^\[\]]+):(?P<split>[^:\[\]]+(\[[^\[\]]*\][^:\[\]]*)*)")


class SourceError(InputError):
    """A source of pictures cannot be used at all; the message is one sentence."""


class Skipped(NamedTuple):
    """A picture that was left out, and why."""

    name: str
    reason: str


@runtime_checkable
class ImageSource(Protocol):
    """Pictures with stable ids, decoded one at a time on request."""

    ids: Sequence[str]
    """One id per picture, without duplicates, in the order of the indices."""
    skipped: Sequence[Skipped]
    """What was found but is not served."""

    def __len__(self) -> int: ...

    def load(self, index: int, at_least: int | None = None) -> DecodedImage:
        """Decode one picture; raises `ImageError`. See `decode_image` for `at_least`."""
        ...


class ImageFolder:
    """The pictures in a folder and the folders below it, in the order of their ids.

    An id is the path relative to the folder, with its suffix and with forward slashes. A picture
    counts as one by its suffix or by its first bytes; those of other formats, and videos, are
    listed in `skipped`. Hidden files and folders, and what is neither, are passed over. Symbolic
    links are followed only to files inside the folder; the others are listed in `skipped`.

    Raises:
        SourceError: no such folder, or not one picture in it.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = "is not a folder" if self.folder.exists() else "does not exist"
            raise SourceError(f"{str(folder)!r} {what}; expected pictures or a folder of them.")
        self.skipped: list[Skipped] = []
        self.ids = self._list_ids()
        if not self.ids:
            refused = "".join(f"; {name!r} {reason}" for name, reason in self.skipped[:1])
            raise SourceError(
                f"{str(folder)!r} holds no pictures ({', '.join(IMAGE_SUFFIXES)}){refused}."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int, at_least: int | None = None) -> DecodedImage:
        """Decode one picture; raises `ImageError`. See `decode_image` for `at_least`."""
        return decode_image(self.folder / self.ids[index], at_least=at_least, min_side=MIN_SIDE)

    def _list_ids(self) -> list[str]:
        ids = []
        root = Path(os.path.realpath(self.folder))
        for folder, folders, files in os.walk(self.folder, onerror=_refuse_unreadable):
            for name in folders:
                path = Path(folder, name)
                if path.is_symlink() and not name.startswith("."):
                    self._skip(path, "is a link to a folder, which is not followed")
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(folder, name)
                kind = None if name.startswith(".") else picture_or_other(path)
                if kind is None:
                    continue
                if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                    self._skip(path, "is a link that leaves the folder")
                elif not path.is_file():
                    self._skip(path, "is not a regular file")
                elif not is_utf8(path.relative_to(self.folder).as_posix()):
                    self._skip(path, "has a name that is not UTF-8")
                elif kind == "other":
                    self._skip(path, f"is not a {FORMATS} picture")
                else:
                    ids.append(path.relative_to(self.folder).as_posix())
        self.skipped.sort()
        return sorted(ids)

    def _skip(self, path: Path, reason: str) -> None:
        name = path.relative_to(self.folder).as_posix()
        # Printable, also if it is not text.
        self.skipped.append(Skipped(name if is_utf8(name) else ascii(name)[1:-1], reason))


class ImageFile:
    """One picture file; its id is its name.

    Raises:
        SourceError: no such file, or its name is not UTF-8.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise SourceError(f"{str(path)!r} does not exist; expected a picture.")
        if not is_utf8(self.path.name):
            raise SourceError(f"{str(path)!r} has a name that is not UTF-8; rename it.")
        self.ids = [self.path.name]
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        return 1

    def load(self, index: int, at_least: int | None = None) -> DecodedImage:
        """Decode the picture; raises `ImageError`. See `decode_image` for `at_least`."""
        return decode_image(self.path, at_least=at_least, min_side=MIN_SIDE)


class TFDSImages:
    """The pictures of one split of a TensorFlow Datasets dataset, read without TensorFlow.

    The dataset is prepared (downloaded) at the first use; many standard datasets need TensorFlow
    for that one step. An id is NAME:SPLIT:index.

    Args:
        name: such as "imagenette/320px-v2", with configuration and version if wanted.
        split: such as "train" or "train[:1000]".

    Raises:
        SourceError: tensorflow_datasets is not installed, unknown name or split, a dataset
            without pictures, or its preparation failed.
    """

    def __init__(self, name: str, split: str):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise SourceError(
                f"reading tfds:{name}:{split} needs TensorFlow Datasets: "
                'pip install "style-distil[tfds]".'
            ) from error
        try:
            features = tfds.builder(name).info.features
            self._key = _image_key(features, tfds.features.Image)
            # Encoded bytes, because `decode_image` is the one place where pixels are decoded.
            self._records = tfds.data_source(
                name, split=split, decoders={self._key: tfds.decode.SkipDecoding()}
            )
        except Exception as error:
            reason = one_line(error)
            if isinstance(error, ImportError | NotImplementedError):
                reason += (
                    '; prepare the dataset once with TensorFlow and file_format="array_record"'
                )
            raise SourceError(
                f"cannot open tfds:{name}:{split}: {type(error).__name__}: {reason}."
            ) from error
        self.ids = [f"{name}:{split}:{index}" for index in range(len(self._records))]
        self.skipped: list[Skipped] = []
        if not self.ids:
            raise SourceError(f"tfds:{name}:{split} holds no pictures.")

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int, at_least: int | None = None) -> DecodedImage:
        """Decode one picture; raises `ImageError`. See `decode_image` for `at_least`."""
        encoded = io.BytesIO(self._records[index][self._key])
        return decode_image(encoded, name=self.ids[index], at_least=at_least, min_side=MIN_SIDE)


def open_source(spec: str) -> ImageSource:
    """Open a source of pictures by its name on a command line.

    Args:
        spec: a folder, a picture, or tfds:NAME:SPLIT such as "tfds:imagenette:train[:100]".

    Raises:
        SourceError: nothing usable there, or tfds:... without tensorflow_datasets.
    """
    if not spec:  # which would be the current folder
        raise SourceError("expected a folder, a picture or tfds:NAME:SPLIT, got an empty name.")
    if not spec.startswith("tfds:"):
        return ImageFile(spec) if Path(spec).is_file() else ImageFolder(spec)
    match = TFDS_SPEC.fullmatch(spec)
    if match is None:
        raise SourceError(f"expected tfds:NAME:SPLIT such as tfds:imagenette:train, got {spec!r}.")
    return TFDSImages(match["name"], match["split"])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures of one size with their ids, as a triplet dataset stores them.

    Raises:
        ValueError: fields that do not fit together.
    """

    images: np.ndarray
    """uint8 [n h w 3], RGB."""
    ids: Sequence[str]
    original_sizes: Sequence[tuple[int, int]]
    """Height and width of each picture before it was resized."""

    def __post_init__(self):
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(
                f"expected uint8 images [n h w 3], got {self.images.dtype} {list(shape)}"
            )
        if not len(self.ids) == len(self.original_sizes) == len(self.images):
            raise ValueError(
                f"expected an id and an original size for each of {len(self.images)} images, got "
                f"{len(self.ids)} ids and {len(self.original_sizes)} sizes"
            )
        if len(set(self.ids)) != len(self.ids):
            twice = next(name for i, name in enumerate(self.ids) if name in self.ids[:i])
            raise ValueError(f"ids must be unique, got {twice!r} twice")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class NativeCrops:
    """Squares that are cut from pictures at their own resolution, where strokes keep their size.

    Raises:
        SourceError: a number below 1, or a negative seed.
    """

    side: int
    """Of each square, in pixels of the picture."""
    per_picture: int = 1
    """How many distinct squares a picture gives, fewer if it has no more."""
    seed: int = 0
    """Decides, with the id of the picture alone, where the squares are."""

    def __post_init__(self):
        if self.side < MIN_SIDE or self.per_picture < 1 or self.seed < 0:
            raise SourceError(
                f"expected crops of at least {MIN_SIDE} pixels, at least one of each picture and a "
                f"seed from 0, got {self.side}, {self.per_picture} and {self.seed}."
            )

    def corners(self, name: str, height: int, width: int) -> list[tuple[int, int]]:
        """Left and top of each square of a picture, drawn evenly and without repetition.

        Raises:
            ImageError: the picture is smaller than a square.
        """
        rows, columns = height - self.side + 1, width - self.side + 1
        if min(rows, columns) < 1:
            raise ImageError(
                f"{name!r} has {width} x {height} pixels; crops of {self.side} pixels need more."
            )
        digest = hashlib.sha256(json.dumps([self.seed, name, self.side]).encode()).digest()
        rng = np.random.default_rng(list(digest))
        chosen = rng.choice(rows * columns, min(self.per_picture, rows * columns), replace=False)
        return [(int(place % columns), int(place // columns)) for place in chosen]


def load_images(
    source: ImageSource,
    size: int,
    *,
    limit: int | None = None,
    crops: NativeCrops | None = None,
) -> tuple[ImageSet, list[Skipped]]:
    """Load the usable pictures of a source, each cropped and resized to `size` x `size` pixels.

    Args:
        source: where the pictures come from.
        size: side in pixels.
        limit: stop after that many usable pictures, at least 1.
        crops: squares to cut instead of the central one, resized like it. The id of a square is
            that of its picture with its place in it, as in "pines.jpg[256x256+40+16]": width and
            height, then left and top in pixels.

    Returns:
        The pictures, and those left out with the reason of each.

    Raises:
        SourceError: not one picture can be used.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise SourceError(f"size and limit must be at least 1, got {size} and {limit}.")
    if size > MAX_SIDE:
        raise SourceError(f"size is {size}; a side may have {MAX_SIDE} pixels.")
    wanted = len(source) if limit is None else min(limit, len(source))
    images = room_for(wanted * (1 if crops is None else crops.per_picture), size)
    ids: list[str] = []
    original_sizes: list[tuple[int, int]] = []
    skipped = list(source.skipped)
    usable = 0
    with tqdm(total=wanted, desc="pictures", disable=None) as progress:
        for index in range(len(source)):
            if usable == wanted:
                break
            name = source.ids[index]
            try:
                decoded = source.load(index, at_least=size if crops is None else None)
                squares = _squares(name, decoded, size, crops)
            except ImageError as error:
                skipped.append(Skipped(name, one_line(error)))
                continue
            for square_name, square in squares:
                images[len(ids)] = square
                ids.append(square_name)
                original_sizes.append(decoded.original_size)
            usable += 1
            progress.update()
    if not ids:
        raise SourceError(
            f"none of the {len(source)} pictures can be used; the last: {skipped[-1].reason}."
        )
    return ImageSet(images[: len(ids)], ids, original_sizes), skipped


def _squares(
    name: str, decoded: DecodedImage, size: int, crops: NativeCrops | None
) -> list[tuple[str, np.ndarray]]:
    """Ids and pixels of what is used of a picture."""
    if crops is None:
        return [(name, crop_and_resize(decoded.pixels, size, original_size=decoded.original_size))]
    side = crops.side
    return [
        (
            f"{name}[{side}x{side}+{left}+{top}]",
            crop_and_resize(decoded.pixels[top : top + side, left : left + side], size),
        )
        for left, top in crops.corners(name, *decoded.pixels.shape[:2])
    ]


def room_for(count: int, size: int) -> UInt8[np.ndarray, "n s s 3"]:
    """An array for square pictures.

    Raises:
        SourceError: there is not so much memory.
    """
    try:
        return np.empty((count, size, size, 3), np.uint8)
    except (MemoryError, ValueError) as error:
        raise SourceError(
            f"{count} pictures of {size} x {size} px take {count * size**2 * 3 / 2**30:.0f} GiB, "
            "more than there is; take fewer or smaller ones."
        ) from error


def _image_key(features, image_feature: type) -> str:
    """Name of the feature that holds the picture: "image" if there is one, else the only one."""
    keys = [key for key, feature in features.items() if isinstance(feature, image_feature)]
    if "image" in keys:
        return "image"
    if len(keys) != 1:
        raise ValueError(f"expected one image feature, found {', '.join(keys) or 'none'}")
    return keys[0]


def _refuse_unreadable(error: OSError) -> None:
    raise SourceError(f"cannot list {str(error.filename)!r}: {error.strerror}.") from error
