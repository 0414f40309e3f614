"""The command in processes of its own, which may be killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from attacks import Attack


class Process:
    """`style-distil WORDS`, started at once; it is killed, if it still runs, when the block ends.

    Args:
        attack: is told how much memory the process took.
        log: file for all that it says.
        before: Python code that it runs first.
    """

    def __init__(self, attack: Attack, words: list[str], log: Path, before: str = "", **options):
        self._attack, self._log = attack, log
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

    def _note_peak(self) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            found = re.search(
                r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._process.pid}/status").read_text()
            )
            if found:
                self._attack.note_peak(int(found[1]) >> 10)


FORKS = """
import importlib, json, os, sys
importlib.import_module(sys.argv[1])
from style_distil.command import main
for line in sys.stdin:
    words, log = json.loads(line)
    process = os.fork()
    if process == 0:
        with open(os.devnull) as nothing, open(log, "w") as file:
            for number, stream in enumerate((nothing, file, file)):
                os.dup2(stream.fileno(), number)
        sys.exit(main(words))
    print(process, flush=True)
    _, status, usage = os.wait4(process, 0)
    print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, flush=True)
"""


class Forks:
    """`style-distil WORDS` again and again, each in a fork of a process that has the imports.

    Args:
        module: what is imported.
    """

    def __init__(self, attack: Attack, module: str, log: Path, **options):
        self._attack, self._log = attack, log
        self._parent = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FORKS, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            **options,
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_) -> None:
        self._parent.communicate()  # ends where its input does

    def run(self, words: list[str]) -> tuple[int, str]:
        """Exit status, and all that it said; it is killed if this is left before it ends."""
        print(json.dumps([words, str(self._log)]), file=self._parent.stdin)
        process, status = int(self._parent.stdout.readline()), None
        try:
            status, peak_kib = map(int, self._parent.stdout.readline().split())
        finally:
            if status is None:
                os.kill(process, signal.SIGKILL)
                self._parent.stdout.readline()
        self._attack.note_peak(peak_kib >> 10)
        return status, self._log.read_text(errors="replace")
