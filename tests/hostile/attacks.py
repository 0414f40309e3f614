"""What becomes of attempts with damaged files."""

import os
import random
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable

from jaxtyping import TypeCheckError

from triplets import InputError

SCALE = float(os.environ.get("HOSTILE_SCALE", "1"))
SEED = int(os.environ.get("HOSTILE_SEED", "0"))

LIMIT_S = 30
"""Seconds after which an attempt counts as a hang."""

COLUMNS = ("cases", "done", "refused", "silent", "tracebacks", "hangs")


class Silent(Exception):
    """Damage changed a result, and nobody was told."""


class Hang(BaseException):
    """An attempt takes too long."""


class Attack:
    """Attempts of one kind."""

    def __init__(self, name: str):
        self.name, self.counts = name, Counter()
        self.failures: list[str] = []
        self.seconds, self.peak_mib = 0.0, 0

    def __call__(self, cases: int, attempt: Callable[[random.Random], None]) -> None:
        """Make attempts, each with random numbers of its own; fails if one was not refused well."""
        start = time.monotonic()
        for case in range(max(1, round(cases * SCALE))):
            outcome = self._outcome(attempt, random.Random(f"{SEED} {self.name} {case}"))
            self.counts.update(["cases", outcome.partition(":")[0]])
            if outcome not in ("done", "refused"):
                self.failures.append(f"{self.name}, case {case}: {outcome}")
        self.seconds = time.monotonic() - start
        self.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        assert not self.failures, "\n".join(self.failures)

    def _outcome(self, attempt: Callable[[random.Random], None], rng: random.Random) -> str:
        def stop(*_):
            raise Hang

        previous = signal.signal(signal.SIGALRM, stop)
        signal.alarm(LIMIT_S)
        try:
            with warnings.catch_warnings(action="ignore"):
                attempt(rng)
        except (InputError, OSError):
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
