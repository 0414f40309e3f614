"""Dumps of the teachers that train per style, killed at many places, and by two ranks at once.

Run as a program, `python test_killed_trainings.py FOLDER MODEL PICTURES` writes each dump in a
folder of its own below FOLDER and prints how many processes were killed. It is a program of its own
because it forks, which a process with threads must not.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted_dumps import dump_and_die, fork, status

from teacher_torch.dump import DumpConfig, dump
from teacher_torch.inst import InSTConfig, training
from teacher_torch.style_diffusion import StyleDiffusionConfig
from triplets import TripletDataset, write_image

METHODS = {
    "inst": InSTConfig(
        learned="direct", training_steps=4, learning_rate=0.1, together=1, num_steps=4, adain=True
    ),
    "style_diffusion": StyleDiffusionConfig(
        guide="vgg16",
        forward_steps=2,
        removal_steps=2,
        reverse_steps=2,
        rounds=1,
        style_passes=1,
        content_passes=1,
        learning_rate=1e-3,
    ),
}
STRIDE = 11
"""Steps of progress and file operations between the places where a dump is killed."""


def main(folder: Path, model: str, pictures: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    training.SAVE_SECONDS = 0.0  # the state is saved after each step
    killed = 0
    for teacher, method in METHODS.items():

        def config(name: str, teacher=teacher, method=method, **changes) -> DumpConfig:
            sources = (str(pictures / "content"), str(pictures / "style"))
            out = folder / f"{teacher}-{name}"
            return DumpConfig(*sources, out, teacher, method, model, **changes)

        assert status(fork(dump, config("whole"))) == 0
        event, code = 0, -signal.SIGKILL
        while code == -signal.SIGKILL:
            event += STRIDE
            code = status(fork(dump_and_die, config(f"killed-{event}"), event))
            assert status(fork(dump, config(f"killed-{event}"))) == 0
            killed += code == -signal.SIGKILL
        assert code == 0

        # Both ranks need both styles; one is killed on the way.
        changes = {"tile": (1, 2)}
        assert status(fork(dump, config("alone", **changes))) == 0
        ranks = [config("ranks", rank=rank, world_size=2, **changes) for rank in (0, 1)]
        processes = [fork(dump, ranks[0]), fork(dump_and_die, ranks[1], 2 * STRIDE)]
        assert [status(process) for process in processes] == [0, -signal.SIGKILL]
        killed += 1
        assert status(fork(dump, ranks[1])) == 0
    print(killed)


@pytest.fixture(scope="module")
def killed(model_folder, tmp_path_factory):
    """The folder that the program has filled."""
    rng = np.random.default_rng(0)
    pictures = tmp_path_factory.mktemp("pictures")
    for kind in ("content", "style"):
        (pictures / kind).mkdir()
        for i in range(2):
            small = rng.integers(0, 256, (8, 8, 3), np.uint8)
            write_image(pictures / kind / f"{i}.png", small.repeat(8, 0).repeat(8, 1))
    folder = tmp_path_factory.mktemp("dumps")
    program = subprocess.run(
        [sys.executable, __file__, folder, model_folder, pictures], capture_output=True, text=True
    )
    assert program.returncode == 0, program.stderr[-3000:]
    assert int(program.stdout.splitlines()[-1]) > 8
    return folder


def stylised(root):
    dataset = TripletDataset(root)
    assert dataset.verify() == [] and len(dataset) == 4
    return np.stack([triplet.stylised for triplet in dataset])


@pytest.mark.slow  # some thirty dumps
@pytest.mark.parametrize("teacher", METHODS)
def test_killed_dumps_end_in_the_same_pictures(killed, teacher):
    whole = stylised(killed / f"{teacher}-whole")
    for root in killed.glob(f"{teacher}-killed-*"):
        assert (stylised(root) == whole).all()
        # What InST has learned is kept, what StyleDiffusion has is dropped; nothing is half made.
        kept = sorted(path.name for path in (root / "prepared").glob("*"))
        assert kept == (["style-00000", "style-00001"] if teacher == "inst" else [])


@pytest.mark.slow
@pytest.mark.parametrize("teacher", METHODS)
def test_ranks_train_no_style_twice(killed, teacher):
    # Of other shards than the whole dump's, and so of other batches.
    assert (stylised(killed / f"{teacher}-ranks") == stylised(killed / f"{teacher}-alone")).all()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
