"""A teacher that the package does not know, registered here: everything works on it unchanged.

Run as a program, `python test_new_teacher.py FOLDER PICTURES` writes dumps of it, whole ones and
interrupted ones, below FOLDER; see interrupted_dumps.py, whose ways it shares.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from interrupted_dumps import dump_and_die, fork, status
from PIL import Image

from teacher_torch import Teacher, register_teacher, work
from teacher_torch.devices import MemoryNeed
from teacher_torch.dump import DumpConfig, dump, dump_config_type_for
from teacher_torch.teacher import Prepared
from triplets import DatasetError, TripletDataset

TILE = 2


@dataclass(frozen=True)
class ColourConfig:
    """The content with the style's mean colour."""

    strength: float = 1.0
    """How far the colour moves, 0 to 1."""


class MeanColour(Teacher):
    size_px, tile = 16, (TILE, TILE)

    def __init__(self, config, runtime):
        self.config, self.model = config, runtime.model

    def settings(self):
        return {"colour": asdict(self.config)}

    def prepare(self, role, images, keys):
        return Prepared({"images": images, "colour": images.mean((2, 3))})

    def stylise(self, contents, styles, pairs, keys):
        for content, style in pairs.tolist():
            change = styles.tensors["colour"][style] - contents.tensors["colour"][content]
            self.after_call(1)
            yield contents.tensors["images"][content] + self.config.strength * change[:, None, None]

    def work(self, contents, styles, pairs):
        return pairs

    def memory(self, size_px, contents, styles, pairs):
        return MemoryNeed(weights=0, step=0, row=1, picture=1)


class LearnedColour(MeanColour):
    """Learns the colour of a style by gradient descent; --model is a file that notes each one."""

    tile, persistent, steps = (256, 1), ("style",), 4

    def group(self, role):
        return 1 if role == "style" else 16

    def prepare(self, role, images, keys):
        if role == "content":
            return super().prepare(role, images, keys)
        self.note(f"begun {keys[0].style}")
        colour = torch.randn(1, 3, generator=keys[0].generator("start")).requires_grad_()
        for _ in range(self.steps):
            loss = (images - colour[:, :, None, None]).square().mean((0, 2, 3)).sum()
            (gradient,) = torch.autograd.grad(loss, colour)
            colour = (colour - 0.4 * gradient).detach().requires_grad_()
            self.after_call(2)
            time.sleep(0.01)  # long enough for two ranks to meet
        self.note(f"ended {keys[0].style}")
        return Prepared({"colour": colour.detach()})

    def preparation_work(self, role, pictures):
        return 2 * self.steps * pictures if role == "style" else 0

    def note(self, line):
        with open(self.model, "a") as file:
            print(line, file=file)


register_teacher("mean_colour", ColourConfig, MeanColour)
register_teacher("learned_colour", ColourConfig, LearnedColour)


