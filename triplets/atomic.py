"""Atomic file writing: a file stands under its name whole and on disk, or not at all."""

import contextlib
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
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Write a file that takes the place of `path` only when the block ends without an error.

    The bytes go to a hidden file in the same folder first; on any error it is removed and what
    stood at `path` before stays as it was.

    Raises:
        OSError: the folder does not exist, the disk is full and so on; it names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with synced_file(temporary) as file:
            yield file
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        # The caller knows the file that was asked for, not the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
