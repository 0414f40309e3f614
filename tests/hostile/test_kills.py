"""Dumps and trainings, killed at random moments and started again by the same command."""

import itertools
import json
import time

import jax
import numpy as np
import pytest
from attacks import Silent
from flax import nnx
from processes import Process

from student_jax.training.checkpoint import load_student
from student_jax.training.integrity import list_steps
from triplets import write_image

pytestmark = pytest.mark.slow

LIMIT_S = 1800
"""For a start, which imports and compiles, on a busy machine."""


def state_of(folder):
    """Changes when a file below the folder does."""
    found = {}
    for path in folder.rglob("*"):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def kill_at_random(attack, tmp_path, words, lost):
    """Start a command, kill it, start it again, until it comes to its end; then anew.

    Args:
        words: from the folder of its results to its words.
        lost: from that folder, and whether the command came to its end, to the number of bytes
            that an unbroken run has and this one has not, or has changed.
    """
    folders = (tmp_path / f"run-{i}" for i in itertools.count())
    whole = next(folders)

    def start(folder):
        return Process(attack, words(folder), tmp_path / "log.txt")

    def wait_for_work(process, folder):
        """Until it changes a file."""
        before = state_of(folder)
        while process.wait(0.02) is None and state_of(folder) == before:
            pass

    begun = time.monotonic()
    with start(whole) as process:
        wait_for_work(process, whole)
        working = time.monotonic()
        assert process.wait() == 0, process.said()
    seconds, of_work = time.monotonic() - begun, time.monotonic() - working
    folder = next(folders)

    def check(ended):
        if number := lost(whole, folder, ended):
            attack.bytes_lost += number
            raise Silent(f"{number} bytes were lost in {folder}")

    def attempt(rng):
        nonlocal folder
        while True:
            with start(folder) as process:
                if rng.random() < 0.2:
                    status = process.wait(rng.uniform(0, seconds))
                else:
                    wait_for_work(process, folder)
                    status = process.wait(rng.uniform(0, of_work))
            if status is None:
                check(ended=False)
                return
            assert status == 0, process.said()
            check(ended=True)
            folder = next(folders)

    attack(50, attempt, LIMIT_S)
    with start(folder) as process:
        assert process.wait() == 0, process.said()
    check(ended=True)


def test_dumps_killed(attack, tmp_path):
    rng = np.random.default_rng(0)
    for kind, count in (("content", 6), ("style", 4)):
        (tmp_path / kind).mkdir()
        for i in range(count):
            small = rng.integers(0, 256, (8, 8, 3), np.uint8)
            write_image(tmp_path / kind / f"{i}.png", small.repeat(8, 0).repeat(8, 1))
    finished = {}

    def words(folder):
        sources = [f"--{kind}={tmp_path / kind}" for kind in ("content", "style")]
        return ["dump", *sources, f"--out={folder}", "--size=64", "--steps=6", "--tile=1"]

    def lost(whole, folder, ended):
        """Files under their own names are those of an unbroken run, and stay."""
        number = 0
        known = finished.setdefault(folder, set())
        for path in whole.rglob("*"):
            if not path.is_file():
                continue
            expected, here = path.read_bytes(), folder / path.relative_to(whole)
            if here.is_file():
                known.add(here)
                encoded = here.read_bytes()
                number += len(expected) if encoded != expected else 0
            elif ended or here in known:
                number += len(expected)
        if ended:
            more = {path.relative_to(folder) for path in folder.rglob("*")}
            assert more == {path.relative_to(whole) for path in whole.rglob("*")}
        return number

    kill_at_random(attack, tmp_path, words, lost)


def test_trainings_killed(attack, dump, tmp_path):
    flags = "--steps=16 --batch-size=4 --crop-size=32 --warmup-steps=2 --validation-fraction=0.2"
    flags += " --checkpoint-every=2 --validation-pairs=4 --log-every=1 --resume"
    tiny = "--content-widths 8 8 --style-widths 8 8 --hidden-dim 16 --num-heads 2 --mlp-dim 16"
    tiny += " --num-encoder-layers 1 --num-decoder-layers 1 --tail-dim 16 --style-code 4"
    latest = {}

    def words(folder):
        run = ["train", "mini", f"--data={dump}", f"--workdir={folder}"]
        return [*run, *flags.split(), *tiny.replace("--", "--model.").split()]

    def results(folder):
        """What a run leaves, without the figures that depend on the clock."""
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        for line in [*lines, (folder / "summary.json").read_text()]:
            figures = json.loads(line)
            figures.pop("images_per_s", None)
            yield json.dumps(figures).encode()
        for array in jax.tree.leaves(nnx.state(load_student(folder, "latest"))):
            yield np.asarray(array).tobytes()
        for path in sorted(folder.glob("samples/*")):
            yield path.read_bytes()

    def lost(whole, folder, ended):
        steps = list_steps(folder / "checkpoints") if (folder / "checkpoints").is_dir() else []
        newest = max(steps, default=0)
        if newest < latest.get(folder, 0):
            raise Silent(f"checkpoint {latest[folder]} is gone, the latest is {newest}")
        latest[folder] = newest
        if not ended:
            return 0
        pairs = itertools.zip_longest(results(whole), results(folder), fillvalue=b"")
        return sum(max(len(a), len(b)) for a, b in pairs if a != b)

    kill_at_random(attack, tmp_path, words, lost)