def main(folder: Path, pictures: Path) -> None:
    """Dumps of a learning teacher, interrupted in every way; prints how many were killed."""
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    killed = 0

    def config(name: str, teacher: str = "learned_colour", **changes) -> DumpConfig:
        sources = (str(pictures / "content"), str(pictures / "style"))
        notes = str(folder / f"{name}.txt")
        return DumpConfig(*sources, folder / name, teacher, model=notes, **changes)

    # Killed and continued: at every fifth step and file operation, and of the one that learns at
    # every single one but the first, at which pictures are stored. Of few pairs, because there are
    # many places to be killed at.
    few = folder / "few.csv"
    few.write_text("content,style\ncontent0.png,style0.png\ncontent1.png,style2.png\n")
    for teacher, first, stride, changes in (
        ("mean_colour", 1, 5, {}),
        ("learned_colour", 36, 1, {"pairs": str(few), "tile": (2, 1)}),
    ):
        assert status(fork(dump, config(f"{teacher}-whole", teacher, **changes))) == 0
        event, code = first - stride, -signal.SIGKILL
        while code == -signal.SIGKILL:
            event += stride
            name = f"{teacher}-{event}"
            code = status(fork(dump_and_die, config(name, teacher, **changes), event))
            assert status(fork(dump, config(name, teacher, **changes))) == 0
            killed += code == -signal.SIGKILL
        assert code == 0

    # Every tile needs every style: whole, and by two ranks at once.
    changes = {"tile": (1, 3)}
    assert status(fork(dump, config("shared-whole", **changes))) == 0
    ranks = [config("shared-ranks", rank=rank, world_size=2, **changes) for rank in (0, 1)]
    processes = [fork(dump, rank) for rank in ranks]
    assert [status(process) for process in processes] == [0, 0]

    # One rank is killed while it learns a style and another waits for it.
    ranks = [config("shared-killed", rank=rank, world_size=2, **changes) for rank in (0, 1)]
    learning = fork(dump_and_die_learning, ranks[0])
    deadline = time.monotonic() + 120
    while not Path(ranks[0].model).exists():
        assert time.monotonic() < deadline, "no style was begun"
        time.sleep(0.01)
    waiting = fork(dump, ranks[1])
    assert [status(learning), status(waiting)] == [-signal.SIGKILL, 0]
    assert status(fork(dump, ranks[0])) == 0
    print(killed + 1)


def dump_and_die_learning(config: DumpConfig) -> None:
    """Dump, with a kill -9 a while after the first style was begun."""

    def die(*_):
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)

    work.tqdm = type("Bar", (work.tqdm,), {"update": die})  # the bar of the work alone
    dump(config)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 3 contents and 3 styles."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind in ("content", "style"):
        (root / kind).mkdir()
        for i in range(3):
            # Dark and even enough that no colour is clipped.
            base = rng.integers(60, 180, (1, 1, 3))
            noise = rng.integers(-20, 20, (16, 16, 3))
            Image.fromarray((base + noise).astype(np.uint8)).save(root / kind / f"{kind}{i}.png")
    return root


@pytest.fixture
def config(pictures, tmp_path):
    sources = (str(pictures / "content"), str(pictures / "style"))
    return DumpConfig(*sources, tmp_path / "out", teacher="mean_colour")


@pytest.fixture(scope="module")
def interrupted(pictures, tmp_path_factory):
    """The folder that the program has filled."""
    folder = tmp_path_factory.mktemp("dumps")
    command = [sys.executable, __file__, folder, pictures]
    program = subprocess.run(command, capture_output=True, text=True)
    assert program.returncode == 0, program.stderr
    assert int(program.stdout.splitlines()[-1]) > 50  # processes killed
    return folder


def parse(arguments):
    return tyro.cli(dump_config_type_for(arguments), args=arguments)


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def without_notes(contents):
    """The notes of each dump lie elsewhere, and provenance says where."""
    manifest = json.loads(contents[Path("manifest.json")])
    manifest["provenance"].pop("model")
    return contents | {Path("manifest.json"): manifest}


def notes(folder, name):
    return Counter((folder / f"{name}.txt").read_text().splitlines())


def test_triplets_of_a_new_teacher(config):
    dump(config)
    dataset = TripletDataset(config.out)
    assert dataset.verify() == [] and len(dataset) == 9
    for content, style, stylised, *_ in dataset:
        change = style.mean((0, 1)) - content.mean((0, 1))
        assert np.abs(stylised - (content + change)).max() < 0.51
    settings = dataset.manifest["settings"]
    assert settings["teacher"] == "mean_colour" and settings["colour"] == {"strength": 1.0}
    assert settings["tile"] == TILE and dataset.manifest["shard_size"] == TILE**2


def test_a_tile_is_no_larger_than_what_there_is(config, tmp_path):
    dump(replace(config, teacher="learned_colour", model=str(tmp_path / "notes.txt")))
    manifest = TripletDataset(config.out).manifest
    assert manifest["settings"]["tile"] == [3, 1]  # not (256, 1): a style per shard
    assert manifest["num_pairs"] == 9 and manifest["shard_size"] == 3


