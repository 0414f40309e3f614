"""Where a dataset lies: a folder of this machine, or a bucket that fsspec reaches.

A bucket has no rename, but an upload appears whole or not at all. So a shard is built in a
temporary folder here, its files are uploaded, and its description (shard.json) comes last: a shard
without it does not exist, and is made again.
"""

import contextlib
import errno
import hashlib
import importlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import numpy as np

from triplets.atomic import sync_folder
from triplets.cache import Cache
from triplets.errors import InputError, one_line
from triplets.format import (
    DatasetError,
    check_manifest,
    list_shards,
    load_array,
    load_json,
    shard_number,
)
from triplets.reading import MAX_JSON_BYTES, parse_json

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "hf": "hub",
}
"""The extra of this package that brings the client, by the first word of an address."""

LOGS = "logs"
"""Where an engine that runs a dump may keep its own files within the dataset."""

ATTEMPTS = 5
"""How often a transfer is tried, with a pause that doubles from `PAUSE` on."""

PAUSE = 0.5
"""Seconds before the second attempt."""

_STAGING_NAME = re.compile(r"\.staging-(\d+)(\..*)?")

_Result = TypeVar("_Result")


def is_bucket(address: str | os.PathLike) -> bool:
    """Whether an address is one for fsspec, such as s3://bucket/folder, and not a folder here."""
    return "://" in os.fspath(address)


def open_storage(address: str | os.PathLike, cache: Cache | None = None) -> "Folder | Bucket":
    """What lies at an address; nothing is read yet.

    Args:
        address: a folder, or an address such as s3://bucket/folder.
        cache: where files of buckets are kept on this machine; by default `Cache.of()`.

    Raises:
        InputError: an address of an unknown kind, or one whose client is not installed.
    """
    if not is_bucket(address):
        return Folder(address)
    return Bucket(os.fspath(address), cache or Cache.of())


@runtime_checkable
class Storage(Protocol):
    """What readers and writers of a dataset need to know of the place where it is.

    Names are relative, with slashes. What cannot be read raises `DatasetError`.
    """

    def path(self, name: str) -> str | Path:
        """What messages call a file, and where it can be opened if it is on this machine."""
        ...

    def holds(self, name: str) -> bool:
        """Whether there is such a file, or a folder of that name on this machine."""
        ...

    def list_shards(self) -> list[int]:
        """Numbers of the finished shards, in order."""
        ...

    def holds_shard(self, name: str) -> bool:
        """Whether the shard of that name is finished."""
        ...

    def load_json(self, name: str) -> dict:
        """The object in a JSON file."""
        ...

    def load_array(
        self,
        name: str,
        shape: tuple[int | None, ...] | None = None,
        dtype: str | None = None,
        sha256: object = None,
    ) -> np.ndarray:
        """Memory map an array; see `triplets.format.load_array`.

        Args:
            name: the .npy file.
            shape: the expected shape.
            dtype: the expected type.
            sha256: what the dataset records of the array's content, if anything.
        """
        ...

    def read(self, name: str, offset: int, length: int, sha256: str) -> bytes:
        """Some bytes of a file, at most `length`.

        Args:
            name: the file.
            offset: where they begin.
            length: how many.
            sha256: what the dataset records of the whole file.
        """
        ...


