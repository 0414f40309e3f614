"""A teacher's triplets of many contents and styles, to disk."""

import argparse
import importlib
import importlib.metadata
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Int

from teacher_torch.devices import GIB, MemoryNeed, device_name, free_bytes, open_device
from teacher_torch.engine import EngineConfig, share_shards
from teacher_torch.estimate import measure_rates
from teacher_torch.pairs import plan_pairs
from teacher_torch.teacher import TEACHERS, Runtime, Teacher
from teacher_torch.work import Work
from triplets import InputError, NativeCrops, TripletWriter, load_images, open_source
from triplets.images import MAX_SIDE
from triplets.sources import MIN_SIDE
from triplets.storage import Bucket, Folder, load_manifest, open_storage

DEFAULT_TEACHER = "styleid"


@dataclass(frozen=True)
class DumpConfig:
    """Stylise contents with styles and write the triplets."""

    content: str
    """Folder of content pictures, or tfds:NAME:SPLIT."""
    style: str
    """Folder of style pictures, or tfds:NAME:SPLIT."""
    out: str | Path
    """Folder of the dataset, or an address such as s3://bucket/folder (docs/scale.md); a dump that
    was interrupted continues."""
    teacher: str = DEFAULT_TEACHER
    """The method that stylises."""
    method: Any = None
    """The method's own settings; by default those of its first preset."""
    model: str = "mini"
    """Weights: "mini", a diffusers folder, or a hub id like
    stable-diffusion-v1-5/stable-diffusion-v1-5."""
    size: int | None = None
    """Side of the square pictures in pixels; by default the model's native size."""
    style_crop: int | None = None
    """Side in pixels of squares that are cut from the styles at their own resolution, where strokes
    keep their size; the model's native size is a good choice. By default the central square of a
    style is reduced to --size as a whole."""
    crops_per_style: int = 1
    """How many such squares each style gives; each counts as a style."""
    pairs: str = "all"
    """"all"; "random:K" for K of all pairs; "tiles:K" for K random tiles (see --tile), which cost
    as little as all pairs while scattered ones cost up to three times as much; or a CSV file of ids
    with columns content and style."""
    seed: int = 0
    """Decides random pairs, and the teacher's random numbers."""
    tile: int | tuple[int, int] | None = None
    """Contents and styles that are stylised together: one number for a square, or two. By default
    what suits the teacher and the device; StyleID takes 16 on a GPU and 8 on a CPU. A larger tile
    costs less per pair (2/tile more than the least) and loses more if interrupted."""
    memory_budget: float | None = None
    """GiB that the networks and their work may take; by default what is free on the device."""
    format: Literal[1, 2] | None = None
    """Version of the dataset's format: 1, plain arrays that any program maps into memory, or 2,
    lossless WebP, about half as large. By default 1 in a folder and 2 in a bucket."""
    device: str | None = None
    """"cuda", "mps" or "cpu"; by default the best that is there."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of the networks; by default float16 on a GPU and float32 elsewhere."""
    compile: bool = False
    """Compile the networks (torch.compile): minutes at the start, faster calls afterwards."""
    rank: int | None = None
    """Number of this process, from 0, if several fill one folder; torchrun sets it by itself."""
    world_size: int | None = None
    """How many processes fill the folder; torchrun sets it by itself."""
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = field(default_factory=EngineConfig)
    """Who runs the processes."""

    def __post_init__(self):
        if self.teacher not in TEACHERS:
            names = " or ".join(f'"{name}"' for name in TEACHERS)
            raise InputError(
                f'--teacher "{self.teacher}": expected the name of a method, {names}; weights are '
                "given with --model now."
            )
        chosen = TEACHERS[self.teacher]
        if self.method is None:
            object.__setattr__(self, "method", next(iter(chosen.presets.values())))
        if not isinstance(self.method, chosen.config_class):
            raise InputError(
                f'teacher "{self.teacher}" takes a {chosen.config_class.__name__}, not a '
                f"{type(self.method).__name__}."
            )
        if (self.rank is None) != (self.world_size is None):
            raise InputError("--rank and --world-size belong together: give both, or neither.")
        if self.rank is not None and not 0 <= self.rank < self.world_size:
            raise InputError(
                f"--rank {self.rank} --world-size {self.world_size}: ranks count from 0 and end "
                "below the world size."
            )
        if self.rank is not None and self.engine.executor is not None:
            raise InputError("--executor gives out the ranks itself: leave --rank out.")
        sides = self.tile if isinstance(self.tile, tuple) else (self.tile,)
        for name, value, least in (
            ("size", self.size, 1),
            *(("tile", side, 1) for side in sides),
            ("seed", self.seed, 0),
            ("style-crop", self.style_crop, MIN_SIDE),
            ("crops-per-style", self.crops_per_style, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"--{name} {value}: expected at least {least}.")
        if self.crops_per_style > 1 and self.style_crop is None:
            raise InputError("--crops-per-style needs the side of the crops: give --style-crop.")
        if self.size is not None and self.size > MAX_SIDE:
            raise InputError(f"--size {self.size}: expected at most {MAX_SIDE}.")
        if self.memory_budget is not None and not 0 < self.memory_budget < math.inf:
            raise InputError(
                f"--memory-budget {self.memory_budget}: expected a number of GiB above 0."
            )
        if re.fullmatch(r"(random|tiles):(?!0{0,9}[1-9]\d{0,17}$).*", self.pairs):
            raise InputError(
                f'--pairs "{self.pairs[:40]}": expected a number from 1 after the colon.'
            )

    def process(self) -> tuple[int, int]:
        """Rank and world size: as given, else torchrun's, else 0 of 1."""
        if self.rank is not None:
            return self.rank, self.world_size
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def dump_config_type(teacher: str = DEFAULT_TEACHER, preset: str | None = None) -> type[DumpConfig]:
    """`DumpConfig` as tyro shall parse it: with the flags of one teacher, the preset's defaults.

    A name that is not known gives the flags of the default teacher, or of the first preset: parsing
    then refuses the name itself.
    """
    method = TEACHERS.get(teacher, TEACHERS[DEFAULT_TEACHER])
    first = next(iter(method.presets))
    defaults = method.presets.get(preset or first, method.presets[first])
    described = f"The method that stylises: {', '.join(TEACHERS)}. It decides the flags below."
    fields = [
        ("teacher", Annotated[str, tyro.conf.arg(help=described)], DEFAULT_TEACHER),
        ("method", tyro.conf.OmitArgPrefixes[method.config_class], defaults),
    ]
    if len(method.presets) > 1:
        named = "Settings of the method by name; its flags below override them."
        choice = Literal[tuple(method.presets)]  # pyrefly: ignore[invalid-literal]
        fields.append(("preset", Annotated[choice, tyro.conf.arg(help=named)], first))
    return make_dataclass(
        "DumpConfig",
        [(name, kind, field(default=default)) for name, kind, default in fields],
        bases=(DumpConfig,),
        namespace={"__doc__": DumpConfig.__doc__},
        frozen=True,
    )


def dump_config_type_for(arguments: Sequence[str]) -> type[DumpConfig]:
    """`dump_config_type` of the --teacher and --preset that stand among a command's arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Whatever is wrong with them is told by the parser that comes after this one.
    parser.add_argument("--teacher", nargs="?")
    parser.add_argument("--preset", nargs="?")
    given, _ = parser.parse_known_args(arguments)
    return dump_config_type(given.teacher or DEFAULT_TEACHER, given.preset)


def dump(config: DumpConfig) -> None:
    """Write the dataset, or what is left of it; see `DumpConfig`.

    Raises:
        InputError: a source, a teacher, a device or a folder that cannot be used.
        OSError: the disk is full and so on; finished shards are kept.
    """
    if config.engine.executor is not None:
        executors = _import_executors(config.engine.executor)
        return executors.dump_by_executor(config)
    rank, world_size = config.process()
    opened = OpenedDump(config, verbose=rank == 0)
    work = opened.work(rank, world_size)
    if rank == 0:
        rates = measure_rates(opened.teacher, opened.size) if work.shards else {}
        print(work.describe(opened.need, opened.budget, rates))
    work.run()
    print(opened.summary(work.writer))


class OpenedDump:
    """What every process of a dump loads before it works on its shards: the teacher, the pictures
    and the plan.

    Args:
        config: what to dump.
        verbose: whether to name the pictures that are skipped.

    Raises:
        InputError: a source, a teacher, a device or a folder that cannot be used.
    """

    def __init__(self, config: DumpConfig, verbose: bool = True):
        # Device
        self.config = config
        self.device = device = open_device(config.device)
        self.dtype = dtype = choose_dtype(config, device)
        if dtype == "bfloat16" and imitates_bfloat16(device):
            print(
                "warning: this processor only imitates bfloat16, which took 19 times as long where "
                "it was measured; start again with --dtype float32 and another --out.",
                file=sys.stderr,
            )

        # Teacher; before it is loaded, whether there is a place for what it makes
        self._storage = open_storage(config.out)
        self._storage.check_writable()
        sources = [open_source(spec) for spec in (config.content, config.style)]
        self.teacher, self.size = open_teacher(config, device, dtype)
        teacher, size = self.teacher, self.size

        # Pictures
        crops = None
        if config.style_crop is not None:
            crops = NativeCrops(config.style_crop, config.crops_per_style, config.seed)
        self.contents, skipped_contents = load_images(sources[0], size)
        self.styles, skipped_styles = load_images(sources[1], size, crops=crops)
        self.skipped = skipped_contents + skipped_styles
        if verbose:
            for name, reason in self.skipped:
                print(f"skipped {name}: {reason}", file=sys.stderr)
        teacher.check_ids(self.contents.ids, self.styles.ids)

        # Plan
        self.tile = choose_tile(config.tile, teacher, len(self.contents), len(self.styles))
        self.shard_size = self.tile[0] * self.tile[1]
        self.pairs = plan_pairs(config.pairs, self.contents, self.styles, config.seed, self.tile)
        self.need = memory_need(teacher, size, self.pairs, self.shard_size)
        self.budget = free_bytes(device) + self.need.weights
        if config.memory_budget is not None:
            self.budget = int(config.memory_budget * GIB)
        self._rows_per_call = self.need.rows_within(self.budget, device)
        if self._rows_per_call == 0 and config.memory_budget is not None:
            raise InputError(
                f"--memory-budget {config.memory_budget}: the networks, {self.tile[0]} contents, "
                f"{self.tile[1]} styles and one row per call need about "
                f"{self.need.total(1) / GIB:.2g} GiB."
            )

    def work(self, rank: int, world_size: int, at_styles: bool = False) -> Work:
        """The work of one process on a new dataset, or on the one that is continued.

        Args:
            rank: number of the process, from 0.
            world_size: how many there are.
            at_styles: whether the shards of a style stay with one process if preparing it is a
                training; in a bucket, where processes cannot wait for each other, they always do.

        Raises:
            InputError: the dataset was started with other settings and so on.
            OSError: the disk is full and so on.
        """
        config, teacher = self.config, self.teacher
        settings = {
            "teacher": config.teacher,
            **teacher.settings(),
            "dtype": self.dtype,
            "compile": config.compile,
            "pairs": config.pairs,
            "seed": config.seed,
            "tile": self.tile[0] if self.tile[0] == self.tile[1] else list(self.tile),
        }
        provenance = {
            "model": config.model,
            "content": config.content,
            "style": config.style,
            "device": device_name(self.device),
            "versions": {
                name: importlib.metadata.version(name) for name in ("torch", "diffusers", "numpy")
            },
        }
        if config.style_crop is not None:
            provenance["style_crop"] = config.style_crop
        if names_no_teacher(self._storage) and config.teacher == "styleid":
            del settings["teacher"]
            provenance["teacher"] = provenance.pop("model")
        writer = TripletWriter(
            config.out,
            contents=self.contents,
            styles=self.styles,
            pairs=self.pairs,
            shard_size=self.shard_size,
            settings=settings,
            # The rounding of a network depends on its batch, so the first start decides for all.
            defaults={"rows_per_call": max(1, self._rows_per_call)},
            provenance=provenance,
            arrays=teacher.arrays(),
            rank=rank,
            world_size=world_size,
            ranks=self.shares(world_size) if at_styles or not self._storage.is_local else None,
            version=config.format,
        )
        teacher.rows_per_call = writer.settings["rows_per_call"]
        return Work(writer, teacher, self.contents, self.styles, config.seed)

    def shares(self, world_size: int) -> list[int]:
        """Which process makes each shard, if those of a style stay together."""
        size, teacher = self.shard_size, self.teacher
        styles = [self.pairs[i : i + size, 1] for i in range(0, len(self.pairs), size)]
        group = teacher.group("style") if "style" in teacher.persistent else None
        return share_shards(styles, world_size, group)

    def summary(self, writer: TripletWriter) -> str:
        """What is in the dataset now, in a sentence."""
        missing = writer.unfinished_shards()
        count = len(self.pairs) - sum(len(writer.shard_pairs(shard)) for shard in missing)
        others = f", {len(missing)} shards of other ranks are still missing" if missing else ""
        return (
            f"{count} triplets of {len(self.contents)} contents and {len(self.styles)} styles are "
            f"in {self.config.out}{others}; {len(self.skipped)} pictures were skipped."
        )


def _import_executors(name: str) -> ModuleType:
    """The module that knows the engine, which is an extra.

    Raises:
        InputError: it is not installed, or what it needs for this executor is not.
    """
    try:
        if name == "ray":
            importlib.import_module("ray")
        return importlib.import_module("teacher_torch.executors")
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in ("datatrove", "loguru", "ray"):
            raise
        extra = "ray" if missing == "ray" else "scale"
        raise InputError(
            f'--executor {name} needs {missing}: pip install "style-distil[{extra}]".'
        ) from error


def choose_dtype(config: DumpConfig, device: torch.device) -> str:
    """The type of the networks' numbers: as given, else what suits the device."""
    return config.dtype or ("float32" if device.type == "cpu" else "float16")


def open_teacher(config: DumpConfig, device: torch.device, dtype: str) -> tuple[Teacher, int]:
    """The teacher, and the side in pixels of the pictures that it is to make.

    Raises:
        InputError: it cannot be loaded, or not make pictures of that size.
    """
    teacher = TEACHERS[config.teacher].open(
        config.method,
        Runtime(config.model, device, getattr(torch, dtype), config.compile, config.out),
    )
    size = config.size or teacher.size_px
    if size % teacher.side_multiple:
        raise InputError(
            f"--size {size}: this teacher needs a multiple of {teacher.side_multiple}, such as "
            f"{-(-size // teacher.side_multiple) * teacher.side_multiple}."
        )
    return teacher, size


def imitates_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 only in other numbers, as processors with AVX2 do."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def choose_tile(
    given: int | tuple[int, int] | None, teacher: Teacher, contents: int, styles: int
) -> tuple[int, int]:
    """Contents and styles of a tile: as given, else the teacher's."""
    if isinstance(given, int):
        return given, given
    if given is not None or teacher.tile[0] == teacher.tile[1]:
        return given or teacher.tile
    # A tile is a shard. One of 256 contents and a style would span several styles if there are
    # fewer contents, and all of them would have to be prepared, and held, for the first shard.
    return min(teacher.tile[0], contents), min(teacher.tile[1], styles)


def memory_need(
    teacher: Teacher, size_px: int, pairs: Int[np.ndarray, "p 2"], shard_size: int
) -> MemoryNeed:
    """What the largest shards of the plan need."""
    shards = [pairs[start : start + shard_size] for start in range(0, len(pairs), shard_size)]
    contents, styles = (max(len(np.unique(s[:, kind])) for s in shards) for kind in (0, 1))
    return teacher.memory(size_px, contents, styles, min(len(pairs), shard_size))


def names_no_teacher(storage: Folder | Bucket) -> bool:
    """Whether a dataset was started when StyleID was the only teacher, so that its settings name
    none and its provenance calls the model the teacher."""
    if not storage.holds("manifest.json"):
        return False
    settings = load_manifest(storage).get("settings")
    return isinstance(settings, Mapping) and "styleid" in settings and "teacher" not in settings
