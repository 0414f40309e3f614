"""The command that makes a triplet dataset from pictures that another tool stylised."""

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from triplets.errors import InputError, one_line
from triplets.images import MAX_SIDE, DecodedImage, ImageError, crop_and_resize, decode_image
from triplets.sources import ImageFolder, ImageSet, room_for
from triplets.table import read_table
from triplets.writer import TripletWriter

KINDS = ("content", "style", "stylised")


@dataclass(frozen=True)
class ImportConfig:
    """Make a dataset from three folders with matching names, or from a CSV file of paths."""

    out: str | Path
    """Folder of the dataset, or an address such as s3://bucket/folder; an import that was
    interrupted continues."""
    content: Path | None = None
    """Folder of content pictures."""
    style: Path | None = None
    """Folder of style pictures, one per content, with the same name apart from the suffix."""
    stylised: Path | None = None
    """Folder of stylised pictures with the same names."""
    csv: Path | None = None
    """Instead of the folders: a table with the columns content, style and stylised, which hold
    paths relative to the file. A content or style that several rows name is stored once."""
    size: int | None = None
    """Side of the pictures in pixels; they are cropped to squares. By default the shorter side of
    the first stylised picture."""
    shard_size: int = 64
    """Triplets per shard."""

    def __post_init__(self):
        folders = (self.content, self.style, self.stylised)
        if (self.csv is None) == (None in folders) or (self.csv is not None and any(folders)):
            raise InputError(
                "give either --csv, or the three folders --content, --style and --stylised."
            )
        if self.size is not None and self.size < 1:
            raise InputError(f"--size {self.size}: expected at least 1.")
        if self.size is not None and self.size > MAX_SIDE:
            raise InputError(f"--size {self.size}: expected at most {MAX_SIDE}.")
        if self.shard_size < 1:
            raise InputError(f"--shard-size {self.shard_size}: expected at least 1.")


class PictureFile(NamedTuple):
    """A picture file and the id that it has in the dataset."""

    path: Path
    id: str


def import_pictures(config: ImportConfig) -> None:
    """Write the dataset, or what is left of it; see `ImportConfig`.

    Raises:
        InputError: names that do not match, a picture that cannot be read, or a folder that holds
            something else.
        OSError: the disk is full and so on; finished shards are kept.
    """
    rows = _rows_of_csv(config.csv) if config.csv else _rows_of_folders(config)
    size = config.size or min(_decode(rows[0][2]).original_size)
    contents, styles = (list(dict.fromkeys(column)) for column in list(zip(*rows, strict=True))[:2])
    content_rows, style_rows = (
        {picture: row for row, picture in enumerate(kind)} for kind in (contents, styles)
    )
    stylised = [row[2] for row in rows]
    writer = TripletWriter(
        config.out,
        contents=_image_set(contents, size),
        styles=_image_set(styles, size),
        pairs=np.array([[content_rows[content], style_rows[style]] for content, style, _ in rows]),
        settings={"imported": True, "stylised_sha256": _files_sha256(stylised)},
        provenance={
            name: str(value) for name in (*KINDS, "csv") if (value := getattr(config, name))
        },
        shard_size=config.shard_size,
    )
    for shard in writer.missing_shards():
        start = shard * config.shard_size
        pictures = stylised[start : start + config.shard_size]
        writer.write_shard(shard, _load(pictures, size)[0])
    print(
        f"{len(rows)} triplets of {len(contents)} contents and {len(styles)} styles, "
        f"{size} x {size} px, are in {config.out}"
    )


def _rows_of_folders(config: ImportConfig) -> list[tuple[PictureFile, ...]]:
    """Content, style and stylised picture of every name that the three folders share."""
    folders = []
    for kind in KINDS:
        source = ImageFolder(getattr(config, kind))
        for name, reason in source.skipped:
            print(f"skipped {kind} {name}: {reason}", file=sys.stderr)
        pictures = {
            PurePosixPath(name).with_suffix("").as_posix(): PictureFile(source.folder / name, name)
            for name in source.ids
        }
        if len(pictures) < len(source.ids):
            stems = Counter(PurePosixPath(name).with_suffix("") for name in source.ids)
            twice = stems.most_common(1)[0][0].as_posix()
            raise InputError(f"{source.folder}: several pictures are called {twice}.*; keep one.")
        folders.append(pictures)
    shared = sorted(set.intersection(*map(set, folders)))
    for kind, pictures in zip(KINDS, folders, strict=True):
        for name in sorted(pictures.keys() - set(shared)):
            print(f"skipped {kind} {pictures[name].id}: not in all folders", file=sys.stderr)
    if not shared:
        raise InputError(
            "the three folders share no names; expected names such as content/7.jpg, style/7.jpg "
            "and stylised/7.png."
        )
    return [tuple(pictures[name] for pictures in folders) for name in shared]


def _rows_of_csv(path: Path) -> list[tuple[PictureFile, ...]]:
    if not path.is_file():
        raise InputError(f'--csv "{path}": no such file.')
    rows = []
    for line, names in read_table(path, KINDS):
        if not all(names):
            raise InputError(f"{path}, line {line}: a column is empty.")
        rows.append(tuple(PictureFile(path.parent / name, name) for name in names))
    if not rows:
        raise InputError(f"{path} names no triplets.")
    return rows


def _image_set(pictures: Sequence[PictureFile], size: int) -> ImageSet:
    images, original_sizes = _load(pictures, size)
    return ImageSet(images, [picture.id for picture in pictures], original_sizes)


def _load(
    pictures: Sequence[PictureFile], size: int
) -> tuple[UInt8[np.ndarray, "n s s 3"], list[tuple[int, int]]]:
    """Pictures, cropped and resized, and their original sizes."""
    images = room_for(len(pictures), size)
    original_sizes = []
    for i, picture in enumerate(pictures):
        decoded = _decode(picture)
        images[i] = crop_and_resize(decoded.pixels, size)
        original_sizes.append(decoded.original_size)
    return images, original_sizes


def _decode(picture: PictureFile) -> DecodedImage:
    try:
        return decode_image(picture.path)
    except ImageError as error:
        raise InputError(f"{one_line(error)}; repair it, or leave its triplet out.") from error


def _files_sha256(pictures: Sequence[PictureFile]) -> str:
    """One hash of all the files' bytes, so that a continued import cannot mix in other pictures."""
    digest = hashlib.sha256()
    for picture in pictures:
        try:
            digest.update(hashlib.sha256(picture.path.read_bytes()).digest())
        except OSError as error:
            raise InputError(f"{str(picture.path)!r}: {one_line(error)}.") from error
    return digest.hexdigest()
