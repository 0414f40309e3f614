"""The teacher's triplets of many contents and styles, to disk."""

import csv
import importlib.metadata
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from teacher_torch.components import load_components
from teacher_torch.config import StyleIDConfig
from teacher_torch.styleid import Inversion, StyleID
from triplets import (
    ImageSet,
    InputError,
    Skipped,
    TripletWriter,
    load_images,
    open_source,
)

TILE = 8
"""Contents and styles of one joint sampling: 8 x 8 pairs cost 1/8 + 1/8 more than without reuse."""


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
    """"all"; "random:K" for K of all pairs; "tiles:K" for K random groups of 8 contents x 8 styles,
    1.25 UNet rows a pair where scattered pairs take up to 3; or a CSV file of ids with columns
    content and style."""
    seed: int = 0
    """Decides random pairs."""
    device: str | None = None
    """"cuda", "mps" or "cpu"; by default the best that is there."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of the networks; by default float16 on a GPU and float32 elsewhere."""

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


def best_device() -> str:
    """The fastest kind of device that torch can use here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def plan_pairs(
    spec: str, contents: ImageSet, styles: ImageSet, seed: int
) -> Int[np.ndarray, "p 2"]:
    """Pairs (content row, style row), ordered so that consecutive ones share pictures.

    Raises:
        InputError: an unknown spec, or a CSV file that does not name pictures of both sets.
    """
    n, m = len(contents), len(styles)
    if spec == "all":
        pairs = np.indices((n, m)).reshape(2, -1).T
    elif spec.startswith("random:"):
        count = spec.removeprefix("random:")
        if not count.isdecimal() or not 1 <= int(count) <= n * m:
            raise InputError(
                f'--pairs "{spec}": expected random:K with K from 1 to {n * m}, the number of '
                f"combinations of {n} contents and {m} styles."
            )
        chosen = np.random.default_rng(seed).choice(n * m, int(count), replace=False)
        pairs = np.stack(np.divmod(chosen, m), axis=1)
    elif spec.startswith("tiles:"):
        return _random_tiles(spec, n, m, np.random.default_rng(seed))
    else:
        pairs = _read_pairs(Path(spec), contents, styles)
    tile = pairs // TILE
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1], tile[:, 1], tile[:, 0]))]


def _random_tiles(spec: str, n: int, m: int, rng: np.random.Generator) -> Int[np.ndarray, "p 2"]:
    count = spec.removeprefix("tiles:")
    if not count.isdecimal() or not 1 <= int(count) * TILE**2 <= n * m:
        raise InputError(
            f'--pairs "{spec}": expected tiles:K with K from 1 to {n * m // TILE**2}, since {n} '
            f"contents and {m} styles have {n * m} combinations and a tile has {TILE**2}."
        )
    rows = (
        # Every picture is drawn once before any is drawn again.
        np.concatenate([rng.permutation(size) for _ in range(-(-int(count) * TILE // size))])
        for size in (n, m)
    )
    pairs: dict[tuple[int, int], None] = {}
    groups = (row[: int(count) * TILE].reshape(-1, TILE) for row in rows)
    for contents, styles in zip(*groups, strict=True):
        pairs |= dict.fromkeys((c, s) for s in styles.tolist() for c in contents.tolist())
    return np.array(list(pairs))


def _read_pairs(path: Path, contents: ImageSet, styles: ImageSet) -> Int[np.ndarray, "p 2"]:
    if not path.is_file():
        raise InputError(f'--pairs "{path}": expected "all", "random:K", "tiles:K" or a CSV file.')
    rows = [{name: row for row, name in enumerate(images.ids)} for images in (contents, styles)]
    pairs = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"content", "style"} <= set(reader.fieldnames or ()):
            raise InputError(f"{path}: expected a header with the columns content and style.")
        for line in reader:
            ids = (line["content"], line["style"])
            for kind, name, known in zip(("content", "style"), ids, rows, strict=True):
                if name not in known:
                    raise InputError(
                        f'{path}, line {reader.line_num}: no usable {kind} "{name}"; ids are paths '
                        "relative to the folder."
                    )
            pairs.append([known[name] for name, known in zip(ids, rows, strict=True)])
    if not pairs:
        raise InputError(f"{path} names no pairs.")
    unique = np.unique(np.array(pairs), axis=0)
    if len(unique) < len(pairs):
        raise InputError(f"{path} names {len(pairs) - len(unique)} pairs twice.")
    return unique


def to_model_range(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """uint8 pixels -> float32 in [-1, 1], channels first."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "b 3 h w"]) -> UInt8[np.ndarray, "b h w 3"]:
    """[-1, 1] -> uint8 pixels, clipped and rounded."""
    scaled = (images / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class InversionCache:
    """Inversions of the pictures of a set, each made once, in fixed groups of `TILE`.

    Fixed groups, because a network's rounding depends on its batch: what was asked for before, as
    in an interrupted run, must not change a result.
    """

    def __init__(self, teacher: StyleID, images: ImageSet, max_groups: int | None):
        """`max_groups` bounds how many groups stay in memory, None keeps all."""
        self._teacher, self._images = teacher, images
        self._group = lru_cache(max_groups)(self._invert_group)

    def _invert_group(self, group: int) -> Inversion:
        images = self._images.images[group * TILE : (group + 1) * TILE]
        return self._teacher.invert(to_model_range(images))

    def __getitem__(self, rows: Int[np.ndarray, " b"]) -> Inversion:
        """The inversions of some rows, in their order."""
        return Inversion.cat([self._group(row // TILE)[row % TILE] for row in rows.tolist()])


def dump(config: DumpConfig) -> None:
    """Write the dataset, or what is left of it; see `DumpConfig`.

    Raises:
        InputError: a source, a teacher or a folder that cannot be used.
        OSError: the disk is full and so on; finished shards are kept.
    """
    styleid = config.styleid()
    device = config.device or best_device()
    dtype = config.dtype or ("float32" if device == "cpu" else "float16")
    components = load_components(config.teacher, device, getattr(torch, dtype))
    size = config.size or components.native_size
    contents, skipped_contents = load_images(open_source(config.content), size)
    styles, skipped_styles = load_images(open_source(config.style), size)
    _report(skipped_contents + skipped_styles)
    writer = TripletWriter(
        config.out,
        contents=contents,
        styles=styles,
        pairs=plan_pairs(config.pairs, contents, styles, config.seed),
        shard_size=TILE * TILE,
        settings={
            "weights_sha256": components.weights_sha256(),
            "styleid": asdict(styleid),
            "dtype": dtype,
            "pairs": config.pairs,
            "seed": config.seed,
        },
        provenance={
            "teacher": config.teacher,
            "content": config.content,
            "style": config.style,
            "device": device,
            "versions": {
                name: importlib.metadata.version(name) for name in ("torch", "diffusers", "numpy")
            },
        },
    )
    teacher = StyleID(*components, styleid)
    inversions = (
        InversionCache(teacher, contents, max_groups=2),  # the plan goes through them in order
        InversionCache(teacher, styles, max_groups=None),
    )
    missing = writer.missing_shards()
    done = len(writer.pairs) - sum(len(writer.shard_pairs(shard)) for shard in missing)
    start = time.monotonic()
    with tqdm(total=len(writer.pairs), initial=done, unit="pair", desc="stylising") as bar:
        for shard in missing:
            pairs = writer.shard_pairs(shard)
            rows, local = zip(
                *(np.unique(pairs[:, i], return_inverse=True) for i in (0, 1)), strict=True
            )
            content, style = (cache[r] for cache, r in zip(inversions, rows, strict=True))
            local_pairs = torch.from_numpy(np.stack(local, axis=1))
            stylised = teacher.stylise_pairs(content, style, local_pairs)
            writer.write_shard(shard, to_uint8(stylised))
            bar.update(len(pairs))
            bar.set_postfix_str(f"{60 * (bar.n - done) / (time.monotonic() - start):.1f} pairs/min")
    print(
        f"{len(writer.pairs)} triplets of {len(contents)} contents and {len(styles)} styles are in "
        f"{config.out}; {len(skipped_contents) + len(skipped_styles)} pictures were skipped."
    )


def _report(skipped: list[Skipped]) -> None:
    for name, reason in skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