def test_flags_of_a_new_teacher(config):
    arguments = ["--content", config.content, "--style", config.style, "--out", str(config.out)]
    parsed = parse([*arguments, "--teacher", "mean_colour", "--strength", "0.5"])
    assert parsed.method == ColourConfig(0.5)
    dump(parsed)
    with pytest.raises(DatasetError, match=r"settings\.colour\.strength is 0\.5 there, now 1\.0"):
        dump(config)
    with pytest.raises(DatasetError, match=r"settings\.teacher is 'mean_colour' there, now 'le"):
        dump(parse([*arguments, "--teacher", "learned_colour", "--strength", "0.5"]))
    with pytest.raises(SystemExit):  # it has one preset, so no flag, and none of StyleID's flags
        parse([*arguments, "--teacher", "mean_colour", "--gamma", "0.5"])


@pytest.mark.parametrize("teacher", ["mean_colour", "learned_colour"])
def test_interrupted_dumps_end_in_the_same_bytes(interrupted, teacher):
    whole = without_notes(files(interrupted / f"{teacher}-whole"))
    assert TripletDataset(interrupted / f"{teacher}-whole").verify() == []
    continued = [path for path in interrupted.glob(f"{teacher}-*") if path.suffix != ".txt"]
    assert len(continued) > 5
    for path in continued:
        assert without_notes(files(path)) == whole, path.name


def test_what_is_learned_is_published_and_used_again(interrupted):
    root = interrupted / "learned_colour-whole"
    names = {f"style-{i:05d}": f"style{style}.png" for i, style in enumerate((0, 2))}
    assert {path.name for path in (root / "prepared").iterdir()} == names.keys()
    for name, style in names.items():
        folder = root / "prepared" / name
        assert json.loads((folder / "prepared.json").read_text())["ids"] == [style]
        assert Prepared.load(folder / "tensors.safetensors").tensors["colour"].shape == (1, 3)
    assert set(notes(interrupted, root.name).values()) == {1}
    # A kill, at whatever place, costs at most the style that was being learned.
    again = [notes(interrupted, path.stem) for path in interrupted.glob("learned_colour-*.txt")]
    assert all(n["begun style0.png"] + n["begun style2.png"] <= 3 for n in again)
    assert any(n["begun style2.png"] == 2 and n["ended style2.png"] == 1 for n in again)
    # What is learned but not yet published is made anew; that is at a few of these places.
    assert sum(n["ended style2.png"] == 2 for n in again) < len(again) / 3


def test_ranks_share_what_is_learned(interrupted):
    whole = without_notes(files(interrupted / "shared-whole"))
    for name in ("shared-ranks", "shared-killed"):
        assert without_notes(files(interrupted / name)) == whole
    for name in ("shared-whole", "shared-ranks"):
        assert notes(interrupted, name) == {
            f"{word} style{i}.png": 1 for word in ("begun", "ended") for i in range(3)
        }
    # One was killed while it learned a style, which another then learned once.
    killed = notes(interrupted, "shared-killed")
    assert sum(killed[f"begun style{i}.png"] for i in range(3)) == 4
    assert all(killed[f"ended style{i}.png"] == 1 for i in range(3))


def test_damaged_file_of_what_was_learned(config, tmp_path):
    learned = replace(config, teacher="learned_colour", model=str(tmp_path / "notes.txt"))
    dump(learned)
    folder = config.out / "prepared" / "style-00001"
    damaged = bytearray((folder / "tensors.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "tensors.safetensors").write_bytes(damaged)
    shutil.rmtree(config.out / "pairs-00001")
    with pytest.raises(DatasetError, match=r"style-00001 is damaged .* remove it"):
        dump(learned)
    shutil.rmtree(folder)
    dump(learned)
    assert TripletDataset(config.out).verify() == []
    assert notes(tmp_path, "notes")["begun style1.png"] == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
