"""Files of buckets, kept on this machine up to a total size; several processes may share them."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from triplets.atomic import make_folder
from triplets.errors import InputError

GIB = 2**30

DEFAULT_GIB = 32.0

_PART_NAME = re.compile(r"\.([0-9a-f]{64})\.(\d+)\.part")


def default_folder() -> Path:
    """Where files of buckets are kept unless a folder is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "style-distil"


@dataclass(frozen=True)
class Cache:
    """A folder of downloaded files, of which the ones that were used last stay.

    A file's name is the sha256 of its address and of what its dataset records of its content, so
    what is there is never out of date. All processes that use the folder must give the same limit.
    """

    folder: Path
    max_bytes: int

    @classmethod
    def of(cls, folder: Path | None = None, gib: float = DEFAULT_GIB) -> "Cache":
        """As the flags --cache-dir and --cache-gib say.

        Raises:
            InputError: a limit that is no size.
        """
        if not 0 < gib < 2**30:
            raise InputError(f"--cache-gib {gib}: expected a number of GiB above 0.")
        return cls((folder or default_folder()).absolute(), int(gib * GIB))

    def check_room(self, size: int, name: str) -> None:
        """Refuse a file that could never be kept.

        Raises:
            InputError: it is larger than the whole cache.
        """
        if size > self.max_bytes:
            raise InputError(
                f"the cache of {self.max_bytes / GIB:.3g} GiB cannot hold {name}, which has "
                f"{size / GIB:.3g} GiB: give a larger --cache-gib."
            )

    def fetch(self, key: str, size: int, name: str, download: Callable[[Path], None]) -> Path:
        """The file of that key, which is downloaded unless it is there.

        Others may remove it again to make room: whoever opens it and finds it gone calls this
        again. On POSIX an open file stays readable.

        Args:
            key: 64 hexadecimal digits.
            size: its bytes.
            name: what messages call it.
            download: writes the whole file to the path that it is given, or raises.

        Raises:
            InputError: it is larger than the whole cache.
            OSError: the disk is full and so on.
        """
        path = self.folder / key
        if _touch(path):
            return path
        self.check_room(size, name)
        make_folder(self.folder)
        with self._lock(key[:2]):
            if _touch(path):
                return path  # another process has fetched it meanwhile
            part = self._reserve(key, size)
            try:
                download(part)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        return path

    def _reserve(self, key: str, size: int) -> Path:
        """An empty file to download to, once there is room for its final size."""
        while True:
            with self._lock("room"):
                if self._make_room(size, own=key[:2]):
                    part = self.folder / f".{key}.{size}.part"
                    part.touch()
                    return part
            time.sleep(0.1)  # what others are downloading right now cannot be removed

    def _make_room(self, size: int, own: str) -> bool:
        """Remove what was used longest ago until there is room; whether there is."""
        kept, total = [], size
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if match := _PART_NAME.fullmatch(entry.name):
                    # A lock that nobody holds belonged to a process that was killed.
                    if match[1][:2] == own or self._is_free(match[1][:2]):
                        os.unlink(entry.path)
                    else:
                        total += int(match[2])
                elif not entry.name.startswith("."):
                    status = entry.stat()
                    kept.append((status.st_mtime_ns, status.st_size, entry.path))
                    total += status.st_size
        for _, length, path in sorted(kept):
            if total <= self.max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= length
        return total <= self.max_bytes

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold a lock of this folder; that of a killed process is free at once."""
        from filelock import FileLock

        with FileLock(self.folder / f".{name}.lock", poll_interval=0.01):
            yield

    def _is_free(self, name: str) -> bool:
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / f".{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        lock.release()
        return True


def _touch(path: Path) -> bool:
    """Mark a file as just used; whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
