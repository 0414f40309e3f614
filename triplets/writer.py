"""Writing a triplet dataset: restartable at any byte, by one process or by several."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from triplets.atomic import sync_folder, synced_file
from triplets.errors import is_utf8, one_line
from triplets.format import (
    FORMAT_VERSION,
    DatasetError,
    array_sha256,
    check_array_names,
    encode_json,
    ids_sha256,
    list_shards,
    load_array,
    load_json,
    load_manifest,
    shard_name,
)
from triplets.sources import ImageSet

_STAGING_NAME = re.compile(r"\.staging-(\d+)(\..*)?")


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

    Args:
        root: the dataset folder; created, or continued.
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
        self.root = Path(root)
        self.pairs = _checked_pairs(pairs, len(contents), len(styles))
        self.shard_size = shard_size
        self.rank = rank
        self.world_size = world_size
        self._image_shape = contents.images.shape[1:]

        manifest = {
            "format_version": FORMAT_VERSION,
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
        self._open_root()
        self._publish_manifest(manifest, defaults or {})
        for name, array in arrays.items():
            self._publish_array(name, array, manifest["arrays"][name])
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
        return sorted(set(range(self.num_shards)) - set(list_shards(self.root)))

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
        if shard not in self.missing_shards():
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
        name = shard_name(shard)
        sha256 = {"stylised": array_sha256(stylised), "index": array_sha256(index)}
        description = {"rows": len(index), "sha256": sha256}
        if remarks:
            description["remarks"] = _as_json("remarks", remarks)
        with self.new_folder(name) as folder:
            _save_array(folder / "stylised.npy", stylised)
            _save_array(folder / "index.npy", index)
            _save_json(folder / "shard.json", description)

    @contextlib.contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """A folder to fill that appears in the dataset as `name` when the block ends, whole.

        Raises:
            DatasetError: it is there already, or another process runs as this rank.
            OSError: disk full and so on; nothing half-written is left under a final name.
        """
        target = self.root / name
        with self._staging(name) as staging:
            folder = staging / target.name
            folder.mkdir()
            yield folder
            sync_folder(folder)
            target.parent.mkdir(exist_ok=True)
            os.rename(folder, target)
            sync_folder(target.parent)
        if not (self.root / "manifest.json").is_file():
            raise DatasetError(
                f"{str(self.root)!r} has lost its manifest.json meanwhile, without which it cannot "
                "be read; put it back, or start again in another folder."
            )

    def _rank_of(self, shard: int) -> int:
        return shard * self.world_size // self.num_shards

    def _open_root(self) -> None:
        """Create the folder, or remove what an earlier run of this rank left unfinished."""
        if self.root.exists() and not self.root.is_dir():
            raise DatasetError(f"{str(self.root)!r} is a file; expected a folder for the dataset.")
        self.root.mkdir(parents=True, exist_ok=True)
        names = os.listdir(self.root)
        # Asked after listing: another rank may be at work, and its manifest comes first.
        is_dataset = (self.root / "manifest.json").exists()
        if not is_dataset and any(not name.startswith(".") for name in names):
            raise DatasetError(
                f"{str(self.root)!r} holds other files and no manifest.json; give a new folder."
            )
        for name in names:
            match = _STAGING_NAME.fullmatch(name)
            # After a restart with fewer ranks, somebody must sweep for those that are gone.
            if match and int(match[1]) % self.world_size == self.rank:
                swept = self.root / f".staging-{match[1]}.{secrets.token_hex(4)}"
                # Renamed first: should its process still live, it can no longer publish from it.
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.root / name, swept)
                shutil.rmtree(swept, ignore_errors=True)

    def _publish_manifest(self, manifest: dict, defaults: Mapping) -> None:
        path = self.root / "manifest.json"
        if not path.exists():
            with self._staging(path.name) as staging:
                _save_json(staging / path.name, manifest)
                self._publish_file(staging / path.name)
        stored = load_manifest(self.root)
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
        path = self.root / f"{name}.npy"
        if not path.exists():
            with self._staging(path.name) as staging:
                _save_array(staging / path.name, array)
                self._publish_file(staging / path.name)
        stored = load_array(path, array.shape, array.dtype.str)
        if array_sha256(stored) != sha256:
            raise DatasetError(
                f"{path} holds other values than the given {name}; "
                "use the same ones, or another folder."
            )

    def _publish_images(self, name: str, image_set: ImageSet) -> None:
        json_path = self.root / f"{name}.json"
        sha256 = array_sha256(image_set.images)
        description = {
            "ids": list(image_set.ids),
            "original_sizes": [list(size) for size in image_set.original_sizes],
            "sha256": sha256,
            "ids_sha256": ids_sha256(image_set.ids),
        }
        self._publish_array(name, image_set.images, sha256)
        if not json_path.exists():
            with self._staging(json_path.name) as staging:
                _save_json(staging / json_path.name, description)
                self._publish_file(staging / json_path.name)
        stored = load_json(json_path)
        # Datasets from before it was recorded have none.
        stored.setdefault("ids_sha256", description["ids_sha256"])
        difference = _first_difference(stored, description)
        if difference:
            raise DatasetError(
                f"{json_path} describes other pictures than the given {name}: {difference}; "
                "use the same pictures, or another folder."
            )

    def _check_finished(self) -> None:
        """Refuse to call finished what is visibly damaged; `TripletDataset.verify` sees more."""
        for shard in list_shards(self.root):
            rows, folder = len(self.shard_pairs(shard)), self.root / shard_name(shard)
            try:
                load_json(folder / "shard.json")
                load_array(folder / "index.npy", (rows, 2), "<i4")
                load_array(folder / "stylised.npy", (rows, *self._image_shape), "uint8")
            except DatasetError as error:
                raise DatasetError(
                    f"a finished shard is damaged: {one_line(error)}; style-distil triplets verify "
                    f"{self.root} --repair sets it aside, and the same command makes it anew."
                ) from error

    @contextlib.contextmanager
    def _staging(self, name: str) -> Iterator[Path]:
        """A folder of this rank alone in which `name` is prepared; removed at the end."""
        folder = self.root / f".staging-{self.rank:05d}"
        try:
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            path = str(self.root / name)
            if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise DatasetError(
                    f"{path!r} was not written: the folder was removed, or another process runs "
                    f"as rank {self.rank}; run each rank once."
                ) from error
            reason = f"{error.strerror}; finished shards are kept, start again once this is mended"
            raise OSError(error.errno, reason, path) from error

    def _publish_file(self, staged: Path) -> None:
        """Move a staged file to the dataset unless another rank has done so: the first one wins."""
        try:
            os.link(staged, self.root / staged.name)
        except FileExistsError:
            return
        except OSError:
            # A file system without hard links: ranks that agree write the same bytes anyway.
            os.replace(staged, self.root / staged.name)
        sync_folder(self.root)


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
