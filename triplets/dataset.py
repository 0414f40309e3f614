"""Reading a triplet dataset."""

import functools
import hashlib
import itertools
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Int32, UInt8

from triplets.cache import Cache
from triplets.compressed import PictureTar, pixels_sha256
from triplets.errors import is_utf8
from triplets.format import (
    DatasetError,
    Triplet,
    array_sha256,
    encode_json,
    ids_sha256,
    shard_name,
)
from triplets.storage import Bucket, Folder, load_manifest, open_storage

# Each open memory map holds a file descriptor, and a process may often have only 1024.
_MAX_OPEN_SHARDS = 128

# What is removed from the cache takes its room until the last map of it is closed.
_MAX_OPEN_SHARDS_OF_A_BUCKET = 8


AGAIN = "run the command that wrote the dataset again"


class Fault(NamedTuple):
    """Something that is wrong with a dataset."""

    sentence: str
    parts: tuple[str, ...] = ()
    """Names of the shard or the files that may be damaged. The command that wrote the dataset makes
    them anew once they are set aside."""


class TripletDataset:
    """The finished triplets of a dataset, as a random-access sequence.

    An unfinished dump can be read: the length is the number of pairs in its finished shards when
    the dataset was opened. Pictures are memory mapped when first used; a dataset can be pickled
    and sent to worker processes, which map the files anew. Reading does not check checksums:
    `verify` does.

    Args:
        root: the dataset folder, or an address such as s3://bucket/folder.
        cache: where files of a bucket are kept on this machine; by default `Cache.of()`.

    Raises:
        DatasetError: no dataset there, an unknown format version, or no finished shard yet.
            Damaged files raise it when they are first used.
        InputError: an address of an unknown kind, no client for it, or too small a cache.
    """

    def __init__(self, root: str | os.PathLike, cache: Cache | None = None):
        storage = open_storage(root, cache)
        # Relative folders have to survive a change of directory.
        self.storage = Folder(storage.root.absolute()) if storage.is_local else storage
        self.root: Path | str = self.storage.root if self.storage.is_local else self.storage.address
        self.manifest = load_manifest(self.storage)
        self.shards = self.storage.list_shards()
        if not self.shards:
            raise DatasetError(
                f"{str(root)!r} has none of its {self.manifest['num_pairs']} planned triplets yet; "
                "continue the command that started it, such as style-distil dump."
            )
        if isinstance(self.storage, Bucket):
            self.storage.check_cache()
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

    def stylised(self, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        """The stylised pictures of some triplets, by their index, without contents and styles."""
        pictures = []
        for row in rows:
            nth = int(np.searchsorted(self._shard_ends, row, side="right"))
            pictures.append(self._stylised(nth)[row - self._shard_ends[nth]])
        return np.stack(pictures)

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
    def contents(self) -> "UInt8[np.ndarray, 'n h w 3'] | PictureTar":
        """All content pictures: a read-only memory map, or what decodes them (version 2)."""
        return self._load_images("contents")

    @functools.cached_property
    def styles(self) -> "UInt8[np.ndarray, 'm h w 3'] | PictureTar":
        """All style pictures, likewise."""
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
        if self.version == 2 and len(self._plan) == sum(map(len, self._indices)):
            return np.array(self._plan)
        return np.concatenate(self._indices)

    @property
    def version(self) -> int:
        """Version of the format."""
        return self.manifest["format_version"]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 that differs for other pictures, ids or pairs, wherever the dataset lies.

        Made of the recorded checksums; pictures are read only where none is recorded.
        """
        parts = {}
        for name in ("contents", "styles"):
            recorded = self.storage.load_json(f"{name}.json").get("sha256")
            sha256 = recorded if _is_sha256(recorded) else pixels_sha256(self._load_images(name))
            parts[name] = [self._load_ids(name), sha256]
        for nth, shard in enumerate(self.shards):
            name = shard_name(shard)
            recorded = self.storage.load_json(f"{name}/shard.json").get("sha256")
            if not (isinstance(recorded, dict) and all(map(_is_sha256, recorded.values()))):
                recorded = {}
            parts[name] = recorded or {
                "index": array_sha256(self._indices[nth]),
                "stylised": pixels_sha256(self._stylised(nth)),
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
            ids = f"{name}.json"
            faults.extend(_faults((ids,), self._verify_ids(name)))
            # Which of the two is damaged, a checksum in the one of the other cannot say.
            faults.extend(_faults((self._name_of(name), ids), self._verify_images(name)))
        for name, recorded in self.manifest.get("arrays", {}).items():
            faults.extend(_faults((f"{name}.npy",), self._verify_array(f"{name}.npy", recorded)))
        if self.version == 2:
            recorded = self.manifest.get("pairs_sha256")
            faults.extend(_faults(("pairs.npy",), self._verify_array("pairs.npy", recorded)))
        for shard in self.shards:
            faults.extend(_faults((shard_name(shard),), self._verify_shard(shard)))
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

    @functools.cached_property
    def _plan(self) -> Int32[np.ndarray, "p 2"]:
        """All planned pairs, of version 2."""
        recorded = self.manifest.get("pairs_sha256")
        shape = (self.manifest["num_pairs"], 2)
        plan = np.array(self.storage.load_array("pairs.npy", shape, "<i4", recorded))
        self._check_rows(plan, "pairs.npy")
        return plan

    def _map_lazily(self) -> None:
        most = _MAX_OPEN_SHARDS if self.storage.is_local else _MAX_OPEN_SHARDS_OF_A_BUCKET
        if self.version == 2:
            most = None  # of a tar only the places of its pictures are held
        self._stylised = functools.lru_cache(most)(
            lambda nth: self._load_stylised(self.shards[nth], len(self._indices[nth]))
        )

    def _load_images(self, name: str) -> "UInt8[np.ndarray, 'n h w 3'] | PictureTar":
        return self._load_pictures(name, f"{name}.json", self.manifest[f"num_{name}"])

    def _load_pictures(
        self, stem: str, described_by: str, count: int, part: str | None = None
    ) -> "UInt8[np.ndarray, 'n h w 3'] | PictureTar":
        """Pictures of either version.

        Args:
            stem: their name without a suffix.
            described_by: the JSON file that holds their sha256.
            count: how many there are.
            part: which of several sha256 it is.
        """
        shape = (count, *self.manifest["image_size"], 3)
        if self.version == 2:
            description = self.storage.load_json(described_by)
            return PictureTar(self.storage, stem, description, described_by, shape)
        sha256 = None
        if not self.storage.is_local:  # what the cache goes by
            sha256 = self.storage.load_json(described_by).get("sha256")
            if part is not None:
                sha256 = sha256.get(part) if isinstance(sha256, dict) else None
        return self.storage.load_array(f"{stem}.npy", shape, "uint8", sha256)

    def _name_of(self, stem: str) -> str:
        """Name of the file with all contents or all styles."""
        if self.version == 1:
            return f"{stem}.npy"
        try:
            return self._load_images(stem).name
        except DatasetError:
            return f"{stem}.json"  # which does not say it

    def _load_ids(self, name: str) -> list[str]:
        path = self.storage.path(f"{name}.json")
        ids = self.storage.load_json(f"{name}.json").get("ids")
        count = self.manifest[f"num_{name}"]
        if not (
            isinstance(ids, list) and len(ids) == count and all(isinstance(i, str) for i in ids)
        ):
            raise DatasetError(f"{path}: ids must be a list of {count} strings.")
        if not all(is_utf8(name) for name in ids):
            raise DatasetError(f"{path}: an id is not text in UTF-8.")
        return ids

    def _load_index(self, shard: int) -> Int32[np.ndarray, "k 2"]:
        if self.version == 2:
            start = shard * self.manifest["shard_size"]
            index = self._plan[start : start + self.manifest["shard_size"]]
            if not len(index):
                raise DatasetError(
                    f"{self.storage.path(shard_name(shard))}: the plan has fewer shards."
                )
            return index
        name = f"{shard_name(shard)}/index.npy"
        path = self.storage.path(name)
        sha256 = None
        if not self.storage.is_local:
            sha256 = self.storage.load_json(f"{shard_name(shard)}/shard.json").get("sha256")
            sha256 = sha256.get("index") if isinstance(sha256, dict) else None
        index = self.storage.load_array(name, (None, 2), "<i4", sha256)
        most = self.manifest.get("shard_size", self.manifest["num_pairs"])
        if not 1 <= len(index) <= most:
            raise DatasetError(f"{path}: expected 1 to {most} rows, got {len(index)}.")
        index = np.array(index)
        self._check_rows(index, name)
        return index

    def _check_rows(self, index: Int32[np.ndarray, "k 2"], name: str) -> None:
        limits = [self.manifest["num_contents"], self.manifest["num_styles"]]
        # Checked here because NumPy would take a negative row for one from the end.
        if (index < 0).any() or (index >= limits).any():
            raise DatasetError(
                f"{self.storage.path(name)}: rows must be at least 0 and below {limits}."
            )

    def _load_stylised(self, shard: int, rows: int) -> "UInt8[np.ndarray, 'k h w 3'] | PictureTar":
        name = shard_name(shard)
        return self._load_pictures(f"{name}/stylised", f"{name}/shard.json", rows, "stylised")

    def _verify_ids(self, name: str) -> Iterator[str]:
        path, ids = self.storage.path(f"{name}.json"), self._load_ids(name)
        recorded = self.storage.load_json(f"{name}.json").get("ids_sha256")
        if recorded not in (None, ids_sha256(ids)):
            yield f"{path}: the ids do not match ids_sha256."

    def _verify_images(self, name: str) -> Iterator[str]:
        images = self._load_images(name)
        recorded = self.storage.load_json(f"{name}.json").get("sha256")
        yield from self._verify_sha256(self._name_of(name), images, recorded)

    def _verify_shard(self, shard: int) -> Iterator[str]:
        name = shard_name(shard)
        recorded = self.storage.load_json(f"{name}/shard.json")
        sha256 = recorded.get("sha256")
        if not isinstance(sha256, dict):
            sha256 = {}
        index = self._load_index(shard)
        index_name = f"{name}/index.npy" if self.version == 1 else "pairs.npy"
        if recorded.get("rows") != len(index):
            there = f"{index_name.rpartition('/')[2]} has {len(index)} rows"
            yield f"{self.storage.path(name)}: {there}, not {recorded.get('rows')!r}."
        yield from self._verify_sha256(index_name, index, sha256.get("index"))
        stylised = self._load_stylised(shard, len(index))
        stylised_name = f"{name}/stylised.npy" if self.version == 1 else stylised.name
        yield from self._verify_sha256(stylised_name, stylised, sha256.get("stylised"))

    def _verify_array(self, name: str, recorded: object) -> Iterator[str]:
        array = self.storage.load_array(name, sha256=recorded)
        yield from self._verify_sha256(name, array, recorded)

    def _verify_sha256(
        self, name: str, pixels: "np.ndarray | PictureTar", recorded: object
    ) -> Iterator[str]:
        whole = isinstance(pixels, np.ndarray)
        actual = array_sha256(pixels) if whole else pixels_sha256(pixels)
        if actual != recorded:
            path = self.storage.path(name)
            yield f"{path}: its sha256 is {actual}, recorded is {recorded}."

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


def _faults(parts: tuple[str, ...], check: Iterator[str]) -> Iterator[Fault]:
    """What a check of some parts finds, and the error that ends it, if any."""
    try:
        for sentence in check:
            yield Fault(sentence, parts)
    except DatasetError as error:
        yield Fault(str(error), parts)


def _is_sha256(recorded: object) -> bool:
    return isinstance(recorded, str) and len(recorded) == 64
