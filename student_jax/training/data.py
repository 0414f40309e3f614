"""The input pipeline: triplets to batches of augmented uint8 crops, by Grain."""

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsIndex, TypedDict, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from triplets import Cache, InputError, Triplet, TripletDataset
from triplets.tfds_triplets import TFDSTriplets


@runtime_checkable
class Triplets(Protocol):
    """A dataset to train from: triplets by index, and who is in them without reading a picture."""

    content_ids: Sequence[str]
    style_ids: Sequence[str]
    fingerprint: str
    """Another one for other triplets."""

    @property
    def pairs(self) -> Int[np.ndarray, "p 2"]:
        """Index in `content_ids` and index in `style_ids` of each triplet."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Triplet: ...


def open_triplets(name: str, cache: Cache | None = None) -> Triplets:
    """A dataset by its name on a command line: a folder, an address such as s3://bucket/folder, or
    tfds:NAME:SPLIT.

    Args:
        name: the name.
        cache: where files of buckets are kept on this machine; by default `Cache.of()`.

    Raises:
        InputError: no triplets there.
    """
    return TFDSTriplets.open(name) if name.startswith("tfds:") else TripletDataset(name, cache)


class Batch(TypedDict):
    """Pictures of one batch; content and stylised show the same part of their picture."""

    content: UInt8[np.ndarray, "b h w 3"]
    style: UInt8[np.ndarray, "b h w 3"]
    stylised: UInt8[np.ndarray, "b h w 3"]
    record: Shaped[np.ndarray, " b"]
    """Where each row comes from, as "DATASET[INDEX]"."""


@dataclass(frozen=True)
class Split:
    """Which triplets of a dataset are trained on and which are for validation, by their index."""

    train: Int[np.ndarray, " p"]
    validation: Int[np.ndarray, " q"]


def split_triplets(dataset: Triplets, validation_fraction: float) -> Split:
    """Keep a share of the contents and of the styles for validation, at least one each, by a hash
    of the ids.

    A validation triplet shares neither its content nor its style with any training triplet;
    triplets of a validation picture with a training one are used for neither. A share of 0 keeps
    nothing.

    Raises:
        InputError: too few pictures to leave anything to train on or to validate on.
    """
    if validation_fraction == 0:
        return Split(np.arange(len(dataset)), np.arange(0))
    of_content, of_style = (
        np.isin(rows, _validation_rows(ids, validation_fraction))
        for rows, ids in zip(dataset.pairs.T, (dataset.content_ids, dataset.style_ids), strict=True)
    )
    split = Split(
        train=np.flatnonzero(~of_content & ~of_style),
        validation=np.flatnonzero(of_content & of_style),
    )
    if not len(split.train) or not len(split.validation):
        raise InputError(
            f"the {len(dataset.content_ids)} contents and {len(dataset.style_ids)} styles of "
            f"{dataset!r} are too few to keep {validation_fraction:.0%} of them for validation; "
            "add some, or give another dataset with --validation."
        )
    return split


def _validation_rows(ids: Sequence[str], fraction: float) -> list[int]:
    count = max(1, round(fraction * len(ids)))
    return sorted(range(len(ids)), key=lambda i: hashlib.sha1(ids[i].encode()).hexdigest())[:count]


class TripletSource(grain.sources.RandomAccessDataSource):
    """Some triplets of a dataset, as dictionaries of pictures with the record they come from."""

    def __init__(self, name: str, dataset: Triplets, indices: Int[np.ndarray, " p"]):
        self.name = name
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray | str]:
        record = int(self._indices[operator.index(index)])
        triplet = self._dataset[record]
        return {
            "content": triplet.content,
            "style": triplet.style,
            "stylised": triplet.stylised,
            "record": f"{self.name}[{record}]",
        }


def load_sources(
    names: Sequence[str],
    validation: str | None,
    validation_fraction: float,
    cache: Cache | None = None,
) -> tuple[list[TripletSource], grain.MapDataset]:
    """What a run trains on, dataset by dataset, and the triplets that it validates on.

    Args:
        names: datasets to train on.
        validation: dataset to validate on, whole; without one, a share of each of the others is
            kept for it.
        validation_fraction: that share, as in `split_triplets`.
        cache: where files of buckets are kept on this machine.

    Raises:
        InputError: a dataset that cannot be read, or with too few pictures to split.
    """
    fraction = 0.0 if validation else validation_fraction
    train, validated = [], []
    for name in names:
        dataset = open_triplets(name, cache)
        split = split_triplets(dataset, fraction)
        train.append(TripletSource(name, dataset, split.train))
        validated.append(TripletSource(name, dataset, split.validation))
    if validation:
        dataset = open_triplets(validation, cache)
        validated = [TripletSource(validation, dataset, np.arange(len(dataset)))]
    return train, grain.MapDataset.concatenate(list(map(grain.MapDataset.source, validated)))


@dataclass(frozen=True)
class Reduce(grain.transforms.Map):
    """Reduce the pictures of a triplet until their shorter side is `size`, by averaging areas."""

    size: int
    """In pixels; smaller pictures stay as they are."""

    def map(self, element: dict[str, np.ndarray | str]) -> dict[str, np.ndarray | str]:
        """Reduce content, style and stylised."""
        return element | {
            name: self._reduced(element[name]) for name in ("content", "style", "stylised")
        }

    def _reduced(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        h, w = image.shape[:2]
        scale = self.size / min(h, w)
        if scale >= 1:
            return image
        size = (round(w * scale), round(h * scale))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


@dataclass(frozen=True)
class RandomCropAndFlip(grain.transforms.RandomMap):
    """The same crop and flip for content and stylised, another one for the style.

    Raises:
        InputError: a picture smaller than the crop.
    """

    size: int
    """Side of the crops in pixels."""

    def random_map(
        self, element: dict[str, np.ndarray | str], rng: np.random.Generator
    ) -> dict[str, np.ndarray | str]:
        """Cut, and mirror half of the time."""
        for name in ("content", "style"):
            h, w = element[name].shape[:2]
            if min(h, w) < self.size:
                raise InputError(
                    f"the {name} of {element['record']} is {w} x {h} px, smaller than "
                    f"--crop-size {self.size}."
                )
        content, stylised = self._cut((element["content"], element["stylised"]), rng)
        (style,) = self._cut((element["style"],), rng)
        return element | {"content": content, "style": style, "stylised": stylised}

    def _cut(
        self, images: tuple[UInt8[np.ndarray, "h w 3"], ...], rng: np.random.Generator
    ) -> list[UInt8[np.ndarray, "size size 3"]]:
        h, w = images[0].shape[:2]
        top, left = rng.integers(h - self.size + 1), rng.integers(w - self.size + 1)
        step = -1 if rng.random() < 0.5 else 1
        crops = (image[top : top + self.size, left : left + self.size] for image in images)
        return [crop[:, ::step] for crop in crops]


def check_crops(sources: Sequence[TripletSource], crop_size: int) -> None:
    """Cut the first triplet of each source, to find too small pictures before a run begins.

    Raises:
        InputError: as `RandomCropAndFlip`.
    """
    crop = RandomCropAndFlip(crop_size)
    for source in sources:
        crop.random_map(source[0], np.random.default_rng(0))


def training_batches(
    sources: Sequence[TripletSource],
    weights: Sequence[float] = (),
    *,
    batch_size: int,
    crop_size: int,
    seed: int,
    num_workers: int,
    image_size: int | None = None,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator over this process's part of shuffled `Batch`es, from number `start` on.

    Each source is shuffled anew in each of its epochs, and drawn from by its weight (by default
    alike). Batch number i depends on the seed alone, not on the workers and processes: the parts
    of all processes, one after the other, are always the same batch. So a run continues exactly by
    starting where it stopped.

    Args:
        batch_size: rows over all processes, a multiple of their number.
        image_size: see `TrainConfig`.
    """
    parts = [
        grain.MapDataset.source(source).seed(seed + i).shuffle().repeat()
        for i, source in enumerate(sources)
    ]
    mixed = grain.MapDataset.mix(parts, weights or None).seed(seed)
    if image_size is not None:
        mixed = mixed.map(Reduce(image_size))
    dataset = (
        mixed.random_map(RandomCropAndFlip(crop_size))
        .batch(batch_size // process_count, drop_remainder=True)[
            start * process_count + process_index :: process_count
        ]
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    )
    if num_workers:
        from absl import flags

        # Grain's workers read absl flags, which exist only after absl.app.run otherwise.
        flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(dataset)
