"""The command that copies a dataset into the other version of the format, or to another place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm
from tyro.conf import Positional

from triplets.cache import DEFAULT_GIB, Cache
from triplets.dataset import TripletDataset
from triplets.format import DatasetError, array_sha256, shard_name
from triplets.sources import ImageSet
from triplets.writer import TripletWriter


@dataclass(frozen=True)
class ConvertConfig:
    """Copy a finished dataset: raw or compressed, to a folder or to a bucket, and back.

    The pixels and their checksums stay the same. A copy that was interrupted continues.
    """

    root: Positional[str | Path]
    """Folder of the dataset, or an address such as s3://bucket/folder."""
    out: str | Path
    """Folder or address of the copy."""
    format: Literal[1, 2] | None = None
    """Version of the copy: 1, plain arrays, or 2, lossless WebP. By default 1 in a folder and 2 in
    a bucket."""
    cache_dir: Path | None = None
    """Folder in which files of buckets are kept; by default ~/.cache/style-distil."""
    cache_gib: float = DEFAULT_GIB
    """GiB that such files may take there."""


def convert(config: ConvertConfig) -> None:
    """Write the copy, or what is left of it.

    Raises:
        DatasetError: no dataset, an unfinished or a damaged one, or another one at the other end.
        OSError: the disk is full and so on; finished shards are kept.
    """
    dataset = TripletDataset(config.root, Cache.of(config.cache_dir, config.cache_gib))
    manifest = dataset.manifest
    if len(dataset) != manifest["num_pairs"]:
        raise DatasetError(
            f"{str(config.root)!r} has {len(dataset)} of {manifest['num_pairs']} planned triplets; "
            "finish it first with the command that wrote it."
        )
    shard_size = manifest.get("shard_size", 64)
    writer = TripletWriter(
        config.out,
        contents=_image_set(dataset, "contents"),
        styles=_image_set(dataset, "styles"),
        pairs=dataset.pairs,
        settings=manifest.get("settings"),
        provenance=manifest.get("provenance"),
        arrays={
            name: np.array(dataset.storage.load_array(f"{name}.npy", sha256=recorded))
            for name, recorded in manifest.get("arrays", {}).items()
        },
        shard_size=shard_size,
        version=config.format,
    )
    for shard in tqdm(writer.missing_shards(), unit="shard"):
        rows = range(shard * shard_size, min((shard + 1) * shard_size, len(dataset)))
        stylised, remarks = _shard(dataset, shard, rows)
        writer.write_shard(shard, stylised, remarks)
    print(
        f"{len(dataset)} triplets are in {config.out}, in version {writer.version} of the format: "
        f"{writer.storage.total_bytes() / 1e9:.2f} GB instead of "
        f"{dataset.storage.total_bytes() / 1e9:.2f} GB"
    )


def _image_set(dataset: TripletDataset, name: str) -> ImageSet:
    described = dataset.storage.load_json(f"{name}.json")
    images = np.array(getattr(dataset, name))
    if array_sha256(images) != described.get("sha256"):
        raise _damaged(dataset, name)
    height, width = dataset.manifest["image_size"]
    sizes = described.get("original_sizes") or [[height, width]] * len(images)
    ids = dataset.content_ids if name == "contents" else dataset.style_ids
    return ImageSet(images, ids, [tuple(size) for size in sizes])


def _shard(dataset: TripletDataset, shard: int, rows: range) -> tuple[np.ndarray, dict | None]:
    """The stylised pictures of some triplets, and the remarks on their shard."""
    stylised = dataset.stylised(rows)
    if "shard_size" not in dataset.manifest:
        return stylised, None  # another tool's shards may be of any size
    description = dataset.storage.load_json(f"{shard_name(shard)}/shard.json")
    if array_sha256(stylised) != (description.get("sha256") or {}).get("stylised"):
        raise _damaged(dataset, shard_name(shard))
    return stylised, description.get("remarks")


def _damaged(dataset: TripletDataset, name: str) -> DatasetError:
    return DatasetError(
        f"{dataset.storage.path(name)} does not match its sha256: style-distil triplets verify "
        f"{dataset.root} --repair sets it aside."
    )
