"""Writing a triplet dataset: restartable at any byte, by one process or by several."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from triplets.atomic import synced_file
from triplets.compressed import PictureTar, write_tar
from triplets.errors import is_utf8, one_line
from triplets.format import (
    FORMAT_VERSIONS,
    DatasetError,
    array_sha256,
    check_array_names,
    encode_json,
    ids_sha256,
    shard_name,
)
from triplets.sources import ImageSet
from triplets.storage import load_manifest, open_storage

_OF_VERSION_2 = ("tar_sha256", "offsets")
"""What describes the bytes of a tar, which may differ between machines, and not the pixels."""


class TripletWriter:
    """Writes a triplet dataset shard by shard, or continues one that was interrupted.

    The plan of pairs is fixed at the start: shard s holds pairs s * shard_size up to
    (s + 1) * shard_size. Everything is first written, and synced to disk, in a hidden staging
    folder and then renamed into place, so what stands under its final name is whole. A dump that
    was killed is continued by making the same writer again: finished shards are kept, and the
    folder ends up byte for byte the same as without the interruption.

    Several processes may fill one folder: each rank writes a run of consecutive shards, as
    consecutive pairs share pictures, and the shared files belong to whichever rank comes first.
    Each rank must run once; a second process with the same rank takes over from the first, which
    then fails at its next write.

    In a bucket a shard's files are uploaded and shard.json comes last; `triplets.storage` says
    more. Two processes with the same rank do no harm there but work twice.

    Args:
        root: the dataset folder, or an address such as s3://bucket/folder; created, or continued.
        contents: the content pictures.
        styles: the style pictures, of the same size.
        pairs: the plan, integers [p 2]: row in contents, row in styles.
        settings: what decides the pixels (teacher, weights, seed...), as JSON. Continuing with
            other settings is refused.
        defaults: settings that the first start decides: it records these values, and later ones
            take over what is recorded. Attribute `settings` holds what counts.
        provenance: where the pixels came from (library versions, source folders...), as JSON.
            Recorded at the start; continuing with another one only warns, because the settings
            and the checksums of the pictures decide the result.
        arrays: further arrays that belong to the settings, kept as NAME.npy; names of small
            letters and underscores.
        shard_size: pairs per shard.
        rank: number of this process, from 0.
        world_size: number of processes.
        ranks: which rank writes each shard; by default each writes as many as the others.
        version: version of the format, 1 for plain arrays or 2 for compressed pictures; by default
            that of the dataset that is continued, or else 1 in a folder and 2 in a bucket.

    Raises:
        DatasetError: arguments that do not fit together, or a folder that holds something else;
            for other settings the first difference is named.
        OSError: the disk is full, no permission and so on.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        contents: ImageSet,
        styles: ImageSet,
        pairs: np.ndarray,
        settings: Mapping | None = None,
        defaults: Mapping | None = None,
        provenance: Mapping | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
        shard_size: int = 32,
        rank: int = 0,
        world_size: int = 1,
        ranks: Sequence[int] | None = None,
        version: int | None = None,
    ):
        if contents.images.shape[1:] != styles.images.shape[1:]:
            raise DatasetError(
                "contents and styles must have one size, got "
                f"{list(contents.images.shape[1:])} and {list(styles.images.shape[1:])}."
            )
        for name in (*contents.ids, *styles.ids):
            if not is_utf8(name):
                raise DatasetError(f"the id {name!r} is not text in UTF-8.")
        if shard_size < 1 or not 0 <= rank < world_size:
            raise DatasetError(
                "expected shard_size >= 1 and 0 <= rank < world_size, got "
                f"shard_size {shard_size}, rank {rank}, world_size {world_size}."
            )
        self.storage = open_storage(root)
        self.root: Path | str = self.storage.root if self.storage.is_local else self.storage.address
        self.pairs = _checked_pairs(pairs, len(contents), len(styles))
        self.shard_size = shard_size
        self.rank = rank
        self.world_size = world_size
        self._image_shape = contents.images.shape[1:]
        self._ranks = ranks
        if ranks is not None and len(ranks) != self.num_shards:
            raise DatasetError(
                f"expected the rank of each of {self.num_shards} shards, got {len(ranks)}."
            )
        self.version = self._choose_version(version)

        manifest = {
            "format_version": self.version,
            "image_size": list(self._image_shape[:2]),
            "num_contents": len(contents),
            "num_styles": len(styles),
            "num_pairs": len(self.pairs),
            "shard_size": shard_size,
            "pairs_sha256": array_sha256(self.pairs),
            "settings": _as_json("settings", {**(settings or {}), **(defaults or {})}),
            "provenance": _as_json("provenance", provenance or {}),
        }
        arrays = arrays or {}
        if arrays:
            manifest["arrays"] = {name: array_sha256(array) for name, array in arrays.items()}
            check_array_names(manifest["arrays"])
        self.storage.begin_writing(rank, world_size)
        self._publish_manifest(manifest, defaults or {})
        for name, array in arrays.items():
            self._publish_array(name, array, manifest["arrays"][name])
        if self.version == 2:
            self._publish_array("pairs", self.pairs, manifest["pairs_sha256"])
        self._publish_images("contents", contents)
        self._publish_images("styles", styles)
        self._check_finished()

    @property
    def num_shards(self) -> int:
        """Number of shards in the whole plan."""
        return -(-len(self.pairs) // self.shard_size)

    def shard_pairs(self, shard: int) -> Int32[np.ndarray, "k 2"]:
        """The pairs of one shard: rows in contents and in styles."""
        return self.pairs[shard * self.shard_size : (shard + 1) * self.shard_size]

    def missing_shards(self) -> list[int]:
        """The shards that this rank has still to write, in order."""
        return [s for s in self.unfinished_shards() if self._rank_of(s) == self.rank]

    def unfinished_shards(self) -> list[int]:
        """The shards of all ranks that are not in place yet, in order."""
        return sorted(set(range(self.num_shards)) - set(self.storage.list_shards()))

    def holds_shard(self, shard: int) -> bool:
        """Whether that shard is in place."""
        return self.storage.holds_shard(shard_name(shard))

    def finished(self) -> bool:
        """Whether every shard of the plan, of all ranks, is in place."""
        return not self.unfinished_shards()

    def write_shard(self, shard: int, stylised: np.ndarray, remarks: Mapping | None = None) -> None:
        """Write one missing shard.

        Args:
            shard: its number, one of `missing_shards()`.
            stylised: uint8 [k h w 3], in the order of `shard_pairs(shard)`.
            remarks: what was out of the ordinary with this shard, as JSON.

        Raises:
            DatasetError: not a missing shard of this rank, or another shape or dtype.
            OSError: disk full and so on; nothing half-written is left under a final name.
        """
        name = shard_name(shard)
        mine = 0 <= shard < self.num_shards and self._rank_of(shard) == self.rank
        # In a bucket another process may have been faster, with the same pixels.
        if not mine or (self.storage.is_local and self.storage.holds_shard(name)):
            raise DatasetError(
                f"shard {shard} is not missing here: rank {self.rank} of {self.world_size} writes "
                "each of its shards once."
            )
        index = self.shard_pairs(shard)
        expected = (len(index), *self._image_shape)
        if stylised.dtype != np.uint8 or stylised.shape != expected:
            raise DatasetError(
                f"shard {shard}: expected uint8 {list(expected)}, "
                f"got {stylised.dtype} {list(stylised.shape)}."
            )
        sha256 = {"stylised": array_sha256(stylised), "index": array_sha256(index)}
        description = {"rows": len(index), "sha256": sha256}
        if remarks:
            description["remarks"] = _as_json("remarks", remarks)
        with self.new_folder(name, "shard.json") as folder:
            if self.version == 2:
                description |= write_tar(folder, "stylised", stylised)[1]
            else:
                _save_array(folder / "stylised.npy", stylised)
                _save_array(folder / "index.npy", index)
            _save_json(folder / "shard.json", description)

    @contextlib.contextmanager
    def new_folder(self, name: str, description: str) -> Iterator[Path]:
        """A folder to fill that appears in the dataset as `name` when the block ends, whole.

        Args:
            name: what to call it.
            description: the file in it that describes the others: in a bucket it comes last.

        Raises:
            DatasetError: it is there already, or another process runs as this rank.
            OSError: disk full and so on; nothing half-written is left under a final name.
        """
        with self.storage.new_folder(name, description) as folder:
            yield folder
        if not self.storage.holds("manifest.json"):
            raise DatasetError(
                f"{str(self.root)!r} has lost its manifest.json meanwhile, without which it cannot "
                "be read; put it back, or start again in another folder."
            )

    def _rank_of(self, shard: int) -> int:
        if self._ranks is not None:
            return self._ranks[shard]
        return shard * self.world_size // self.num_shards

    def _choose_version(self, given: int | None) -> int:
        if given is None and self.storage.holds("manifest.json"):
            return load_manifest(self.storage)["format_version"]
        version = given or (1 if self.storage.is_local else 2)
        if version not in FORMAT_VERSIONS:
            raise DatasetError(f"expected version 1 or 2 of the format, got {version!r}.")
        return version

    def _publish_manifest(self, manifest: dict, defaults: Mapping) -> None:
        if not self.storage.holds("manifest.json"):
            with self.storage.staging("manifest.json") as staging:
                _save_json(staging / "manifest.json", manifest)
                self.storage.publish_file(staging / "manifest.json")
        stored = load_manifest(self.storage)
        recorded = stored.get("settings")
        if isinstance(recorded, dict):
            manifest["settings"] |= {key: recorded[key] for key in defaults if key in recorded}
        self.settings = manifest["settings"]
        stored_provenance, provenance = stored.pop("provenance", {}), manifest.pop("provenance")
        # The settings first: another seed says more than another checksum of the pairs.
        difference = _first_difference(
            stored.get("settings", {}), manifest["settings"], "settings"
        ) or _first_difference(stored, manifest)
        if difference:
            raise DatasetError(
                f"{str(self.root)!r} was started with other settings: {difference}; "
                "use the same settings, or another folder."
            )
        difference = _first_difference(stored_provenance, provenance)
        if difference:
            warnings.warn(
                f"{str(self.root)!r} was started elsewhere: {difference}; continuing", stacklevel=3
            )

    def _publish_array(self, name: str, array: np.ndarray, sha256: str) -> None:
        file = f"{name}.npy"
        if not self.storage.holds(file):
            with self.storage.staging(file) as staging:
                _save_array(staging / file, array)
                self.storage.publish_file(staging / file)
        stored = self.storage.load_array(file, array.shape, array.dtype.str, sha256)
        if array_sha256(stored) != sha256:
            raise DatasetError(
                f"{self.storage.path(file)} holds other values than the given {name}; "
                "use the same ones, or another folder."
            )

    def _publish_images(self, name: str, image_set: ImageSet) -> None:
        file = f"{name}.json"
        sha256 = array_sha256(image_set.images)
        description = {
            "ids": list(image_set.ids),
            "original_sizes": [list(size) for size in image_set.original_sizes],
            "sha256": sha256,
            "ids_sha256": ids_sha256(image_set.ids),
        }
        if self.version == 1 and self.storage.is_local:
            self._publish_array(name, image_set.images, sha256)
        if not self.storage.holds(file):
            with self.storage.staging(file) as staging:
                if self.version == 2:
                    pictures, of_tar = write_tar(staging, name, image_set.images)
                    self.storage.publish_file(pictures)
                    _save_json(staging / file, description | of_tar)
                else:
                    if not self.storage.is_local:
                        _save_array(staging / f"{name}.npy", image_set.images)
                        self.storage.publish_file(staging / f"{name}.npy")
                    _save_json(staging / file, description)
                self.storage.publish_file(staging / file)
        stored = self.storage.load_json(file)
        for key in _OF_VERSION_2:
            stored.pop(key, None)
        # Datasets from before it was recorded have none.
        stored.setdefault("ids_sha256", description["ids_sha256"])
        difference = _first_difference(stored, description)
        if difference:
            raise DatasetError(
                f"{self.storage.path(file)} describes other pictures than the given {name}: "
                f"{difference}; use the same pictures, or another folder."
            )

    def _check_finished(self) -> None:
        """Refuse to call finished what is visibly damaged; `TripletDataset.verify` sees more."""
        if not self.storage.is_local:
            return  # would read every shard; what is uploaded is whole
        for shard in self.storage.list_shards():
            rows, name = len(self.shard_pairs(shard)), shard_name(shard)
            try:
                description = self.storage.load_json(f"{name}/shard.json")
                if self.version == 2:
                    self._check_tar(name, description, rows)
                else:
                    self.storage.load_array(f"{name}/index.npy", (rows, 2), "<i4")
                    self.storage.load_array(
                        f"{name}/stylised.npy", (rows, *self._image_shape), "uint8"
                    )
            except DatasetError as error:
                raise DatasetError(
                    f"a finished shard is damaged: {one_line(error)}; style-distil triplets verify "
                    f"{self.root} --repair sets it aside, and the same command makes it anew."
                ) from error

    def _check_tar(self, name: str, description: dict, rows: int) -> None:
        stylised = f"{name}/stylised"
        shape = (rows, *self._image_shape)
        pictures = PictureTar(self.storage, stylised, description, f"{name}/shard.json", shape)
        pictures[-1]


def _checked_pairs(
    pairs: np.ndarray, num_contents: int, num_styles: int
) -> Int32[np.ndarray, "p 2"]:
    if not np.issubdtype(pairs.dtype, np.integer) or pairs.ndim != 2 or pairs.shape[1] != 2:
        raise DatasetError(f"expected integer pairs [p 2], got {pairs.dtype} {list(pairs.shape)}.")
    if len(pairs) == 0:
        raise DatasetError("expected at least one pair.")
    if (pairs < 0).any() or (pairs >= [num_contents, num_styles]).any():
        raise DatasetError(
            f"pairs must be rows of {num_contents} contents and {num_styles} styles, "
            f"got rows from {pairs.min(axis=0).tolist()} to {pairs.max(axis=0).tolist()}."
        )
    return np.ascontiguousarray(pairs, dtype="<i4")


def _as_json(name: str, value: Mapping) -> dict:
    """What `value` becomes when it is written as JSON and read again, tuples as lists."""
    try:
        return json.loads(encode_json(dict(value)))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{name} cannot be written as JSON: {one_line(error)}.") from error


def _first_difference(stored: object, given: object, name: str = "") -> str | None:
    """Name the first place, in sorted order, where two JSON values differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            path = f"{name}.{key}" if name else key
            if key not in stored or key not in given:
                there = repr(stored[key]) if key in stored else "not set"
                here = repr(given[key]) if key in given else "not set"
                return f"{path} is {there} there, now {here}"
            difference = _first_difference(stored[key], given[key], path)
            if difference:
                return difference
        return None
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        differences = (
            _first_difference(one, other, f"{name}[{position}]")
            for position, (one, other) in enumerate(zip(stored, given, strict=True))
        )
        return next(filter(None, differences), None)
    return None if stored == given else f"{name} is {stored!r} there, now {given!r}"


def _save_array(path: Path, array: np.ndarray) -> None:
    # np.save reports a full disk without its reason; writing the elements ourselves keeps it.
    array = np.ascontiguousarray(array)
    with synced_file(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array)


def _save_json(path: Path, value: dict) -> None:
    with synced_file(path) as file:
        file.write(encode_json(value))
