"""Where a run's figures go: JSON lines, TensorBoard, pictures, Weights & Biases."""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from triplets import InputError, encode_image, write_image
from triplets.atomic import atomic_write


@runtime_checkable
class MetricWriter(Protocol):
    """Takes the figures and pictures of a run."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Figures of one step by name."""
        ...

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture of one step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Folder:
    """metrics.jsonl, one line for each call of `scalars`, and samples/NAME-STEP.png.

    A resumed run drops what comes after its checkpoint first, since it will write it again.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._workdir = workdir
        path = workdir / "metrics.jsonl"
        records = read_records(path) if path.exists() else []
        with atomic_write(path) as file:
            file.writelines(line for line, record in records if record["step"] <= start_step)
        self._lines = path.open("a")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append a line."""
        print(json.dumps({"step": step, **values}), file=self._lines, flush=True)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Write a PNG file."""
        path = self._workdir / "samples" / f"{name}-{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        write_image(path, image)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_records(path: Path) -> list[tuple[bytes, dict]]:
    """The lines of metrics.jsonl, and what they hold; a damaged one is left out with a warning.

    The last one may be a part, which a kill left, and is left out in silence.
    """
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            if line.endswith(b"\n"):
                print(f"warning: line {number} of {path} is damaged: left out", file=sys.stderr)
        else:
            if line.endswith(b"\n"):
                records.append((line, record))
    return records


def last_terms(workdir: Path, step: int) -> dict[str, float]:
    """The figures of the training at a step; none if they were not written at that step."""
    for _, record in read_records(workdir / "metrics.jsonl"):
        if record["step"] == step and "learning_rate" in record:
            others = ("step", "learning_rate", "images_per_s", "mfu")
            return {name: value for name, value in record.items() if name not in others}
    return {}


class TensorBoard:
    """Event files in WORKDIR/tensorboard."""

    def __init__(self, workdir: Path, start_step: int):
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        # TensorBoard then drops what an interrupted run wrote past its checkpoint.
        self._add(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add a curve's point for each."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=points))

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Add a picture."""
        picture = Summary.Image(
            height=image.shape[0],
            width=image.shape[1],
            colorspace=3,
            encoded_image_string=encode_image(image, ".png"),
        )
        self._add(step, summary=Summary(value=[Summary.Value(tag=name, image=picture)]))

    def close(self) -> None:
        """Write what is left."""
        self._events.close()

    def _add(self, step: int, **content) -> None:
        self._events.add_event(Event(wall_time=time.time(), step=step, **content))


class WeightsAndBiases:
    """A run in a project of Weights & Biases, the same one when the training is resumed.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(self, workdir: Path, project: str, config: dict):
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                f"--wandb {project} needs Weights & Biases: pip install wandb."
            ) from error
        self._image = wandb.Image
        self._run = wandb.init(
            project=project,
            dir=str(workdir),
            config=config,
            id=hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16],
            resume="allow",
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log them."""
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Log it."""
        self._run.log({name: self._image(image)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MetricWriters:
    """Several writers as one; a context manager that closes them."""

    def __init__(self, writers: Sequence[MetricWriter]):
        self._writers = writers

    def __enter__(self) -> "MetricWriters":
        return self

    def __exit__(self, *_) -> None:
        for writer in self._writers:
            writer.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Figures of one step by name."""
        for writer in self._writers:
            writer.scalars(step, values)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture of one step."""
        for writer in self._writers:
            writer.picture(step, name, image)
