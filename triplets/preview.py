"""The command that shows what is in a triplet dataset: figures and a contact sheet."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int, UInt8
from PIL import Image
from tyro.conf import Positional

from triplets.cache import DEFAULT_GIB, Cache
from triplets.dataset import TripletDataset
from triplets.errors import InputError
from triplets.format import Triplet
from triplets.images import write_image
from triplets.sheet import contact_sheet

BLANK = 3.0
"""Standard deviation, in grey levels, below which a picture counts as blank: a failed teacher."""


@dataclass(frozen=True)
class PreviewConfig:
    """Print figures of a dataset and write a contact sheet of some of its triplets."""

    root: Positional[str | Path]
    """Folder of the dataset, or an address such as s3://bucket/folder; it may be unfinished."""
    out: Path | None = None
    """Contact sheet, PNG or JPEG; by default preview.png in the dataset's folder, or here if that
    is in a bucket."""
    triplets: int = 12
    """Triplets on the sheet, evenly spaced over the dataset."""
    cell: int = 192
    """Largest side of a picture on the sheet, in pixels."""
    sample: int = 256
    """Triplets, evenly spaced, from which the pixel figures are computed."""
    cache_dir: Path | None = None
    """Folder in which files of buckets are kept; by default ~/.cache/style-distil."""
    cache_gib: float = DEFAULT_GIB
    """GiB that such files may take there."""

    def __post_init__(self):
        for name in ("triplets", "cell", "sample"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: expected at least 1.")


def preview(config: PreviewConfig) -> None:
    """Print the figures and write the sheet; see `PreviewConfig`.

    Raises:
        DatasetError: no dataset, or a damaged one.
    """
    dataset = TripletDataset(config.root, Cache.of(config.cache_dir, config.cache_gib))
    folder = dataset.root if isinstance(dataset.root, Path) else Path()
    out = config.out or folder / "preview.png"
    print(describe(dataset, config.sample))
    write_image(out, triplet_sheet(dataset, config.triplets, config.cell))
    print(f"contact sheet: {out}")


def describe(dataset: TripletDataset, sample: int = 256) -> str:
    """Counts, and pixel figures of `sample` triplets, in a few lines."""
    manifest = dataset.manifest
    height, width = manifest["image_size"]
    lines = [
        f"{len(dataset)} of {manifest['num_pairs']} planned triplets, {height} x {width} px, of "
        f"{manifest['num_contents']} contents and {manifest['num_styles']} styles; "
        f"{dataset.storage.total_bytes() / 1e9:.2f} GB",
    ]
    for column, kind in enumerate(("content", "style")):
        pictures = (dataset.contents, dataset.styles)[column]
        used = np.bincount(dataset.pairs[:, column], minlength=len(pictures))
        lines.append(f"triplets per {kind}: {used.min()} to {used.max()}")

    rows = evenly_spaced(len(dataset), sample)
    figures = [_figures(dataset[row]) for row in rows]
    means, deviations, changes = (np.stack(column) for column in zip(*figures, strict=True))
    lines.append(f"pixels of {len(rows)} triplets, mean (standard deviation) of R, G, B:")
    for column, kind in enumerate(("content", "style", "stylised")):
        channels = zip(means[:, column].mean(0), deviations[:, column].mean(0), strict=True)
        lines.append(f"  {kind:9}" + "".join(f"{m:7.1f} ({d:4.1f})" for m, d in channels))
    to_style = np.linalg.norm(means - means[:, 1:2], axis=-1).mean(axis=0)
    lines += [
        f"distance of the mean colour to the style's: contents {to_style[0]:.1f}, stylised "
        f"pictures {to_style[2]:.1f}",
        f"change from content to stylised: {changes.mean():.1f} grey levels per pixel",
    ]
    blank = rows[(deviations[:, 2] < BLANK).all(axis=1)]
    if len(blank):
        lines.append(f"{len(blank)} stylised pictures are blank, such as triplet {blank[0]}'s")
    return "\n".join(lines)


def triplet_sheet(dataset: TripletDataset, count: int, cell: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Contact sheet of `count` evenly spaced triplets, two per row."""
    pictures = [
        [_reduced(picture, cell) for picture in dataset[row][:3]]
        for row in evenly_spaced(len(dataset), count)
    ]
    beside = min(2, len(pictures))
    rows = [list(chain(*pictures[i : i + beside])) for i in range(0, len(pictures), beside)]
    return contact_sheet(rows, ["content", "style", "stylised"] * beside)


def evenly_spaced(length: int, count: int) -> Int[np.ndarray, " n"]:
    """At most `count` evenly spaced indices of a sequence, starting with 0."""
    count = min(length, count)
    return np.arange(count) * length // count


def _figures(
    triplet: Triplet,
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3 3"], np.float64]:
    """Mean and standard deviation per channel of the three pictures; mean change of a pixel."""
    means = np.stack([picture.mean(axis=(0, 1)) for picture in triplet[:3]])
    deviations = np.stack([picture.std(axis=(0, 1)) for picture in triplet[:3]])
    return means, deviations, np.abs(triplet.stylised.astype(int) - triplet.content).mean()


def _reduced(picture: UInt8[np.ndarray, "h w 3"], cell: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    reduced = Image.fromarray(picture)
    reduced.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return np.array(reduced)
