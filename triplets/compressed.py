"""Pictures as lossless WebP in an uncompressed tar, of which each can be read by itself.

Tar, because every language and tool reads it, streaming loaders included, and because it needs no
further package. The places of the pictures are kept with the description of the tar, so that one
picture is one read.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from triplets.atomic import synced_file
from triplets.errors import one_line
from triplets.format import DatasetError
from triplets.storage import Storage

EFFORT = 0
"""Of the encoder, 0 to 100: larger ones take far longer for a few per cent of the bytes
(benchmarks/RESULTS.md)."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def encode_picture(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as lossless WebP."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True, quality=EFFORT, method=0)
    return file.getvalue()


def decode_picture(data: bytes, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a WebP.

    Args:
        data: the bytes of its file.
        size: its height and width.

    Raises:
        ValueError: no such picture, or one of another size.
        OSError: a damaged one.
    """
    with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
        if image.size != size[::-1] or image.mode != "RGB":
            raise ValueError(
                f"expected RGB of {size[0]} x {size[1]}, got {image.mode} of {image.height} x "
                f"{image.width}"
            )
        return np.array(image)


def write_tar(folder: Path, stem: str, images: Iterable[np.ndarray]) -> tuple[Path, dict[str, Any]]:
    """Write pictures as STEM-SHA.tar.

    Args:
        folder: where to.
        stem: first part of the name.
        images: uint8 pictures [h w 3].

    Returns:
        The file, and what its description has to say of it: `tar_sha256` and `offsets`.

    Raises:
        OSError: the disk is full and so on.
    """
    unnamed = folder / f"{stem}.tar"
    offsets = []
    # The encoder lets go of the interpreter: as many pictures at once as there are processors.
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        synced_file(unnamed) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row, data in enumerate(pool.map(encode_picture, images)):
            member = tarfile.TarInfo(f"{row:06d}.webp")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            end = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            offsets.append([tar.offset - end, len(data)])
    with open(unnamed, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    path = folder / tar_name(stem, sha256)
    os.rename(unnamed, path)
    return path, {"tar_sha256": sha256, "offsets": offsets}


def tar_name(stem: str, sha256: str) -> str:
    """Name of the tar with those bytes."""
    return f"{stem}-{sha256[:16]}.tar"


class PictureTar:
    """The pictures of a tar, each decoded when it is asked for.

    Args:
        storage: where the dataset lies.
        stem: first part of the tar's name, with its folder.
        description: what stands in its description.
        described_by: the name of the description.
        shape: number, height, width and 3.

    Raises:
        DatasetError: a description that does not fit.
    """

    def __init__(
        self,
        storage: Storage,
        stem: str,
        description: dict,
        described_by: str,
        shape: tuple[int, int, int, int],
    ):
        sha256, offsets = description.get("tar_sha256"), description.get("offsets")
        if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise DatasetError(
                f"{storage.path(described_by)}: tar_sha256 must be 64 hexadecimal digits."
            )
        if not (
            isinstance(offsets, list) and len(offsets) == shape[0] and all(map(_is_place, offsets))
        ):
            raise DatasetError(
                f"{storage.path(described_by)}: offsets must be {shape[0]} pairs of the first byte "
                "and the length of a picture."
            )
        self.shape, self.name = shape, tar_name(stem, sha256)
        self._storage, self._sha256, self._offsets = storage, sha256, offsets

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> UInt8[np.ndarray, "*n h w 3"]:
        """One picture, or those of a slice or of an array of rows."""
        chosen = np.arange(len(self))[rows]
        if np.ndim(chosen):
            pictures = [self._read(row) for row in chosen.ravel().tolist()]
            return np.array(pictures, np.uint8).reshape(*chosen.shape, *self.shape[1:])
        return self._read(int(chosen))

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        return map(self._read, range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _read(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        offset, length = self._offsets[row]
        data = self._storage.read(self.name, offset, length, self._sha256)
        try:
            return decode_picture(data, self.shape[1:3])
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DatasetError(
                f"{self._storage.path(self.name)}: picture {row}: {one_line(error)}."
            ) from error


def pixels_sha256(pictures: np.ndarray | PictureTar) -> str:
    """What `triplets.format.array_sha256` is of all the pixels, one picture in memory at a time."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(np.ascontiguousarray(picture))
    return digest.hexdigest()


def _is_place(place: object) -> bool:
    return (
        isinstance(place, list)
        and len(place) == 2
        and all(type(value) is int and 0 <= value < 2**53 for value in place)
    )
