"""Reading files that may be anything: regular files of a limited size alone, and JSON objects."""

import json
import os
import stat
from pathlib import Path

from triplets.errors import InputError, one_line

MAX_JSON_BYTES = 128 * 2**20
"""Largest JSON file that is read: ids and sizes of more than a million pictures."""


def check_file(path: str | os.PathLike, max_bytes: int | None = None) -> None:
    """Refuse what is no regular file, such as a pipe, which would be waited for, and what is large.

    Raises:
        InputError: no such file, not a regular one, or more than `max_bytes`.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a ValueError where the name holds a zero
        raise InputError(f"{str(path)!r}: {one_line(error)}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{str(path)!r} is not a regular file.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise InputError(
            f"{str(path)!r} has {status.st_size} bytes, more than the limit of {max_bytes}."
        )


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        InputError: no such file, a large one, no JSON, or JSON that is no object.
    """
    check_file(path, MAX_JSON_BYTES)
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not JSON: {one_line(error)}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{str(path)!r}: expected a JSON object, got {type(value).__name__}.")
    return value
