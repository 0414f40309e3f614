"""How much memory this process takes."""

import ctypes
import re
from pathlib import Path

PROCESS = Path("/proc/self")


def peak_bytes() -> int | None:
    """The largest resident memory of this process so far; None except on Linux."""
    return _status_bytes("VmHWM")


class PeakGrowth:
    """By how many bytes the process grew, at its peak, during the `with` block.

    Only Linux reports what is needed; elsewhere `bytes` stays None.
    """

    bytes: int | None = None
    """Set when the block ends; None if unavailable."""

    def __enter__(self) -> "PeakGrowth":
        self._before = _forget_peak()
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            self.bytes = peak_bytes() - self._before


def _forget_peak() -> int | None:
    """Start the peak anew from the current resident memory, which is returned."""
    try:
        # Freed memory that the process still has would hide growth.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return None
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int | None:
    try:
        status = (PROCESS / "status").read_text()
    except OSError:
        return None
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])
