"""The prepared pictures that a dump needs: each made once, and kept on disk if that is worth it.

What a teacher learns of a style is published in the dataset like a shard, with its checksum:

    prepared/style-00003/       one group of pictures
        tensors.safetensors     what `Teacher.prepare` made of them
        prepared.json           ids of the pictures, sha256 of the other file
    prepared/.style-00004.unfinished/       state of a group in the making, if the teacher keeps any

In a bucket the first of them has 16 digits of its sha256 in its name, so that it always belongs to
the description beside it, and the state of a group in the making stays on the machine that works.
"""

import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int

from teacher_torch.pixels import to_model_range
from teacher_torch.teacher import Key, Prepared, Role, Teacher
from triplets import DatasetError, ImageSet, TripletWriter
from triplets.atomic import make_folder, synced_file
from triplets.format import encode_json, load_json

FOLDER = "prepared"
TENSORS = "tensors.safetensors"
DESCRIPTION = "prepared.json"


class PreparedPictures:
    """The prepared contents or styles of a dump, each made when a shard first needs it and kept, in
    main memory, until the last shard that needs it is done.

    They are made in fixed groups of the whole plan's pictures, because a network's rounding depends
    on its batch: what an earlier run has finished must not change a result.
    """

    def __init__(
        self,
        teacher: Teacher,
        role: Role,
        pictures: ImageSet,
        seed: int,
        plan: Int[np.ndarray, " p"],
        shards: Sequence[Int[np.ndarray, " k"]],
        store: "PreparedStore | None" = None,
    ):
        """
        Args:
            teacher: prepares the pictures.
            role: what the pictures are.
            pictures: all of them.
            seed: of the dump, for the teacher's random numbers.
            plan: rows of the pictures that the plan uses, in any order, with repetitions.
            shards: those of each shard that is still to be made, in the order of the work.
            store: where to keep them on disk; by default they are kept in memory only.
        """
        self._teacher, self._role, self._pictures, self._seed = teacher, role, pictures, seed
        self._store = store
        self._rows = np.unique(plan)
        # Position in `shards` of the last use of each group.
        self._last_use = {
            group: shard for shard, rows in enumerate(shards) for group in self._find(rows)[0]
        }
        self._to_make = {
            group for group in self._last_use if store is None or not store.holds(self._name(group))
        }
        self._groups: dict[int, Prepared] = {}
        self._made = 0

    @functools.cached_property
    def work(self) -> int:
        """UNet rows of what was still to be made for the shards at the start."""
        return sum(self._work(group) for group in self._to_make)

    @functools.cached_property
    def count(self) -> int:
        """Pictures that were still to be made for the shards at the start."""
        return sum(len(self._group_rows(group)) for group in self._to_make)

    @property
    def made(self) -> int:
        """How many of these are there by now."""
        return self._made

    def get(self, rows: Int[np.ndarray, " b"], shard: int) -> Prepared:
        """The prepared pictures of some rows, in their order, for the shard at that position of the
        work; in main memory.

        Raises:
            DatasetError: what is kept on disk is damaged.
        """
        groups, members = self._find(rows)
        for group in [g for g in self._groups if self._last_use[g] < shard]:
            del self._groups[group]
        for group in sorted(set(groups) - self._groups.keys()):
            self._groups[group] = self._make(group) if self._store is None else self._share(group)
            if group in self._to_make:
                self._made += len(self._group_rows(group))
        return Prepared.cat(
            [self._groups[group][member] for group, member in zip(groups, members, strict=True)]
        )

    def drop_unneeded(self, rows: Int[np.ndarray, " b"]) -> None:
        """Remove from disk all but the groups of the rows that are still needed, by any rank."""
        needed = set(self._find(rows)[0])
        for group in range(-(-len(self._rows) // self._teacher.group(self._role))):
            if group not in needed and self._store.holds(self._name(group)):
                self._store.drop(self._name(group))

    def _make(self, group: int, unfinished: Path | None = None) -> Prepared:
        self._teacher.unfinished = unfinished
        rows = self._group_rows(group)
        keys = [Key(self._seed, **{self._role: name}) for name in self._ids(group)]
        images = to_model_range(self._pictures.images[rows])
        return self._teacher.prepare(self._role, images, keys).to("cpu")

    def _share(self, group: int) -> Prepared:
        """What is on disk, or what is made now and put there, by this process or by another."""
        name, ids = self._name(group), self._ids(group)
        if not self._store.holds(name):
            with self._store.lock(name):
                if not self._store.holds(name):  # nobody has made it while this process waited
                    made = self._make(group, self._store.unfinished(name))
                    self._store.publish(name, ids, made)
                    self._store.clear(name)
                    return made
        if group in self._to_make:
            self._teacher.after_call(self._work(group))  # another rank has done it
        return self._store.load(name, ids)

    def _name(self, group: int) -> str:
        return f"{self._role}-{group:05d}"

    def _ids(self, group: int) -> list[str]:
        return [self._pictures.ids[row] for row in self._group_rows(group)]

    def _work(self, group: int) -> int:
        return self._teacher.preparation_work(self._role, len(self._group_rows(group)))

    def _group_rows(self, group: int) -> Int[np.ndarray, " b"]:
        size = self._teacher.group(self._role)
        return self._rows[group * size : (group + 1) * size]

    def _find(self, rows: Int[np.ndarray, " b"]) -> tuple[list[int], list[int]]:
        """Group of each row, and its index in the group."""
        size = self._teacher.group(self._role)
        groups, members = np.divmod(np.searchsorted(self._rows, rows), size)
        return groups.tolist(), members.tolist()


class PreparedStore:
    """The folder of a dataset in which prepared pictures are kept; ranks share it."""

    def __init__(self, writer: TripletWriter):
        self._writer = writer

    def holds(self, name: str) -> bool:
        """Whether that group is there, whole."""
        return self._path(name).is_dir()

    def unfinished(self, name: str) -> Path:
        """A folder for the state of a group in the making; it stays there until `clear`.

        Raises:
            OSError: the disk is full and so on.
        """
        path = self._unfinished_path(name)
        path.mkdir(exist_ok=True)
        return path

    def clear(self, name: str) -> None:
        """Remove the state of a group that is there."""
        shutil.rmtree(self._unfinished_path(name), ignore_errors=True)

    def publish(self, name: str, ids: Sequence[str], prepared: Prepared) -> None:
        """Write a group under its name, whole or not at all.

        Raises:
            OSError: the disk is full and so on.
        """
        with self._writer.new_folder(f"{FOLDER}/{name}", DESCRIPTION) as folder:
            prepared.save(folder / TENSORS)
            description = {"ids": list(ids), "sha256": _file_sha256(folder / TENSORS)}
            with synced_file(folder / DESCRIPTION) as file:
                file.write(encode_json(description))

    def load(self, name: str, ids: Sequence[str]) -> Prepared:
        """Read a group that is there.

        Raises:
            DatasetError: it is damaged, or of other pictures.
        """
        path = self._path(name)
        # Left by a kill right after publishing
        self._lock_path(name).unlink(missing_ok=True)
        self.clear(name)
        description = load_json(path / DESCRIPTION)
        try:
            intact = description.get("sha256") == _file_sha256(path / TENSORS)
        except OSError:
            intact = False
        if description.get("ids") != list(ids) or not intact:
            raise _damaged(path)
        return Prepared.load(path / TENSORS)

    def drop(self, name: str) -> None:
        """Remove a group, whole or not at all; another rank may be doing the same."""
        path = self._path(name)
        dropped = self._writer.root / f".staging-{self._writer.rank:05d}.{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, dropped)
        shutil.rmtree(dropped, ignore_errors=True)
        self._lock_path(name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are still there
            path.parent.rmdir()

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Let one process at a time make a group. The lock of a killed process is free at once."""
        path = self._lock_path(name)
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting for another rank to prepare {name}")
            lock.acquire()
        try:
            yield
            # Whoever opens it from now on finds the group there, and needs no lock.
            with contextlib.suppress(PermissionError):  # Windows keeps open files
                path.unlink(missing_ok=True)
        finally:
            lock.release()

    def _path(self, name: str) -> Path:
        return self._writer.root / FOLDER / name

    def _unfinished_path(self, name: str) -> Path:
        return self._path(f".{name}.unfinished")

    def _lock_path(self, name: str) -> Path:
        return self._path(f".{name}.lock")


class BucketPreparedStore(PreparedStore):
    """The same in a bucket, where there are no locks.

    Ranks of a machine still wait for each other. Those of different machines should get different
    pictures to prepare; what two of them make of the same one is used by whoever finds it.
    """

    def __init__(self, writer: TripletWriter):
        super().__init__(writer)
        key = hashlib.sha256(str(writer.storage).encode()).hexdigest()[:16]
        self._scratch = Path(tempfile.gettempdir()) / f"style-distil-prepared-{key}"

    def holds(self, name: str) -> bool:
        """See `PreparedStore`."""
        return self._writer.storage.holds(f"{FOLDER}/{name}/{DESCRIPTION}")

    def unfinished(self, name: str) -> Path:
        """See `PreparedStore`."""
        make_folder(self._scratch)
        return super().unfinished(name)

    def publish(self, name: str, ids: Sequence[str], prepared: Prepared) -> None:
        """See `PreparedStore`."""
        with self._writer.new_folder(f"{FOLDER}/{name}", DESCRIPTION) as folder:
            prepared.save(folder / TENSORS)
            sha256 = _file_sha256(folder / TENSORS)
            os.rename(folder / TENSORS, folder / _name_of_tensors(sha256))
            with synced_file(folder / DESCRIPTION) as file:
                file.write(encode_json({"ids": list(ids), "sha256": sha256}))

    def load(self, name: str, ids: Sequence[str]) -> Prepared:
        """See `PreparedStore`."""
        storage, folder = self._writer.storage, f"{FOLDER}/{name}"
        self.clear(name)
        description = storage.load_json(f"{folder}/{DESCRIPTION}")
        sha256 = description.get("sha256")
        if description.get("ids") != list(ids) or not isinstance(sha256, str):
            raise _damaged(storage.path(folder))
        tensors = f"{folder}/{_name_of_tensors(sha256)}"
        return storage.cached(tensors, sha256, Prepared.load, of_file=sha256)

    def drop(self, name: str) -> None:
        """See `PreparedStore`."""
        self._writer.storage.remove(f"{FOLDER}/{name}", DESCRIPTION)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """See `PreparedStore`."""
        make_folder(self._scratch)
        with super().lock(name):
            yield

    def _path(self, name: str) -> Path:
        return self._scratch / name


def prepared_store(writer: TripletWriter) -> PreparedStore:
    """Where the prepared pictures of a dataset are kept."""
    return (PreparedStore if writer.storage.is_local else BucketPreparedStore)(writer)


def _damaged(path: str | Path) -> DatasetError:
    return DatasetError(
        f"{path} is damaged or belongs to other pictures; remove it, and the same command makes it "
        "again."
    )


def _name_of_tensors(sha256: str) -> str:
    return f"tensors-{sha256[:16]}.safetensors"


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
