"""What becomes of attempts with damaged files, broken requests and killed processes."""

import os
import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable

from jaxtyping import TypeCheckError

from triplets import InputError
from triplets.memory import PeakGrowth, peak_bytes

SCALE = float(os.environ.get("HOSTILE_SCALE", "1"))
SEED = int(os.environ.get("HOSTILE_SEED", "0"))

LIMIT_S = 30
"""Seconds after which an attempt counts as a hang."""

COLUMNS = ("cases", "done", "refused", "silent", "tracebacks", "hangs")


class Refused(Exception):
    """Another process said in one sentence why it does not do this."""


class Silent(Exception):
    """Damage changed a result, and nobody was told."""


class Hang(BaseException):
    """An attempt takes too long."""


class Attack:
    """Attempts of one kind."""

    def __init__(self, name: str):
        self.name, self.counts = name, Counter()
        self.failures: list[str] = []
        self.seconds, self.bytes_lost = 0.0, 0
        self.peak_mib = 0
        """Of this process, or of the largest of the processes that `note_peak` was told of."""

    def note_peak(self, mib: int) -> None:
        """Tell what another process took."""
        self.peak_mib = max(self.peak_mib, mib)

    def __call__(
        self, cases: int, attempt: Callable[[random.Random], None], limit_s: int = LIMIT_S
    ) -> None:
        """Make attempts, each with random numbers of its own; fails if one was not refused well."""
        start = time.monotonic()
        with PeakGrowth():  # the peak starts anew
            for case in range(max(1, round(cases * SCALE))):
                rng = random.Random(f"{SEED} {self.name} {case}")
                outcome = self._outcome(attempt, rng, limit_s)
                self.counts.update(["cases", outcome.partition(":")[0]])
                if outcome not in ("done", "refused"):
                    self.failures.append(f"{self.name}, case {case}: {outcome}")
            self.peak_mib = self.peak_mib or (peak_bytes() or 0) >> 20
        self.seconds = time.monotonic() - start
        assert not self.failures, "\n".join(self.failures)

    def _outcome(
        self, attempt: Callable[[random.Random], None], rng: random.Random, limit_s: int
    ) -> str:
        def stop(*_):
            raise Hang

        previous = signal.signal(signal.SIGALRM, stop)
        signal.alarm(limit_s)
        try:
            with warnings.catch_warnings(action="ignore"):
                attempt(rng)
        except (InputError, OSError, Refused):
            return "refused"  # a command prints these without a traceback
        except TypeCheckError as error:
            # Only tests check types, and ask an object for all that its protocol has.
            if isinstance(error.__cause__, InputError):
                return "refused"
            return f"tracebacks: {error}"
        except Silent as error:
            return f"silent: {error}"
        except Hang:
            return f"hangs: {traceback.format_exc(limit=-3)}"
        except BaseException:
            return f"tracebacks: {traceback.format_exc(limit=-4)}"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        return "done"