class Folder:
    """A folder of this machine, or one that all machines share like it.

    Files are prepared, and synced to disk, in a hidden folder of this rank and then renamed.
    """

    is_local = True

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self._rank = 0

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """See `Storage`."""
        return self.root / name

    def holds(self, name: str) -> bool:
        """See `Storage`."""
        return (self.root / name).exists()

    def list_shards(self) -> list[int]:
        """See `Storage`."""
        return list_shards(self.root)

    def holds_shard(self, name: str) -> bool:
        """See `Storage`."""
        return (self.root / name).is_dir()

    def load_json(self, name: str) -> dict:
        """See `Storage`."""
        return load_json(self.root / name)

    def load_array(
        self,
        name: str,
        shape: tuple[int | None, ...] | None = None,
        dtype: str | None = None,
        sha256: object = None,
    ) -> np.ndarray:
        """See `Storage`."""
        return load_array(self.root / name, shape, dtype)

    def read(self, name: str, offset: int, length: int, sha256: str) -> bytes:
        """See `Storage`."""
        try:
            with open(self.root / name, "rb") as file:
                return _read(file, offset, length)
        except OSError as error:
            raise DatasetError(f"{self.root / name}: {one_line(error)}.") from error

    def check_writable(self) -> None:
        """Nothing here: the first file that is written says it."""

    def free_bytes(self) -> int | None:
        """Room that is left; None if nobody knows."""
        return shutil.disk_usage(self.root).free

    def total_bytes(self) -> int:
        """Bytes of all files."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    def begin_writing(self, rank: int, world_size: int) -> None:
        """Create the folder, or remove what an earlier run of this rank left unfinished.

        Raises:
            DatasetError: something else is there.
        """
        self._rank = rank
        if self.root.exists() and not self.root.is_dir():
            raise DatasetError(f"{str(self.root)!r} is a file; expected a folder for the dataset.")
        self.root.mkdir(parents=True, exist_ok=True)
        names = os.listdir(self.root)
        # Asked after listing: another rank may be at work, and its manifest comes first.
        is_dataset = (self.root / "manifest.json").exists()
        if not is_dataset and any(not name.startswith(".") and name != LOGS for name in names):
            raise DatasetError(
                f"{str(self.root)!r} holds other files and no manifest.json; give a new folder."
            )
        for name in names:
            match = _STAGING_NAME.fullmatch(name)
            # After a restart with fewer ranks, somebody must sweep for those that are gone.
            if match and int(match[1]) % world_size == rank:
                swept = self.root / f".staging-{match[1]}.{secrets.token_hex(4)}"
                # Renamed first: should its process still live, it can no longer publish from it.
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.root / name, swept)
                shutil.rmtree(swept, ignore_errors=True)

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A folder of this rank alone in which `name` is prepared; removed at the end.

        Raises:
            DatasetError: another process runs as this rank.
            OSError: disk full and so on.
        """
        folder = self.root / f".staging-{self._rank:05d}"
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
                    f"as rank {self._rank}; run each rank once."
                ) from error
            raise OSError(error.errno, _unfinished(error), path) from error

    def publish_file(self, staged: Path) -> None:
        """Move a staged file to the dataset unless another rank has done so: the first one wins."""
        try:
            os.link(staged, self.root / staged.name)
        except FileExistsError:
            return
        except OSError:
            # A file system without hard links: ranks that agree write the same bytes anyway.
            os.replace(staged, self.root / staged.name)
        sync_folder(self.root)

    @contextlib.contextmanager
    def new_folder(self, name: str, description: str) -> Iterator[Path]:
        """A folder to fill that appears in the dataset as `name` when the block ends, whole.

        Args:
            name: what to call it.
            description: the file in it that describes the others.

        Raises:
            DatasetError: it is there already, or another process runs as this rank.
            OSError: disk full and so on; nothing half-written is left under a final name.
        """
        target = self.root / name
        with self.staging(name) as staging:
            folder = staging / target.name
            folder.mkdir()
            yield folder
            sync_folder(folder)
            target.parent.mkdir(exist_ok=True)
            os.rename(folder, target)
            sync_folder(target.parent)

    def set_aside(self, name: str) -> str | None:
        """Move a damaged file or folder to damaged/; where to, or None if it is not there."""
        part = self.root / name
        aside = self.root / "damaged" / f"{part.name}-{secrets.token_hex(4)}"
        aside.parent.mkdir(exist_ok=True)
        if not part.exists():
            return None
        part.rename(aside)
        return str(aside)


