"""The triplet dataset on disk, format versions 1 and 2.

Version 1 holds plain arrays, which any program can map into memory:

    manifest.json               settings and counts, written first, never changed
    contents.npy  styles.npy    uint8 [n h w 3]: every content and style picture once
    contents.json styles.json   ids, sha256 of the array; original sizes, ids_sha256 (optional)
    pairs-00000/                one shard: a directory that appears under its name when whole
        stylised.npy            uint8 [k h w 3]
        index.npy               int32 [k 2]: row in contents, row in styles
        shard.json              rows (k), sha256 of both arrays, remarks (optional)
    NAME.npy                    further arrays that the manifest lists (optional)

manifest.json must hold `format_version` (1), `image_size` ([h, w]), `num_contents`, `num_styles`
and `num_pairs` (planned for the whole dataset). Optional: `shard_size` (pairs per shard; lets
`TripletDataset.verify` name missing shards), `pairs_sha256` (of the planned int32 [num_pairs 2]
array), `settings` (what decides the pixels), `arrays` (names and sha256 of further arrays, of
small letters and underscores) and `provenance` (where the pixels came from).

A sha256 is that of an array's elements in C order, without the .npy header; ids_sha256 is that of
the ids in UTF-8, each followed by a zero byte. All numbers are little-endian. Nothing is pickled,
and no name in a JSON file is ever used as a path.

Version 2 holds every picture as a lossless WebP in an uncompressed tar, for buckets and archives:

    manifest.json               as above; `shard_size` and `pairs_sha256` are required
    pairs.npy                   int32 [num_pairs 2], the plan: shard s holds the pairs from
                                s * shard_size on
    contents-SHA.tar  styles-SHA.tar    members 000000.webp, 000001.webp and so on
    contents.json  styles.json  as above, and `tar_sha256` and `offsets`
    pairs-00000/
        stylised-SHA.tar        likewise
        shard.json              as above, and `tar_sha256` and `offsets`
    NAME.npy                    as above

`tar_sha256` is that of the tar's bytes, SHA its first 16 digits, and `offsets` are pairs of the
first byte and the length of each picture's file in it. All other checksums are those of the pixels,
as in version 1, so that both versions of a dataset have the same ones. As a tar's name depends on
its bytes, a description always stands beside the tar that it describes, even if two machines have
made the same shard with other bytes.

In a bucket, where folders do not appear as a whole, a shard exists once its shard.json does; a
description is uploaded after what it describes.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from triplets.errors import InputError, one_line
from triplets.reading import check_file, read_json

FORMAT_VERSIONS = (1, 2)

_REQUIRED_COUNTS = ("num_contents", "num_styles", "num_pairs")
_SHARD_NAME = re.compile(r"pairs-(\d{5,})")
_ARRAY_NAME = re.compile(r"[a-z][a-z_]*")


class DatasetError(InputError):
    """A triplet dataset cannot be read or written; the message is one sentence."""


class Triplet(NamedTuple):
    """A content picture, a style picture and the content in that style: uint8 RGB arrays."""

    content: UInt8[np.ndarray, "h w 3"]
    style: UInt8[np.ndarray, "h w 3"]
    stylised: UInt8[np.ndarray, "h w 3"]
    content_id: str
    style_id: str


def shard_name(shard: int) -> str:
    """Name of a shard's directory, such as pairs-00012."""
    return f"pairs-{shard:05d}"


def shard_number(name: str) -> int | None:
    """Number of the shard of that name; None if it is not the name of a shard."""
    match = _SHARD_NAME.fullmatch(name)
    return int(match[1]) if match else None


def list_shards(root: Path) -> list[int]:
    """Numbers of the finished shards in a dataset folder, in order."""
    numbers = map(shard_number, os.listdir(root))
    return sorted(number for number in numbers if number is not None)


def array_sha256(array: np.ndarray) -> str:
    """Hexadecimal sha256 of the elements in C order."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def ids_sha256(ids: Sequence[str]) -> str:
    """Hexadecimal sha256 of ids, each followed by a zero byte."""
    return hashlib.sha256("".join(f"{name}\0" for name in ids).encode()).hexdigest()


def load_array(
    path: Path,
    shape: tuple[int | None, ...] | None = None,
    dtype: str | None = None,
    *,
    name: str | None = None,
) -> np.ndarray:
    """Memory map an .npy file and check what it holds.

    Args:
        path: the file.
        shape: the expected shape, with None for any length; None for any shape.
        dtype: the expected type of the elements, with its byte order, such as "uint8" or "<i4";
            None for any.
        name: what messages call the file, by default the path.

    Raises:
        DatasetError: missing, unreadable, truncated, another shape or another dtype.
    """
    try:
        check_file(path, name=name)
    except InputError as error:
        raise DatasetError(f"{one_line(error)}.") from error
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy evaluates the header, and so raises anything
        raise DatasetError(f"{name or path}: {one_line(error)}.") from error
    if shape is None:
        shape = array.shape
    if dtype is None:
        dtype = array.dtype.str
    fits = len(array.shape) == len(shape) and all(
        expected in (None, given) for given, expected in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(dtype):
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise DatasetError(
            f"{name or path}: expected {np.dtype(dtype)} [{expected}], "
            f"got {array.dtype} {list(array.shape)}."
        )
    return array


def check_array_names(names: Iterable[str]) -> None:
    """Raise `DatasetError` unless all can be file names of further arrays."""
    for name in names:
        if not _ARRAY_NAME.fullmatch(name) or name in ("contents", "styles", "pairs"):
            raise DatasetError(
                f"array name {name!r}: expected small letters and underscores, and none of "
                '"contents", "styles" and "pairs".'
            )


def encode_json(value: dict) -> bytes:
    """JSON with sorted keys and fixed indentation: equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    return f"{text}\n".encode("ascii")


def load_json(path: Path) -> dict:
    """Read a JSON object; raises `DatasetError` if there is none."""
    try:
        return read_json(path)
    except InputError as error:
        raise DatasetError(f"{one_line(error)}.") from error


def check_manifest(manifest: dict, path: str | Path) -> None:
    """Check the keys that every dataset has.

    Args:
        manifest: what the file holds.
        path: what messages call the file.

    Raises:
        DatasetError: another format version, a key missing or out of range.
    """
    version = manifest.get("format_version")
    if version not in FORMAT_VERSIONS or isinstance(version, bool):
        raise DatasetError(
            f"{path}: format version {version!r} is not known; this release reads versions "
            f"{FORMAT_VERSIONS[0]} and {FORMAT_VERSIONS[1]}."
        )
    image_size = manifest.get("image_size")
    if not (
        isinstance(image_size, list) and len(image_size) == 2 and all(map(_is_count, image_size))
    ):
        raise DatasetError(f"{path}: image_size must be [height, width], got {image_size!r}.")
    for key in _REQUIRED_COUNTS if version == 1 else (*_REQUIRED_COUNTS, "shard_size"):
        if not _is_count(manifest.get(key)):
            raise DatasetError(f"{path}: {key} must be a positive whole number.")
    if not isinstance(manifest.get("arrays", {}), dict):
        raise DatasetError(f"{path}: arrays must be an object of names and sha256.")
    try:
        check_array_names(manifest.get("arrays", {}))
    except DatasetError as error:
        raise DatasetError(f"{path}: {one_line(error)}.") from error
    if "shard_size" in manifest and not _is_count(manifest["shard_size"]):
        raise DatasetError(f"{path}: shard_size must be a positive whole number.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
