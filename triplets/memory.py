"""How much memory a piece of work takes."""

import ctypes
import re
from pathlib import Path

PROCESS = Path("/proc/self")


class PeakGrowth:
    """Of the work in its `with` block, by how much this process grew at the most.

    Linux tells; elsewhere nothing is known.
    """

    bytes: int | None = None
    """Once the block has ended; None where the system does not tell."""

    def __enter__(self) -> "PeakGrowth":
        self._before = _forget_peak()
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            self.bytes = _status_bytes("VmHWM") - self._before


def _forget_peak() -> int | None:
    """The resident memory, from which the peak starts anew."""
    try:
        # Freed memory that the process still has would hide growth.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")
        return _status_bytes("VmRSS")
    except OSError:
        return None


def _status_bytes(field: str) -> int:
    status = (PROCESS / "status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])
