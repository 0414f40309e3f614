"""The test split: the tenth of the pictures in a folder that no training may see.

A picture belongs to it by its file name alone, so that everyone who splits a folder, whichever
other pictures it holds, splits it alike. (What a student's training holds out of its triplets is
another thing, its validation.)
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from triplets.atomic import atomic_path, make_folder
from triplets.errors import InputError
from triplets.images import IMAGE_SUFFIXES, picture_or_other


def in_test_split(file_name: str) -> bool:
    """True for a tenth of all file names: those whose sha1 is a multiple of 10."""
    return int(hashlib.sha1(file_name.encode()).hexdigest(), 16) % 10 == 0


def training_files(folder: Path) -> list[Path]:
    """The pictures of a folder that training may see, ordered by their names.

    Raises:
        InputError: there are none.
    """
    files = _picture_files(folder)
    if chosen := sorted(file for file in files if not in_test_split(file.name)):
        return chosen
    raise InputError(
        f"all {len(files)} pictures in {str(folder)!r} are in the test split; add some."
    )


def test_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the test split, ordered by a hash of their names.

    Raises:
        InputError: there are none.
    """
    files = _picture_files(folder)
    if chosen := [file for file in files if in_test_split(file.name)]:
        return sorted(chosen, key=lambda file: hashlib.sha1(file.name.encode()).hexdigest())
    raise InputError(
        f"none of the {len(files)} pictures in {str(folder)!r} is in the test split, which is "
        "chosen by a hash of the file names; add some."
    )


def _picture_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is not a folder; expected a folder of pictures.")
    files = [file for file in folder.iterdir() if picture_or_other(file) == "picture"]
    if not files:
        raise InputError(f"{str(folder)!r} holds no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    return files


@dataclass(frozen=True)
class SplitConfig:
    """Split a folder of pictures into OUT/train and OUT/test."""

    pictures: Path
    """Folder of pictures, without subfolders."""
    out: Path
    """Folder for both parts. Files are linked if the file system allows it, otherwise copied."""


def split_pictures(config: SplitConfig) -> None:
    """Link every picture into its part; what is there already stays.

    Raises:
        InputError: no such folder, or a file in the place of one.
    """
    if not config.pictures.is_dir():
        raise InputError(f"--pictures {config.pictures}: no such folder.")
    counts = {"train": 0, "test": 0}
    for file in sorted(config.pictures.iterdir()):
        if not file.is_file():
            continue
        part = "test" if in_test_split(file.name) else "train"
        counts[part] += 1
        target = config.out / part / file.name
        make_folder(target.parent)
        if not target.exists():
            try:
                os.link(file, target)
            except OSError:
                with atomic_path(target) as partial:
                    shutil.copyfile(file, partial)
    print(f"{config.out}: {counts['train']} in train, {counts['test']} in test")