class Bucket:
    """What fsspec reaches: s3://, gs://, hf://, memory:// and others.

    Files that are read come from the cache on this machine. What was written is never changed, so
    processes that make the same shard at the same time by mistake upload the same bytes twice.
    """

    is_local = False

    def __init__(self, address: str, cache: Cache):
        """
        Raises:
            InputError: an address of an unknown kind, or one whose client is not installed.
        """
        self.address, self.cache = address.rstrip("/"), cache
        self._sizes: dict[str, int] | None = None
        self._connect()

    def __str__(self) -> str:
        return self.address

    def __getstate__(self) -> dict:
        # A connection belongs to its process.
        return {k: v for k, v in self.__dict__.items() if k not in ("_fs", "_root")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._connect()

    def path(self, name: str) -> str:
        """See `Storage`."""
        return f"{self.address}/{name}"

    def holds(self, name: str) -> bool:
        """See `Storage`."""
        return self._try(name, lambda: bool(self._fresh().exists(self._at(name))))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its name, as they were when this was first asked."""
        if self._sizes is None:
            self._sizes = self._list()
        return self._sizes

    def list_shards(self) -> list[int]:
        """See `Storage`; asked anew each time."""
        self._sizes = self._list()
        numbers = (
            shard_number(name.removesuffix("/shard.json"))
            for name in self._sizes
            if name.endswith("/shard.json")
        )
        return sorted(number for number in numbers if number is not None)

    def holds_shard(self, name: str) -> bool:
        """See `Storage`."""
        return self.holds(f"{name}/shard.json")

    def load_json(self, name: str) -> dict:
        """See `Storage`."""
        data = self._try(name, lambda: self._fresh().cat_file(self._at(name)))
        if len(data) > MAX_JSON_BYTES:
            raise DatasetError(
                f"{self.path(name)!r}: {len(data) / 2**20:.0f} MiB, more than the limit of "
                f"{MAX_JSON_BYTES >> 20} MiB."
            )
        try:
            return parse_json(data, self.path(name))
        except InputError as error:
            raise DatasetError(f"{one_line(error)}.") from error

    def load_array(
        self,
        name: str,
        shape: tuple[int | None, ...] | None = None,
        dtype: str | None = None,
        sha256: object = None,
    ) -> np.ndarray:
        """See `Storage`."""
        return self.cached(
            name, sha256, lambda path: load_array(path, shape, dtype, name=self.path(name))
        )

    def read(self, name: str, offset: int, length: int, sha256: str) -> bytes:
        """See `Storage`."""
        if not self.fits:
            # A whole shard for one picture of it would be removed again before the next one.
            return self._try(
                name, lambda: self._fs.cat_file(self._at(name), start=offset, end=offset + length)
            )

        def read(path: Path) -> bytes:
            with open(path, "rb") as file:
                return _read(file, offset, length)

        return self.cached(name, sha256, read, of_file=sha256)

    @property
    def fits(self) -> bool:
        """Whether the cache has room for the whole dataset."""
        return sum(self.sizes().values()) <= self.cache.max_bytes

    def check_cache(self) -> None:
        """Refuse a cache in which not even the largest file has room.

        Raises:
            InputError: it has none.
        """
        name, size = max(self.sizes().items(), key=lambda item: item[1])
        self.cache.check_room(size, self.path(name))

    def check_writable(self) -> None:
        """Write a small file and remove it again.

        Raises:
            DatasetError: no such bucket, no permission and so on.
        """
        name = f".writable-{secrets.token_hex(8)}"
        self._try("", lambda: self._fs.pipe_file(self._at(name), b"?"), verb="write to")
        self._try("", lambda: self._fs.rm_file(self._at(name)), verb="remove files of")

    def free_bytes(self) -> int | None:
        """Room that is left; nobody knows."""
        return None

    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self._list().values())

    def begin_writing(self, rank: int, world_size: int) -> None:
        """Make sure that nothing else is there.

        Raises:
            DatasetError: other files, or nothing can be written.
        """
        if not self.holds("manifest.json"):
            others = any(not name.startswith((".", f"{LOGS}/")) for name in self._list())
            # Asked again after listing: another rank may be at work, and its manifest comes first.
            if others and not self.holds("manifest.json"):
                raise DatasetError(
                    f"{self.address!r} holds other files and no manifest.json; give a new address."
                )
            self.check_writable()

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A temporary folder in which `name` is prepared; removed at the end.

        Raises:
            OSError: the disk for temporary files is full and so on.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="style-distil-") as folder:
                yield Path(folder)
        except OSError as error:
            reason = _unfinished(error)
            raise OSError(error.errno, reason, error.filename or self.path(name)) from error

    def publish_file(self, staged: Path) -> None:
        """Upload a staged file unless it is there: the first one wins.

        The store itself decides who is first if it can; two that agree write the same bytes anyway.
        """
        if not self.holds(staged.name):
            with contextlib.suppress(FileExistsError):
                self._upload(staged, staged.name, mode="create")

    @contextlib.contextmanager
    def new_folder(self, name: str, description: str) -> Iterator[Path]:
        """A folder to fill; its files are uploaded when the block ends, its description last.

        Raises:
            DatasetError: the bucket refuses them.
            OSError: the disk for temporary files is full and so on.
        """
        with self.staging(name) as folder:
            yield folder
            for file in sorted(folder.iterdir(), key=lambda file: file.name == description):
                self._upload(file, f"{name}/{file.name}")

    def set_aside(self, name: str) -> str | None:
        """Move a damaged file or folder to damaged/; where to, or None if it is not there."""
        files = [file for file in self._list() if file == name or file.startswith(f"{name}/")]
        aside = f"damaged/{Path(name).name}-{secrets.token_hex(4)}"
        # The description first: without it the rest does not count.
        for file in sorted(files, key=lambda file: not file.endswith(".json")):
            target = f"{aside}{file.removeprefix(name)}"
            self._try(file, lambda file=file, to=target: self._fs.mv(self._at(file), self._at(to)))
        return self.path(aside) if files else None

    def remove(self, name: str, description: str) -> None:
        """Remove a folder, its description first; others may be doing the same."""
        files = [file for file in self._list() if file.startswith(f"{name}/")]
        for file in sorted(files, key=lambda file: not file.endswith(f"/{description}")):
            with contextlib.suppress(DatasetError):
                self._try(file, lambda file=file: self._fs.rm_file(self._at(file)), verb="remove")

    def _connect(self) -> None:
        protocol = self.address.partition("://")[0]
        extra = EXTRAS.get(protocol, "s3")
        install = f'pip install "style-distil[{extra}]"'
        try:
            importlib.import_module("filelock")  # for the cache
            fsspec = importlib.import_module("fsspec")
        except ImportError as error:
            raise InputError(f"{self.address!r} needs {error.name}: {install}.") from error
        try:
            self._fs, self._root = fsspec.url_to_fs(self.address, use_listings_cache=False)
        except ImportError as error:
            raise InputError(
                f"{self.address!r} needs the client of {protocol}://: {install}."
            ) from error
        except Exception as error:
            raise InputError(
                f"{self.address!r} cannot be opened: {one_line(error)}; expected a folder, or an "
                "address such as s3://bucket/folder."
            ) from error
        self._root = self._root.rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _fresh(self) -> Any:
        """The client, made to forget what it knows of names that others may have added to."""
        self._fs.invalidate_cache()
        return self._fs

    def _list(self) -> dict[str, int]:
        found = self._try("", lambda: self._fresh().find(self._root, detail=True))
        start = len(self._root.strip("/")) + 1
        return {path.strip("/")[start:]: info["size"] for path, info in found.items()}

    def cached(
        self,
        name: str,
        sha256: object,
        read: Callable[[Path], _Result],
        of_file: str | None = None,
    ) -> _Result:
        """What a function makes of the copy of a file on this machine.

        Args:
            name: the file.
            sha256: what stands for its content, if anything is recorded.
            read: the function.
            of_file: sha256 of its bytes, if that is recorded.
        """
        if not isinstance(sha256, str):
            sha256 = self._try(name, lambda: str(self._fresh().ukey(self._at(name))))
        key = hashlib.sha256(f"{self.path(name)}\n{sha256}".encode()).hexdigest()
        size = self.sizes().get(name)
        if size is None:
            size = self._try(name, lambda: int(self._fresh().size(self._at(name))))
        while True:
            path = self.cache.fetch(
                key, size, self.path(name), lambda part: self._download(name, size, part, of_file)
            )
            try:
                return read(path)
            except (FileNotFoundError, DatasetError):
                # Gone again if others needed the room before it was opened.
                if path.exists():
                    raise

    def _download(self, name: str, size: int, path: Path, sha256: str | None) -> None:
        def get() -> None:
            self._fs.get_file(self._at(name), str(path))
            if path.stat().st_size != size:
                raise OSError(f"{path.stat().st_size} of {size} bytes arrived")
            if sha256 is not None:
                with open(path, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                        raise OSError("the bytes do not match the recorded sha256")

        self._try(name, get)

    def _upload(self, file: Path, name: str, **mode: str) -> None:
        def put() -> None:
            self._fs.put_file(str(file), self._at(name), **mode)
            arrived = self._fresh().size(self._at(name))
            if arrived != file.stat().st_size:
                mode.clear()  # what arrived is this one's own, and has to be replaced
                raise OSError(f"{arrived} of {file.stat().st_size} bytes arrived")

        self._try(name, put, verb="write")

    def _try(self, name: str, work: Callable[[], _Result], verb: str = "read") -> _Result:
        """Do something with the bucket, again after a pause if it fails for what may pass.

        Raises:
            DatasetError: it failed for good; one sentence.
        """
        address = self.path(name).rstrip("/")
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                return work()
            except FileNotFoundError as error:
                raise DatasetError(
                    f"cannot {verb} {address!r}: there is no such file or bucket."
                ) from error
            except FileExistsError:
                raise
            except PermissionError as error:
                raise DatasetError(
                    f"cannot {verb} {address!r}: access is denied; check the credentials and what "
                    "they permit."
                ) from error
            except Exception as error:  # clients have errors of their own
                if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                    raise
                last = error
                if type(error).__name__ in _LASTING:
                    break
        raise DatasetError(
            f"cannot {verb} {address!r}: {type(last).__name__}, {one_line(last)}; check the "
            "address, the credentials and the network."
        ) from last


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_LASTING = ("NoCredentialsError", "NotImplementedError", "ParamValidationError", "RefreshError")
"""Errors of clients that no second attempt mends."""


def load_manifest(storage: Folder | Bucket) -> dict:
    """Read manifest.json and check the keys that every dataset has.

    Raises:
        DatasetError: no manifest, another format version, a key missing or out of range.
    """
    if not storage.holds("manifest.json"):
        raise DatasetError(
            f"{str(storage)!r} is not a triplet dataset: it has no manifest.json; style-distil "
            "dump and style-distil triplets import write such folders."
        )
    manifest = storage.load_json("manifest.json")
    check_manifest(manifest, storage.path("manifest.json"))
    return manifest


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _unfinished(error: OSError) -> str:
    return f"{error.strerror}; finished shards are kept, start again once this is mended"
