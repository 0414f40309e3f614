"""The command that checks a triplet dataset."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from triplets.dataset import TripletDataset
from triplets.format import DatasetError


@dataclass(frozen=True)
class VerifyConfig:
    """Read a whole dataset, check every checksum and report what is damaged or missing."""

    root: Positional[Path]
    """Folder of the dataset."""


def verify(config: VerifyConfig) -> None:
    """Print one sentence per fault.

    Raises:
        DatasetError: there are faults, or no dataset.
    """
    dataset = TripletDataset(config.root)
    faults = dataset.verify()
    for fault in faults:
        print(fault)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise DatasetError(f"{str(config.root)!r} has {count}, listed above.")
    print(f"{len(dataset)} triplets, all that were planned; every checksum matches.")
