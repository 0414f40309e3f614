"""Reading files that may be anything: regular files of a limited size alone, and JSON objects."""

import json
import os
import stat
from pathlib import Path

from triplets.errors import InputError, one_line

MAX_JSON_BYTES = 128 * 2**20
"""Largest JSON file that is read: ids and sizes of more than a million pictures."""


def check_file(
    path: str | os.PathLike, max_bytes: int | None = None, *, name: str | None = None
) -> None:
    """Refuse what is no regular file, such as a pipe, which would be waited for, and what is large.

    Args:
        path: the file.
        max_bytes: largest size.
        name: what messages call the file, by default the path.

    Raises:
        InputError: no such file, not a regular one, or more than `max_bytes`.
    """
    label = repr(str(path) if name is None else name)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a ValueError where the name holds a zero
        raise InputError(f"{label}: {one_line(error)}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{label}: not a regular file.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise InputError(
            f"{label}: {status.st_size / 2**20:.0f} MiB, more than the limit of "
            f"{max_bytes >> 20} MiB."
        )


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        InputError: no such file, a large one, no JSON, or JSON that is no object.
    """
    check_file(path, MAX_JSON_BYTES)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r}: not JSON: {one_line(error)}.") from error
    return parse_json(data, str(path))


def parse_json(data: bytes, name: str) -> dict:
    """The object in the bytes of a JSON file.

    Raises:
        InputError: no JSON, or JSON that is no object; it calls the file by its name.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name!r}: not JSON: {one_line(error)}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{name!r}: expected a JSON object, got {type(value).__name__}.")
    return value
