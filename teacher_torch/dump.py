"""The teacher's triplets of many contents and styles, to disk."""

import importlib.metadata
import os
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.latent_diffusion import Components, load_components
from teacher_torch.memory import GIB, MemoryNeed, free_bytes
from teacher_torch.pairs import plan_pairs
from teacher_torch.pixels import to_model_range, to_uint8
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.teacher import StyleID, side_multiple
from teacher_torch.work import Work
from triplets import InputError, TripletWriter, load_images, open_source
from triplets.format import load_array

__all__ = ["DumpConfig", "best_device", "dump", "to_model_range", "to_uint8"]

NULL_TEXT = "null_text"
"""Name under which a dataset keeps the embedding of the empty text."""


@dataclass(frozen=True)
class DumpConfig:
    """Stylise contents with styles and write the triplets."""

    content: str
    """Folder of content pictures, or tfds:NAME:SPLIT."""
    style: str
    """Folder of style pictures, or tfds:NAME:SPLIT."""
    out: Path
    """Folder of the dataset; a dump that was interrupted continues."""
    teacher: str = "mini"
    """"mini", a diffusers folder, or a hub id like stable-diffusion-v1-5/stable-diffusion-v1-5."""
    preset: Literal["paper", "port"] = "paper"
    """Which of StyleID's official programs to follow; the four settings below override it."""
    steps: int | None = None
    """DDIM steps."""
    gamma: float | None = None
    """Query preservation, 0 (more style) to 1 (more content)."""
    temperature: float | None = None
    """Sharpness of the injected attention."""
    injection_layers: tuple[int, ...] | None = None
    """Decoder self-attentions that receive the style, of 3 to 11."""
    size: int | None = None
    """Side of the square pictures in pixels; by default the model's native size."""
    pairs: str = "all"
    """"all"; "random:K" for K of all pairs; "tiles:K" for K random tiles (see --tile), which cost
    as little as all pairs where scattered ones cost up to three times that; or a CSV file of ids
    with columns content and style."""
    seed: int = 0
    """Decides random pairs."""
    tile: int | None = None
    """Contents and styles that are sampled together, by default 16 of each on a GPU and 8 on a CPU:
    a larger tile costs less per pair (2/tile more than the least) and loses more if interrupted."""
    memory_budget: float | None = None
    """GiB that the networks and their work may take; by default what is free on the device."""
    device: str | None = None
    """"cuda", "mps" or "cpu"; by default the best that is there."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of the networks; by default float16 on a GPU and float32 elsewhere."""
    compile: bool = False
    """Compile the UNet (torch.compile): minutes at the start, faster calls afterwards."""
    rank: int | None = None
    """Number of this process, from 0, where several fill one folder; torchrun sets it by itself."""
    world_size: int | None = None
    """How many processes fill the folder; torchrun sets it by itself."""

    def __post_init__(self):
        if (self.rank is None) != (self.world_size is None):
            raise InputError("--rank and --world-size belong together: give both, or neither.")
        if self.rank is not None and not 0 <= self.rank < self.world_size:
            raise InputError(
                f"--rank {self.rank} --world-size {self.world_size}: ranks count from 0 and end "
                "below the world size."
            )
        for name, least in (("size", 1), ("tile", 1), ("seed", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"--{name} {value}: expected at least {least}.")
        if self.memory_budget is not None and not self.memory_budget > 0:
            raise InputError(f"--memory-budget {self.memory_budget}: expected more than 0.")
        if re.fullmatch(r"(random|tiles):(?!0*[1-9]\d*$).*", self.pairs):
            raise InputError(f'--pairs "{self.pairs}": expected a number from 1 after the colon.')
        self.styleid()  # refuses what the method cannot do

    def styleid(self) -> StyleIDConfig:
        """The preset with this command's overrides."""
        overrides = {
            "num_steps": self.steps,
            "gamma": self.gamma,
            "temperature": self.temperature,
            "injection_layers": self.injection_layers,
        }
        preset = StyleIDConfig.paper() if self.preset == "paper" else StyleIDConfig.port()
        try:
            return replace(preset, **{k: v for k, v in overrides.items() if v is not None})
        except ValueError as error:
            raise InputError(str(error)) from error

    def process(self) -> tuple[int, int]:
        """Rank and world size: as given, else torchrun's, else 0 of 1."""
        if self.rank is not None:
            return self.rank, self.world_size
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def best_device() -> str:
    """The fastest kind of device that torch can use here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def open_device(name: str | None) -> torch.device:
    """The device of that name, or the best one; of several GPUs the one of torchrun's local rank.

    Raises:
        InputError: there is no such device.
    """
    try:
        device = torch.device(name or best_device())
        if device.type == "cuda" and device.index is None:
            local_rank = int(os.environ.get("LOCAL_RANK", 0))
            device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'--device "{name}" cannot be used here; expected "cuda", "mps" or "cpu".'
        ) from error
    return device


def dump(config: DumpConfig) -> None:
    """Write the dataset, or what is left of it; see `DumpConfig`.

    Raises:
        InputError: a source, a teacher, a device or a folder that cannot be used.
        OSError: the disk is full and so on; finished shards are kept.
    """
    rank, world_size = config.process()
    styleid = config.styleid()
    device = open_device(config.device)
    on_cpu = device.type == "cpu"
    dtype = config.dtype or ("float32" if on_cpu else "float16")
    tile = config.tile or (8 if on_cpu else 16)
    if on_cpu and dtype == "bfloat16" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        print(
            "warning: this processor only imitates bfloat16, which took 19 times as long where it "
            "was measured; start again with --dtype float32 and another --out.",
            file=sys.stderr,
        )

    sources = [open_source(spec) for spec in (config.content, config.style)]
    components = load_components(
        config.teacher, device, getattr(torch, dtype), stored_null_text(config.out)
    )
    size = config.size or components.native_size
    multiple = side_multiple(components.unet, components.vae)
    if size % multiple:
        raise InputError(
            f"--size {size}: this teacher needs a multiple of {multiple}, such as "
            f"{-(-size // multiple) * multiple}."
        )
    (contents, skipped_contents), (styles, skipped_styles) = (
        load_images(source, size) for source in sources
    )
    skipped = skipped_contents + skipped_styles
    if rank == 0:
        for name, reason in skipped:
            print(f"skipped {name}: {reason}", file=sys.stderr)

    pairs = plan_pairs(config.pairs, contents, styles, config.seed, tile)
    need = memory_need(components, styleid, size, pairs, tile**2)
    budget = free_bytes(device) + need.weights
    if config.memory_budget is not None:
        budget = int(config.memory_budget * GIB)
    rows_per_call = need.rows_within(budget, device)
    if rows_per_call == 0 and config.memory_budget is not None:
        raise InputError(
            f"--memory-budget {config.memory_budget}: the networks, {tile} contents, {tile} styles "
            f"and one row a call need about {need.total(1) / GIB:.1f} GiB."
        )
    writer = TripletWriter(
        config.out,
        contents=contents,
        styles=styles,
        pairs=pairs,
        shard_size=tile**2,
        settings={
            "weights_sha256": components.weights_sha256(),
            "styleid": asdict(styleid),
            "dtype": dtype,
            "compile": config.compile,
            "pairs": config.pairs,
            "seed": config.seed,
            "tile": tile,
        },
        # The rounding of a network depends on its batch, so the first start decides for all.
        defaults={"rows_per_call": max(1, rows_per_call)},
        provenance={
            "teacher": config.teacher,
            "content": config.content,
            "style": config.style,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "versions": {
                name: importlib.metadata.version(name) for name in ("torch", "diffusers", "numpy")
            },
        },
        arrays={NULL_TEXT: components.null_text_embedding.float().cpu().numpy()},
        rank=rank,
        world_size=world_size,
    )
    if config.compile:
        components.unet.compile()
    teacher = StyleID(*components, styleid, rows_per_call=writer.settings["rows_per_call"])
    work = Work(writer, teacher, contents, styles)
    if rank == 0:
        print(work.describe(need, budget))
    work.run()

    missing = writer.unfinished_shards()
    count = len(pairs) - sum(len(writer.shard_pairs(shard)) for shard in missing)
    others = (
        f", {len(missing)} shards are still missing, which other ranks write" if missing else ""
    )
    print(
        f"{count} triplets of {len(contents)} contents and {len(styles)} styles are in {config.out}"
        f"{others}; {len(skipped)} pictures were skipped."
    )


def stored_null_text(root: Path) -> Float[Tensor, "1 n d"] | None:
    """The embedding of the empty text that a dataset was started with, None where there is none."""
    path = root / f"{NULL_TEXT}.npy"
    if not path.exists():
        return None
    return torch.from_numpy(np.array(load_array(path, (1, None, None), "<f4")))


def memory_need(
    components: Components,
    styleid: StyleIDConfig,
    size: int,
    pairs: Int[np.ndarray, "p 2"],
    shard_size: int,
) -> MemoryNeed:
    """What the largest grids of the plan need."""
    shards = [pairs[start : start + shard_size] for start in range(0, len(pairs), shard_size)]
    contents, styles = (max(len(np.unique(s[:, kind])) for s in shards) for kind in (0, 1))
    return MemoryNeed.estimate(
        components.unet,
        components.vae,
        size,
        layers=styleid.injection_layers,
        num_steps=styleid.num_steps,
        contents=contents,
        styles=styles,
        pairs=min(len(pairs), shard_size),
    )
