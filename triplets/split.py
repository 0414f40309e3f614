"""Which pictures of a folder no training may see."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from triplets.atomic import make_folder
from triplets.errors import InputError
from triplets.images import IMAGE_SUFFIXES


def is_held_out(file_name: str) -> bool:
    """True for the tenth of all pictures that training never sees, by the name of the file."""
    return int(hashlib.sha1(file_name.encode()).hexdigest(), 16) % 10 == 0


def training_files(folder: Path) -> list[Path]:
    """The pictures of a folder that training may see, ordered by their names.

    Raises:
        InputError: there are none.
    """
    files = _picture_files(folder)
    if chosen := sorted(file for file in files if not is_held_out(file.name)):
        return chosen
    raise InputError(f"all {len(files)} pictures in {str(folder)!r} are held out; add some.")


def held_out_files(folder: Path) -> list[Path]:
    """The pictures of a folder that training never sees, ordered by a hash of their names.

    Raises:
        InputError: there are none.
    """
    files = _picture_files(folder)
    if chosen := [file for file in files if is_held_out(file.name)]:
        return sorted(chosen, key=lambda file: hashlib.sha1(file.name.encode()).hexdigest())
    raise InputError(
        f"none of the {len(files)} pictures in {str(folder)!r} is in the held-out tenth, which a "
        "hash of the names decides; add some."
    )


def _picture_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is no folder; expected a folder of pictures.")
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise InputError(f"{str(folder)!r} holds no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    return files


@dataclass(frozen=True)
class SplitConfig:
    """Split a folder of pictures into OUT/train and OUT/held_out."""

    pictures: Path
    """Folder of pictures, without subfolders."""
    out: Path
    """Folder of the two parts; files are linked where the file system can, else copied."""


def split_pictures(config: SplitConfig) -> None:
    """Link every picture into its part; what is there already stays.

    Raises:
        InputError: no such folder, or a file where one should be made.
    """
    if not config.pictures.is_dir():
        raise InputError(f"--pictures {config.pictures}: no such folder.")
    counts = {"train": 0, "held_out": 0}
    for file in sorted(config.pictures.iterdir()):
        if not file.is_file():
            continue
        part = "held_out" if is_held_out(file.name) else "train"
        counts[part] += 1
        target = config.out / part / file.name
        make_folder(target.parent)
        if not target.exists():
            try:
                os.link(file, target)
            except OSError:
                partial = target.with_name(f".{file.name}.partial")
                shutil.copyfile(file, partial)
                partial.replace(target)
    print(f"{config.out}: {counts['train']} to train on, {counts['held_out']} held out")
