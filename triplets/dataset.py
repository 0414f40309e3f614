"""Reading a triplet dataset."""

import functools
import hashlib
import itertools
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Int32, UInt8

from triplets.errors import is_utf8
from triplets.format import (
    DatasetError,
    Triplet,
    array_sha256,
    encode_json,
    ids_sha256,
    list_shards,
    load_array,
    load_json,
    load_manifest,
    shard_name,
)

# Each open memory map holds a file descriptor, and a process may often have only 1024.
_MAX_OPEN_SHARDS = 128


AGAIN = "run the command that wrote the dataset again"


class Fault(NamedTuple):
    """Something that is wrong with a dataset."""

    sentence: str
    parts: tuple[Path, ...] = ()
    """The shard or the files that may be damaged. The command that wrote the dataset makes them
    anew once they are set aside."""


class TripletDataset:
    """The finished triplets of a dataset folder, as a random-access sequence.

    An unfinished dump can be read: the length is the number of pairs in its finished shards when
    the dataset was opened. Pictures are memory mapped when first used; a dataset can be pickled
    and sent to worker processes, which map the files anew. Reading does not check checksums:
    `verify` does.

    Args:
        root: the dataset folder.

    Raises:
        DatasetError: no dataset there, an unknown format version, or no finished shard yet.
            Damaged files raise it when they are first used.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root).absolute()
        self.manifest = load_manifest(self.root)
        self.shards = list_shards(self.root)
        if not self.shards:
            raise DatasetError(
                f"{str(root)!r} has none of its {self.manifest['num_pairs']} planned triplets yet; "
                "continue the command that started it, such as style-distil dump."
            )
        self._map_lazily()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        """Read one triplet; the arrays are copies that belong to the caller."""
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"triplet {index} of {len(self)}")
        content, style = self.pairs[position]
        nth = int(np.searchsorted(self._shard_ends, position, side="right"))
        row = position - self._shard_ends[nth]  # counted from the shard's end, hence negative
        return Triplet(
            np.array(self.contents[content]),
            np.array(self.styles[style]),
            np.array(self._stylised(nth)[row]),
            self.content_ids[content],
            self.style_ids[style],
        )

    def __iter__(self) -> Iterator[Triplet]:
        return map(self.__getitem__, range(len(self)))

    def __repr__(self) -> str:
        height, width = self.manifest["image_size"]
        return f"TripletDataset({str(self.root)!r}, {len(self)} triplets of {height} x {width})"

    def __getstate__(self) -> dict:
        mapped = ("contents", "styles", "_stylised")
        return {key: value for key, value in self.__dict__.items() if key not in mapped}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map_lazily()

    @functools.cached_property
    def contents(self) -> UInt8[np.ndarray, "n h w 3"]:
        """All content pictures, a read-only memory map."""
        return self._load_images("contents")

    @functools.cached_property
    def styles(self) -> UInt8[np.ndarray, "m h w 3"]:
        """All style pictures, a read-only memory map."""
        return self._load_images("styles")

    @functools.cached_property
    def content_ids(self) -> list[str]:
        """Id of each content picture."""
        return self._load_ids("contents")

    @functools.cached_property
    def style_ids(self) -> list[str]:
        """Id of each style picture."""
        return self._load_ids("styles")

    @functools.cached_property
    def pairs(self) -> Int32[np.ndarray, "p 2"]:
        """Row in `contents` and row in `styles` of each triplet."""
        return np.concatenate(self._indices)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 that differs for other pictures, ids or pairs, wherever the dataset lies.

        Made of the recorded checksums; pictures are read only where none is recorded.
        """
        parts = {}
        for name in ("contents", "styles"):
            recorded = load_json(self.root / f"{name}.json").get("sha256")
            sha256 = recorded if _is_sha256(recorded) else array_sha256(self._load_images(name))
            parts[name] = [self._load_ids(name), sha256]
        for nth, shard in enumerate(self.shards):
            name = shard_name(shard)
            recorded = load_json(self.root / name / "shard.json").get("sha256")
            if not (isinstance(recorded, dict) and all(map(_is_sha256, recorded.values()))):
                recorded = {}
            parts[name] = recorded or {
                "index": array_sha256(self._indices[nth]),
                "stylised": array_sha256(self._stylised(nth)),
            }
        return hashlib.sha256(encode_json(parts)).hexdigest()

    def verify(self) -> list[str]:
        """Read everything and check it against the manifest and the checksums.

        Returns:
            One sentence per fault, missing shards included; empty if the dataset is intact.
        """
        return [fault.sentence for fault in self.faults()]

    def faults(self) -> list[Fault]:
        """What `verify` finds, with the parts of the dataset that each fault is in."""
        faults: list[Fault] = []
        for name in ("contents", "styles"):
            array, ids = self.root / f"{name}.npy", self.root / f"{name}.json"
            faults.extend(_faults((ids,), self._verify_ids(name)))
            # Which of the two is damaged, a checksum in the one of the other cannot say.
            faults.extend(_faults((array, ids), self._verify_images(name)))
        for name, recorded in self.manifest.get("arrays", {}).items():
            path = self.root / f"{name}.npy"
            faults.extend(_faults((path,), _verify_array(path, recorded)))
        for shard in self.shards:
            faults.extend(_faults((self.root / shard_name(shard),), self._verify_shard(shard)))
        faults.extend(_faults((), self._verify_plan()))
        # A damaged index is met twice, in its shard and in the plan.
        return list({fault.sentence: fault for fault in reversed(faults)}.values())[::-1]

    @functools.cached_property
    def _indices(self) -> list[Int32[np.ndarray, "k 2"]]:
        """The index array of each shard."""
        return [self._load_index(shard) for shard in self.shards]

    @functools.cached_property
    def _shard_ends(self) -> np.ndarray:
        """Number of triplets up to the end of each shard."""
        return np.cumsum([len(index) for index in self._indices])

    def _map_lazily(self) -> None:
        self._stylised = functools.lru_cache(_MAX_OPEN_SHARDS)(
            lambda nth: self._load_stylised(self.shards[nth], len(self._indices[nth]))
        )

    def _load_images(self, name: str) -> UInt8[np.ndarray, "n h w 3"]:
        shape = (self.manifest[f"num_{name}"], *self.manifest["image_size"], 3)
        return load_array(self.root / f"{name}.npy", shape, "uint8")

    def _load_ids(self, name: str) -> list[str]:
        path = self.root / f"{name}.json"
        ids = load_json(path).get("ids")
        count = self.manifest[f"num_{name}"]
        if not (
            isinstance(ids, list) and len(ids) == count and all(isinstance(i, str) for i in ids)
        ):
            raise DatasetError(f"{path}: ids must be a list of {count} strings.")
        if not all(is_utf8(name) for name in ids):
            raise DatasetError(f"{path}: an id is not text in UTF-8.")
        return ids

    def _load_index(self, shard: int) -> Int32[np.ndarray, "k 2"]:
        path = self.root / shard_name(shard) / "index.npy"
        index = load_array(path, (None, 2), "<i4")
        most = self.manifest.get("shard_size", self.manifest["num_pairs"])
        if not 1 <= len(index) <= most:
            raise DatasetError(f"{path}: expected 1 to {most} rows, got {len(index)}.")
        index = np.array(index)
        limits = [self.manifest["num_contents"], self.manifest["num_styles"]]
        # Checked here because NumPy would take a negative row for one from the end.
        if (index < 0).any() or (index >= limits).any():
            raise DatasetError(f"{path}: rows must be at least 0 and below {limits}.")
        return index

    def _load_stylised(self, shard: int, rows: int) -> UInt8[np.ndarray, "k h w 3"]:
        path = self.root / shard_name(shard) / "stylised.npy"
        return load_array(path, (rows, *self.manifest["image_size"], 3), "uint8")

    def _verify_ids(self, name: str) -> Iterator[str]:
        path, ids = self.root / f"{name}.json", self._load_ids(name)
        recorded = load_json(path).get("ids_sha256")
        if recorded not in (None, ids_sha256(ids)):
            yield f"{path}: the ids do not match ids_sha256."

    def _verify_images(self, name: str) -> Iterator[str]:
        images = self._load_images(name)
        recorded = load_json(self.root / f"{name}.json").get("sha256")
        yield from _verify_sha256(self.root / f"{name}.npy", images, recorded)

    def _verify_shard(self, shard: int) -> Iterator[str]:
        folder = self.root / shard_name(shard)
        recorded = load_json(folder / "shard.json")
        sha256 = recorded.get("sha256")
        if not isinstance(sha256, dict):
            sha256 = {}
        index = self._load_index(shard)
        if recorded.get("rows") != len(index):
            yield f"{folder}: index.npy has {len(index)} rows, not {recorded.get('rows')!r}."
        yield from _verify_sha256(folder / "index.npy", index, sha256.get("index"))
        stylised = self._load_stylised(shard, len(index))
        yield from _verify_sha256(folder / "stylised.npy", stylised, sha256.get("stylised"))

    def _verify_plan(self) -> Iterator[str]:
        """Compare the shards with the manifest's plan."""
        num_pairs, shard_size = self.manifest["num_pairs"], self.manifest.get("shard_size")
        if shard_size is not None:
            planned = -(-num_pairs // shard_size)
            there = {shard for shard in self.shards if shard < planned}
            if missing := planned - len(there):
                # Not the set of all that are planned, which may be any number.
                first = next(shard for shard in itertools.count() if shard not in there)
                others = f" and {missing - 1} more shards are" if missing > 1 else " is"
                yield f"{shard_name(first)}{others} missing: {AGAIN} to add what is left."
        if len(self) != num_pairs:
            yield f"{len(self)} of {num_pairs} planned pairs are there."
        elif self.manifest.get("pairs_sha256") not in (None, array_sha256(self.pairs)):
            yield "the shards hold other pairs than planned: pairs_sha256 does not match."


def _faults(parts: tuple[Path, ...], check: Iterator[str]) -> Iterator[Fault]:
    """What a check of some parts finds, and the error that ends it, if any."""
    try:
        for sentence in check:
            yield Fault(sentence, parts)
    except DatasetError as error:
        yield Fault(str(error), parts)


def _is_sha256(recorded: object) -> bool:
    return isinstance(recorded, str) and len(recorded) == 64


def _verify_array(path: Path, recorded: object) -> Iterator[str]:
    yield from _verify_sha256(path, load_array(path), recorded)


def _verify_sha256(path: Path, array: np.ndarray, recorded: object) -> Iterator[str]:
    actual = array_sha256(array)
    if actual != recorded:
        yield f"{path}: its sha256 is {actual}, recorded is {recorded}."
