"""Training runs and dumps of a study, each by its own command in its own process.

A finished one is kept, an interrupted one continues: a study that was killed goes on with the same
command. A run is found by its settings, pictures and weights, so studies in one folder share the
runs that they have in common, and other triplets under the same name make another run. A new
version of this program does not: give it another folder.
"""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from flax import nnx

from student_jax.training.data import open_triplets
from student_jax.weights.folder import open_student
from student_jax.weights.provenance import weights_sha256
from triplets import InputError, TripletDataset

COMMAND = (sys.executable, "-m", "style_distil")
"""What runs `style-distil` in a process of its own."""
ROOT = Path(__file__).parents[1]
"""The clone, whose packages that process imports wherever it is started."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training by `style-distil train`."""

    root: Path
    """Folder of the runs of all studies."""
    data: Path
    """Triplets to train on."""
    validation: Path | None = None
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
            call("train", preset, "--workdir", str(self.workdir), "--resume", *settings)

    def _words(self, data: str, validation: str | None, init_from: str | None) -> tuple[str, ...]:
        flags = {
            "--data": data,
            "--validation": validation,
            "--loss": self.loss,
            "--seed": str(self.seed),
            "--steps": str(self.steps),
            "--warmup-steps": str(min(500, self.steps // 10)),
            "--checkpoint-every": str(max(1, self.steps // 2)),
            "--init-from": init_from,
        }
        words = [
            word for flag, value in flags.items() if value is not None for word in (flag, value)
        ]
        return (self.preset, *words, *self.flags)


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
    """The dataset that `style-distil dump` writes with these flags, now complete.

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
    call("dump", "--out", str(out), *flags)
    return TripletDataset(out)


def teacher_flags(manifest: Mapping, model: str | None = None) -> list[str]:
    """The flags of `style-distil dump` that ask for the teacher of a dataset, with its settings.

    Args:
        manifest: of a dataset that a teacher of this project made.
        model: where the teacher's weights are, if not where they were.

    Raises:
        KeyError: the manifest does not say which teacher or weights it was.
    """
    settings, provenance = manifest["settings"], manifest.get("provenance", {})
    # Datasets of version 0.1.0 knew one method only, and called the weights the teacher.
    teacher = settings.get("teacher", "styleid")
    old = "teacher" not in settings
    weights = model or provenance["teacher" if old else "model"]
    flags = ["--teacher", teacher, "--model", weights]
    for name, value in settings[teacher].items():
        flag = {"num_steps": "steps"}.get(name, name).replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{flag}", *map(str, values)]
    return [*flags, "--dtype", settings["dtype"], "--seed", str(settings["seed"])]


def clone_environment() -> dict[str, str]:
    """The environment of a process that imports the packages of this clone."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


def answer(*words: str) -> dict:
    """The object that a module of this clone prints in its last line, as `python -m WORDS`.

    Raises:
        InputError: it ended with an error, which it has printed.
    """
    result = subprocess.run(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=clone_environment(),
    )
    if result.returncode:
        raise InputError(
            f"python -m {shlex.join(words)} ended with status {result.returncode}; its message is "
            "above."
        )
    return json.loads(result.stdout.strip().splitlines()[-1])


def call(command: str, *flags: str) -> None:
    """Run one of the project's commands to its end, its output shown.

    Raises:
        InputError: it ended with an error.
        KeyboardInterrupt: SIGTERM arrived; the command got it too and has ended.
    """
    print(f"$ style-distil {shlex.join([command, *flags])}", flush=True)
    terminated = False
    with subprocess.Popen([*COMMAND, command, *flags], env=clone_environment()) as process:

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
        raise InputError(
            f'"style-distil {command}" ended with status {status}; its message is above.'
        )
