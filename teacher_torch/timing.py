"""What a teacher's pictures cost on this machine: UNet rows, seconds, memory.

    python -m teacher_torch.timing FLAGS

prepares the first content and the first style, stylises the one with the other, and prints one line
of JSON. FLAGS are those of "style-distil dump".
`style-distil study teachers` calls this.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import TypedDict

import torch
import tyro

from teacher_torch.devices import device_name, open_device
from teacher_torch.dump import DumpConfig, choose_dtype, dump_config_type_for, open_teacher
from teacher_torch.pixels import to_model_range
from teacher_torch.teacher import ROLES, Key, Prepared, Role, Teacher
from triplets import ImageSet, InputError, NativeCrops, load_images, open_source
from triplets.memory import PeakGrowth


class Piece(TypedDict):
    """What one picture's preparation, or one pair, took."""

    rows: int
    """UNet rows; a row with a backward pass counts twice."""
    seconds: float
    """On a CPU processor time, which other programs disturb least."""
    peak_bytes: int | None
    """Peak memory with the weights; None if the system does not report it."""


class Times(TypedDict):
    """What `measure_times` measures."""

    size: int
    """Side of the pictures in pixels."""
    device: str
    dtype: str
    content: Piece
    style: Piece
    pair: Piece


def measure_times(config: DumpConfig) -> Times:
    """What a content, a style and a pair take, each alone.

    Raises:
        InputError: a source, a teacher or a device that cannot be used.
    """
    teacher, pictures, dtype = _open(config)
    pieces: dict[Role, Piece] = {}
    prepared: list[Prepared] = []
    for role, images in zip(ROLES, pictures, strict=True):
        key = Key(config.seed, **{role: images.ids[0]})
        one = to_model_range(images.images[:1])
        made, pieces[role] = _timed(
            teacher, lambda role=role, one=one, key=key: teacher.prepare(role, one, [key])
        )
        prepared.append(made.to("cpu"))
    pair = torch.zeros(1, 2, dtype=torch.long)
    key = Key(config.seed, pictures[0].ids[0], pictures[1].ids[0])
    _, of_pair = _timed(
        teacher, lambda: [picture.cpu() for picture in teacher.stylise(*prepared, pair, [key])]
    )
    return {
        "size": pictures[0].images.shape[1],
        "device": device_name(teacher.device),
        "dtype": dtype,
        "content": pieces["content"],
        "style": pieces["style"],
        "pair": of_pair,
    }


def _open(config: DumpConfig) -> tuple[Teacher, tuple[ImageSet, ImageSet], str]:
    device = open_device(config.device)
    dtype = choose_dtype(config, device)
    sources = [open_source(spec) for spec in (config.content, config.style)]
    teacher, size = open_teacher(config, device, dtype)
    crops = None
    if config.style_crop is not None:
        crops = NativeCrops(config.style_crop, config.crops_per_style, config.seed)
    contents, styles = (
        load_images(source, size, limit=1, crops=of)
        for source, of in zip(sources, (None, crops), strict=True)
    )
    teacher.check_ids(contents[0].ids, styles[0].ids)
    return teacher, (contents[0], styles[0]), dtype


def _timed(teacher: Teacher, work: Callable) -> tuple[object, Piece]:
    rows: list[int] = []
    teacher.after_call = rows.append
    on_cpu = teacher.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    if teacher.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(teacher.device)
    start = clock()
    with PeakGrowth() as grown:
        made = work()
        if teacher.device.type == "cuda":
            torch.cuda.synchronize(teacher.device)
        seconds = clock() - start
    peak = None
    if teacher.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(teacher.device)
    elif on_cpu and grown.bytes is not None:
        peak = teacher.memory(teacher.size_px, 1, 1, 1).weights + grown.bytes
    return made, {"rows": sum(rows), "seconds": seconds, "peak_bytes": peak}


def main(arguments: list[str]) -> None:
    """Print what was measured."""
    print(json.dumps(measure_times(tyro.cli(dump_config_type_for(arguments), args=arguments))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
