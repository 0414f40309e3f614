"""Where a run's figures go: JSON lines, TensorBoard, pictures."""

import json
import time
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from triplets import write_image
from triplets.atomic import atomic_write


class MetricWriter:
    """Appends figures to metrics.jsonl and TensorBoard event files, and pictures to samples/.

    A resumed run drops what comes after its checkpoint first, since it will write it again.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._workdir = workdir
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        with atomic_write(path) as file:
            file.writelines(
                line  # a kill may have left a part of the last one
                for line in lines
                if line.endswith(b"\n") and json.loads(line)["step"] <= start_step
            )
        self._lines = path.open("a")
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        self._add_event(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self._lines.close()
        self._events.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Figures of one step by name."""
        print(json.dumps({"step": step, **values}), file=self._lines, flush=True)
        self._add_event(
            step,
            summary=Summary(
                value=[Summary.Value(tag=name, simple_value=v) for name, v in values.items()]
            ),
        )

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture of one step, as samples/NAME-STEP.png and in TensorBoard."""
        path = self._workdir / "samples" / f"{name}-{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        write_image(path, image)
        picture = Summary.Image(
            height=image.shape[0],
            width=image.shape[1],
            colorspace=3,
            encoded_image_string=path.read_bytes(),
        )
        self._add_event(step, summary=Summary(value=[Summary.Value(tag=name, image=picture)]))

    def _add_event(self, step: int, **content) -> None:
        self._events.add_event(Event(wall_time=time.time(), step=step, **content))
