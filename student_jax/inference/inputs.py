"""What contents, styles and masks on a command line stand for."""

import glob
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from triplets import (
    DecodedImage,
    ImageError,
    ImageFile,
    ImageFolder,
    ImageSource,
    InputError,
    decode_image,
    open_source,
    resize_shorter_side,
)
from triplets.errors import one_line
from triplets.images import IMAGE_SUFFIXES, MAX_FILE_BYTES

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")

STREAM = "-"
"""Standard input as a content, standard output as the result."""

_WEIGHTED = re.compile(r"(?!tfds:)(?P<spec>.+):(?P<weight>\d+\.?\d*|\.\d+)")

Kind = Literal["picture", "video"]


@dataclass(frozen=True)
class Input:
    """One picture or video."""

    id: str
    """Path within its folder, name within its dataset, or the name of a single file."""
    label: str
    """What messages call it."""
    path: Path | None = None
    """Its file; None for standard input and for pictures of a dataset."""
    source: ImageSource | None = None
    """The dataset it is from, if it has no file of its own."""
    index: int = 0
    """Where it is in that dataset."""

    @property
    def kind(self) -> Kind:
        """Whether it is a picture or a video, by the name of its file."""
        is_video = self.path is not None and self.path.suffix.lower() in VIDEO_SUFFIXES
        return "video" if is_video else "picture"

    def load(self, size: int | None = None) -> DecodedImage:
        """Decode the picture.

        Args:
            size: shorter side in pixels to which larger pictures are reduced.

        Raises:
            ImageError: unreadable, or too large.
        """
        if self.path is not None:
            picture = decode_image(self.path, name=self.label, at_least=size)
        elif self.source is not None:
            picture = self.source.load(self.index, at_least=size)
        else:
            encoded = io.BytesIO(_standard_input())
            picture = decode_image(encoded, name=self.label, at_least=size)
        if size is None:
            return picture
        return picture._replace(pixels=resize_shorter_side(picture.pixels, size))


class Unusable(NamedTuple):
    """Something that was asked for but cannot be read."""

    name: str
    error: str
    """A sentence that says why."""


def find_inputs(specs: Sequence[str]) -> tuple[list[Input], list[Unusable]]:
    """Everything that some specs stand for.

    Args:
        specs: pictures, videos, folders, patterns such as "photos/*.jpg", tfds:NAME:SPLIT, or "-"
            for standard input.

    Returns:
        The inputs, each once, and what cannot be used.
    """
    inputs: list[Input] = []
    unusable: list[Unusable] = []
    skipped: dict[str, Unusable] = {}
    for spec in specs:
        if spec == STREAM:
            inputs.append(Input("stdin", "standard input"))
            continue
        try:
            paths = _matches(spec)
        except OSError as error:  # such as a name that is too long
            unusable.append(Unusable(spec, f"{spec!r}: {one_line(error)}."))
            continue
        if not paths:
            unusable.append(Unusable(spec, f"{spec!r} matches nothing; expected pictures."))
        for path in paths:
            try:
                if Path(path).suffix.lower() in VIDEO_SUFFIXES and Path(path).is_file():
                    inputs.append(Input(Path(path).name, path, Path(path)))
                    continue
                source = open_source(path)
            except InputError as error:
                unusable.append(Unusable(path, str(error)))
                continue
            except OSError as error:
                unusable.append(Unusable(path, f"{path!r}: {one_line(error)}."))
                continue
            for name, reason in source.skipped:
                skipped[str(Path(path, name))] = Unusable(name, f"{name!r} {reason}.")
            inputs += _pictures_of(source)
    found = {one.label: one for one in inputs}
    # A video in a folder is left out, unless it is named as well.
    unusable += [one for label, one in skipped.items() if label not in found]
    return list(found.values()), unusable


def kinds_by_name(specs: Sequence[str]) -> set[Kind | None]:
    """What some specs stand for, without looking at the files; None: only the files can say."""
    return {_kind_by_name(spec) for spec in specs}


def looks_weighted(spec: str) -> bool:
    """Whether a style has the form "a.jpg:0.7"."""
    return _WEIGHTED.fullmatch(spec) is not None


def split_weight(spec: str) -> tuple[str, float | None]:
    """Path and weight of a style such as "a.jpg:0.7"; a file of just that name has no weight."""
    match = _WEIGHTED.fullmatch(spec)
    if match is None or Path(spec).exists():
        return spec, None
    return match["spec"], float(match["weight"])


def mask_file(content: Input, mask: Path) -> Path:
    """The picture that says where a content is stylised.

    Args:
        content: the content.
        mask: that picture, or a folder with one for each content, by the content's id.

    Raises:
        InputError: the folder has none for this content.
    """
    if not mask.is_dir():
        return mask
    name = PurePosixPath(content.id)
    for suffix in IMAGE_SUFFIXES:
        path = mask / name.with_suffix(suffix)
        if path.is_file():
            return path
    expected = str(mask / name.with_suffix(".png"))
    raise InputError(f"{content.label!r} has no mask; expected {expected!r} or another format.")


def _pictures_of(source: ImageSource) -> list[Input]:
    if isinstance(source, ImageFile):
        return [Input(source.path.name, str(source.path), source.path)]
    if isinstance(source, ImageFolder):
        paths = [source.folder / name for name in source.ids]
        return [Input(name, str(path), path) for name, path in zip(source.ids, paths, strict=True)]
    return [Input(name, name, source=source, index=i) for i, name in enumerate(source.ids)]


def _matches(spec: str) -> list[str]:
    """The paths that a pattern matches; any other spec stands for itself."""
    if _is_pattern(spec) and not Path(spec).exists():
        return sorted(glob.glob(spec, recursive=True))
    return [spec]


def _kind_by_name(spec: str) -> Kind | None:
    suffix = Path(spec).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return None if _is_pattern(spec) and suffix not in IMAGE_SUFFIXES else "picture"


def _is_pattern(spec: str) -> bool:
    return glob.has_magic(spec) and not spec.startswith("tfds:")


def _standard_input() -> bytes:
    encoded = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(encoded) > MAX_FILE_BYTES:
        raise ImageError(f"standard input has more than {MAX_FILE_BYTES >> 20} MiB.")
    return encoded
