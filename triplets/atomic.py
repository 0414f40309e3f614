"""Atomic file writing: a file stands under its name whole and on disk, or not at all."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from triplets.errors import InputError


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        InputError: a file is in the way.
        OSError: no permission and so on.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"cannot make the folder {str(folder)!r}: a file is in the way; give another one."
        ) from error


@contextlib.contextmanager
def synced_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Create `path` for writing and wait, at the end of the block, until its bytes are on disk.

    Raises:
        FileExistsError: `path` is there already.
    """
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: str | os.PathLike) -> None:
    """Wait until the entries of `folder` (new names, renames) are on disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows can neither open nor sync a directory
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` when the block ends without error.

    For programs that open files themselves; `atomic_write` suits all others. It is a hidden name in
    the same folder with the same suffix, from which such programs tell the format. On any error the
    file there is removed, and what stood at `path` before stays as it was.

    Raises:
        OSError: the folder does not exist, the disk is full and so on; it names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or str(error.filename) not in ("None", str(temporary)):
            raise
        # The caller knows the file that was asked for, not the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Write a file that takes the place of `path` when the block ends without error.

    On any error what stood at `path` before stays as it was.

    Raises:
        OSError: the folder does not exist, the disk is full and so on; it names `path`.
    """
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        yield file


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write a value as indented JSON, whole or not at all; paths in it become strings.

    Raises:
        TypeError: the value holds something that JSON does not know.
        OSError: the folder does not exist, the disk is full and so on; it names `path`.
    """
    text = json.dumps(value, indent=2, default=os.fspath)
    with atomic_write(path) as file:
        file.write(f"{text}\n".encode())
