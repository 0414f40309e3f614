"""Where a run's figures go: JSON lines, TensorBoard, pictures."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from triplets import write_image
from triplets.atomic import atomic_write


class MetricWriter:
    """Appends figures to metrics.jsonl and TensorBoard event files, and pictures to samples/.

    A resumed run drops the lines after its checkpoint first, since it will write them again.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._workdir = workdir
        path = workdir / "metrics.jsonl"
        kept = [
            line
            for line in (path.read_bytes().splitlines(keepends=True) if path.exists() else [])
            if line.endswith(b"\n") and json.loads(line)["step"] <= start_step
        ]
        with atomic_write(path) as file:
            file.writelines(kept)
        self._lines = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self._lines.close()
        self._events.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Figures of one step by name."""
        print(json.dumps({"step": step, **values}), file=self._lines, flush=True)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture of one step, as samples/NAME-STEP.png and in TensorBoard."""
        folder = self._workdir / "samples"
        folder.mkdir(exist_ok=True)
        write_image(folder / f"{name}-{step:07d}.png", image)
        self._events.add_image(name, image, step, dataformats="HWC")
