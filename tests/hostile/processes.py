"""The command in processes of its own, which may be killed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from attacks import Attack, Refused


class Process:
    """`style-distil WORDS`, started at once; it is killed, if it still runs, when the block ends.

    Args:
        attack: is told how much memory the process took.
        log: file for all that it says.
        before: Python code that it runs first.
    """

    def __init__(self, attack: Attack, words: list[str], log: Path, before: str = "", **options):
        self._attack, self._log, self.words = attack, log, words
        program = f"{before}\nfrom style_distil.command import main\nmain()"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                **options,
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(ProcessLookupError):  # and all that it started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, seconds: float = float("inf")) -> int | None:
        """Its exit status, or None if it still runs after these seconds."""
        deadline = time.monotonic() + seconds
        while (status := self._process.poll()) is None and time.monotonic() < deadline:
            self._note_peak()
            time.sleep(0.02)
        return status

    def finish(self) -> None:
        """Wait for its end.

        Raises:
            Refused: it refused in a sentence.
            AssertionError: it ended in another way.
        """
        status, said = self.wait(), self.said()
        assert "Traceback" not in said, f"{self.words}: {said[-2000:]}"
        # The parser and settings that make no sense end with 2, and what cannot be used with 1.
        if status == 2 or (status == 1 and "error: " in said):
            raise Refused
        assert status == 0, f"{self.words}: exit status {status}, {said[-2000:]}"

    def _note_peak(self) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            found = re.search(
                r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._process.pid}/status").read_text()
            )
            if found:
                self._attack.note_peak(int(found[1]) >> 10)
