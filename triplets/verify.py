"""The command that checks a triplet dataset."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from triplets.cache import DEFAULT_GIB, Cache
from triplets.dataset import AGAIN, TripletDataset
from triplets.format import DatasetError


@dataclass(frozen=True)
class VerifyConfig:
    """Read a whole dataset, check every checksum and report what is damaged or missing."""

    root: Positional[str | Path]
    """Folder of the dataset, or an address such as s3://bucket/folder."""
    repair: bool = False
    """Move damaged shards and files to the folder damaged/ of the dataset, so that the command that
    wrote it makes them anew."""
    cache_dir: Path | None = None
    """Folder in which files of buckets are kept; by default ~/.cache/style-distil."""
    cache_gib: float = DEFAULT_GIB
    """GiB that such files may take there."""


def verify(config: VerifyConfig) -> None:
    """Print one sentence per fault.

    Raises:
        DatasetError: there are faults, or no dataset.
        OSError: a damaged part cannot be moved.
    """
    dataset = TripletDataset(config.root, Cache.of(config.cache_dir, config.cache_gib))
    faults = dataset.faults()
    for fault in faults:
        print(fault.sentence)
    if not faults:
        print(f"{len(dataset)} triplets, all that were planned; every checksum matches.")
        return
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    what = f"{str(config.root)!r} has {count}, listed above"
    damaged = dict.fromkeys(part for fault in faults for part in fault.parts)
    if not damaged:
        raise DatasetError(f"{what}.")
    if not config.repair:
        raise DatasetError(f"{what}; --repair sets aside what is damaged, to be made anew.")
    for part in damaged:
        if aside := dataset.storage.set_aside(part):
            print(f"set aside: {aside}")
    raise DatasetError(f"{what}; {AGAIN} to make anew what was set aside.")
