"""Whether a checkpoint on disk is what was written: checksums of its files."""

import contextlib
import hashlib
from pathlib import Path

from triplets import InputError, one_line
from triplets.atomic import write_json
from triplets.reading import read_json

CHECKSUMS = "sha256.json"
"""File in the folder of a checkpoint: the sha256 of every other file, by its path in the folder."""

BEST_METRIC = "mse"
"""Validation metric whose smallest value marks the best checkpoint."""

METRICS = "metrics/metrics"
"""File in the folder of a checkpoint: figures of the validation, as JSON."""


def list_steps(folder: Path) -> list[int]:
    """The steps of the finished checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def write_checksums(folder: Path) -> None:
    """Record the files of each finished checkpoint in a folder that has no checksums yet."""
    for step in list_steps(folder):
        path = folder / str(step) / CHECKSUMS
        # Orbax removes checkpoints that are no longer needed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if not path.exists():
                write_json(path, {name: _sha256(file) for name, file in _files(path.parent)})


def has_checksums(checkpoint: Path) -> bool:
    """Whether they were written: not if the run was killed after its last save."""
    return (checkpoint / CHECKSUMS).exists()


def find_damage(checkpoint: Path, item: str = "") -> str:
    """What is wrong with the files of a checkpoint, without a full stop; empty if nothing is.

    Args:
        checkpoint: its folder.
        item: the item whose files are compared with their checksums, beside the metrics; by
            default all.
    """
    try:
        if not isinstance(read_json(checkpoint / METRICS).get(BEST_METRIC), int | float):
            return f"{METRICS} lacks the validation error"
        recorded = read_json(checkpoint / CHECKSUMS) if has_checksums(checkpoint) else {}
        files = dict(_files(checkpoint))
        for name in recorded:
            if not name.startswith(item):
                continue
            if name not in files:
                return f"{name} is missing"
            if _sha256(files[name]) != recorded[name]:
                return f"{name} does not match its checksum"
    except (InputError, OSError) as error:
        return one_line(error)
    return ""


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files in a folder and below, but for the checksums, by their path in it."""
    return [
        (path.relative_to(folder).as_posix(), path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
