"""Training runs and dumps of a study, each by its own command in its own process.

A finished one is kept, an interrupted one continues: a study that was killed goes on with the same
command.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triplets import InputError, TripletDataset
from triplets.atomic import atomic_write

SCRIPTS = Path(__file__).parents[1] / "scripts"


@dataclass(frozen=True)
class TrainingRun:
    """One training by scripts/train_flax.py."""

    workdir: Path
    preset: str
    """"mini" or "reference"."""
    flags: tuple[str, ...]
    """Further flags, --steps left out."""
    steps: int

    @property
    def finished(self) -> bool:
        """Whether the checkpoint of the last step is there."""
        return (self.workdir / "checkpoints" / str(self.steps)).is_dir()

    def ensure(self) -> None:
        """Train, or continue, until the last step; see the module.

        Raises:
            InputError: the workdir holds a run with other settings, or the training failed, which
                has printed why.
        """
        settings = {"preset": self.preset, "flags": list(self.flags), "steps": self.steps}
        kept = self.workdir / "study.json"
        if not kept.is_file():
            self.workdir.mkdir(parents=True, exist_ok=True)
            with atomic_write(kept) as file:
                file.write(json.dumps(settings, indent=2).encode())
        elif json.loads(kept.read_text()) != settings:
            raise InputError(
                f'"{self.workdir}" holds a run with other settings, see its {kept.name}: give '
                "another --out, or the settings that the study began with."
            )
        if not self.finished:
            call(
                "train_flax.py",
                self.preset,
                *("--workdir", str(self.workdir), "--steps", str(self.steps), "--resume"),
                *self.flags,
            )


def ensure_all(runs: Iterable[TrainingRun]) -> None:
    """Finish some runs one after the other, and say how many are left.

    Raises:
        InputError: as `TrainingRun.ensure`.
    """
    runs = list(runs)
    for number, run in enumerate(runs, start=1):
        state = "kept" if run.finished else "training"
        print(f"run {number} of {len(runs)}: {run.workdir.name}, {state}", flush=True)
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
    """
    command = [sys.executable, str(SCRIPTS / script), *flags]
    print(f"$ python scripts/{script} {shlex.join(flags)}", flush=True)
    if status := subprocess.run(command).returncode:
        raise InputError(f"scripts/{script} ended with status {status}; its message is above.")
