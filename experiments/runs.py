"""Training runs and dumps of a study, each by its own command in its own process.

A finished one is kept, an interrupted one continues: a study that was killed goes on with the same
command. A run is found by its settings, pictures and weights, so studies in one folder share the
runs that they have in common, and other triplets under the same name make another run. A new
version of this program does not: give it another folder.
"""

import hashlib
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from flax import nnx

from student_jax.training.data import open_triplets
from student_jax.weights.folder import open_student
from student_jax.weights.provenance import weights_sha256
from triplets import InputError, TripletDataset

SCRIPTS = Path(__file__).parents[1] / "scripts"


@dataclass(frozen=True)
class TrainingRun:
    """One training by scripts/train_flax.py."""

    root: Path
    """Folder of the runs of all studies."""
    data: Path
    """Triplets to train on."""
    validation: Path | None
    """Triplets to validate on; None: a part of `data`."""
    loss: str
    seed: int
    steps: int
    preset: str = "mini"
    """"mini" or "reference"."""
    init_from: str | None = None
    """Student to start from; None: random weights."""
    flags: tuple[str, ...] = ()
    """Further flags."""

    @property
    def settings(self) -> tuple[str, ...]:
        """All that decides what is trained, as a command line."""
        validation = None if self.validation is None else str(self.validation)
        return self._words(str(self.data), validation, self.init_from)

    @cached_property
    def workdir(self) -> Path:
        """Named by a hash of the settings, of pictures and of weights, wherever these lie.

        Raises:
            InputError: triplets or a student that cannot be read.
        """
        words = self._words(
            open_triplets(str(self.data)).fingerprint,
            None if self.validation is None else open_triplets(str(self.validation)).fingerprint,
            None if self.init_from is None else _weights(self.init_from),
        )
        return self.root / hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]

    @property
    def finished(self) -> bool:
        """Whether the checkpoint of the last step is there."""
        return (self.workdir / "checkpoints" / str(self.steps)).is_dir()

    def ensure(self) -> None:
        """Train, or continue, until the last step; see the module.

        Raises:
            InputError: the training failed; it has printed why.
        """
        if not self.finished:
            preset, *settings = self.settings
            call("train_flax.py", preset, "--workdir", str(self.workdir), "--resume", *settings)

    def _words(self, data: str, validation: str | None, init_from: str | None) -> tuple[str, ...]:
        return (
            *(self.preset, "--data", data),
            *(() if validation is None else ("--validation", validation)),
            *("--loss", self.loss, "--seed", str(self.seed), "--steps", str(self.steps)),
            *("--warmup-steps", str(min(500, self.steps // 10))),
            *("--checkpoint-every", str(max(1, self.steps // 2))),
            *(() if init_from is None else ("--init-from", init_from)),
            *self.flags,
        )


@cache
def _weights(student: str) -> str:
    return weights_sha256(nnx.state(open_student(student)))


def ensure_all(runs: Iterable[TrainingRun]) -> None:
    """Finish some runs one after the other, and say how many are left.

    Raises:
        InputError: as `TrainingRun.ensure`.
    """
    runs = list(runs)
    for number, run in enumerate(runs, start=1):
        state = "kept" if run.finished else "training"
        print(f"run {number} of {len(runs)}, {state}: {run.workdir}", flush=True)
        run.ensure()


def ensure_dump(out: Path, flags: Sequence[str]) -> TripletDataset:
    """The dataset that scripts/dump_teacher.py writes with these flags, now complete.

    Raises:
        InputError: the dump failed; it has printed why.
    """
    if (out / "manifest.json").is_file():
        try:
            dataset = TripletDataset(out)
            if len(dataset) == dataset.manifest["num_pairs"]:
                return dataset
        except InputError:
            pass  # no shard yet: the dump begins or says what is wrong
    call("dump_teacher.py", "--out", str(out), *flags)
    return TripletDataset(out)


def call(script: str, *flags: str) -> None:
    """Run one of the project's commands to its end, its output shown.

    Raises:
        InputError: it ended with an error.
        KeyboardInterrupt: SIGTERM arrived; the command got it too and has ended.
    """
    command = [sys.executable, str(SCRIPTS / script), *flags]
    print(f"$ python scripts/{script} {shlex.join(flags)}", flush=True)
    terminated = False
    with subprocess.Popen(command) as process:

        def terminate(*_):
            nonlocal terminated
            terminated = True
            process.terminate()

        previous = signal.signal(signal.SIGTERM, terminate)
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)
    if terminated:
        raise KeyboardInterrupt
    if status:
        raise InputError(f"scripts/{script} ended with status {status}; its message is above.")
