"""The input pipeline: triplets on disk to batches of augmented uint8 crops, by Grain."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import grain
import numpy as np
from jaxtyping import Int, UInt8

from triplets import InputError, TripletDataset


class Batch(TypedDict):
    """Pictures of one batch; content and stylised show the same part of their picture."""

    content: UInt8[np.ndarray, "b h w 3"]
    style: UInt8[np.ndarray, "b h w 3"]
    stylised: UInt8[np.ndarray, "b h w 3"]


@dataclass(frozen=True)
class Split:
    """Which triplets of a dataset are trained on and which are held out, by their index."""

    train: Int[np.ndarray, " p"]
    held_out: Int[np.ndarray, " q"]


def split_triplets(dataset: TripletDataset, held_out_fraction: float) -> Split:
    """Hold out a share of the contents and of the styles, at least one each, by a hash of the ids.

    A held-out triplet shares neither its content nor its style with any training triplet; triplets
    of a held-out picture with a training one are used for neither. A share of 0 holds nothing out.

    Raises:
        InputError: too few pictures to leave anything to train on or to hold out.
    """
    if held_out_fraction == 0:
        return Split(np.arange(len(dataset)), np.arange(0))
    content_held, style_held = (
        np.isin(rows, _held_out_rows(ids, held_out_fraction))
        for rows, ids in zip(dataset.pairs.T, (dataset.content_ids, dataset.style_ids), strict=True)
    )
    split = Split(
        train=np.flatnonzero(~content_held & ~style_held),
        held_out=np.flatnonzero(content_held & style_held),
    )
    if not len(split.train) or not len(split.held_out):
        raise InputError(
            f"{dataset.root}: {len(dataset)} triplets of {len(dataset.content_ids)} contents and "
            f"{len(dataset.style_ids)} styles are too few to hold out {held_out_fraction:.0%} of "
            "the pictures; add some, or give another dataset with --validation."
        )
    return split


def _held_out_rows(ids: Sequence[str], fraction: float) -> list[int]:
    count = max(1, round(fraction * len(ids)))
    return sorted(range(len(ids)), key=lambda i: hashlib.sha1(ids[i].encode()).hexdigest())[:count]


class TripletSource(grain.sources.RandomAccessDataSource):
    """Some triplets of a dataset, as dictionaries of uint8 pictures."""

    def __init__(self, dataset: TripletDataset, indices: Int[np.ndarray, " p"]):
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        triplet = self._dataset[self._indices[index]]
        return {
            "content": triplet.content,
            "style": triplet.style,
            "stylised": triplet.stylised,
        }


@dataclass(frozen=True)
class RandomCropAndFlip(grain.transforms.RandomMap):
    """The same crop and flip for content and stylised, another one for the style."""

    size: int
    """Side of the crops in pixels."""

    def random_map(
        self, element: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Cut, and mirror half of the time."""
        pair = (element["content"], element["stylised"])
        content, stylised = self._cut(np.stack(pair), rng)
        (style,) = self._cut(element["style"][None], rng)
        return {"content": content, "style": style, "stylised": stylised}

    def _cut(
        self, images: UInt8[np.ndarray, "b h w 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "b size size 3"]:
        top = rng.integers(images.shape[1] - self.size + 1)
        left = rng.integers(images.shape[2] - self.size + 1)
        crops = images[:, top : top + self.size, left : left + self.size]
        return crops[:, :, ::-1] if rng.random() < 0.5 else crops


def training_batches(
    source: TripletSource,
    *,
    batch_size: int,
    crop_size: int,
    seed: int,
    num_workers: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless, checkpointable iterator over shuffled `Batch`es of this process.

    Each epoch is shuffled anew; the order and the augmentation depend on the seed alone, not on
    the workers, so that a restored iterator continues exactly.
    """
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()[process_index::process_count]
        .repeat()
        .random_map(RandomCropAndFlip(crop_size))
        .batch(batch_size, drop_remainder=True)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    )
    if num_workers:
        from absl import flags

        # Grain's workers read absl flags, which exist only after absl.app.run otherwise.
        flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(dataset)
