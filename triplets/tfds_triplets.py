"""Triplets from a TensorFlow Datasets split, read without TensorFlow."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int

from triplets.errors import one_line
from triplets.format import Triplet
from triplets.sources import TFDS_SPEC, SourceError

_PICTURES = ("content", "style", "stylised")
_IDS = ("content_id", "style_id")


class TFDSTriplets:
    """The triplets of a TFDS split, as a random-access sequence like `TripletDataset`.

    Its features are the pictures content, style and stylised (images or uint8 tensors [h w 3]) and
    content_id and style_id (text or numbers). It must be stored as array_record. Attribute
    `fingerprint` names the dataset, its version and the split.

    Args:
        name: a dataset in TFDS's data folder, or the folder of a prepared dataset.
        split: such as "train" or "train[:1000]".

    Raises:
        SourceError: tensorflow_datasets is not installed, unknown name or split, other features,
            or a file format that needs TensorFlow.
    """

    def __init__(self, name: str, split: str):
        spec = self._spec = f"tfds:{name}:{split}"
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise SourceError(
                f'reading {spec} needs TensorFlow Datasets: pip install "style-distil[tfds]".'
            ) from error
        try:
            builder = (
                tfds.builder_from_directory(name) if Path(name).is_dir() else tfds.builder(name)
            )
            missing = {*_PICTURES, *_IDS} - builder.info.features.keys()
            if missing:
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
            self.fingerprint = f"{builder.info.full_name}:{split}"
            skip = {picture: tfds.decode.SkipDecoding() for picture in _PICTURES}
            self._records = builder.as_data_source(split)
            self._undecoded = builder.as_data_source(split, decoders=skip)
        except Exception as error:
            raise SourceError(f"cannot read triplets from {spec}: {one_line(error)}.") from error

    @classmethod
    def open(cls, spec: str) -> "TFDSTriplets":
        """Open tfds:NAME:SPLIT; raises `SourceError`."""
        match = TFDS_SPEC.fullmatch(spec)
        if match is None:
            raise SourceError(f"expected tfds:NAME:SPLIT such as tfds:my_dump:train, got {spec!r}.")
        return cls(match["name"], match["split"])

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"TFDSTriplets({self._spec!r}, {len(self)} triplets)"

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        """Read one triplet."""
        record = self._records[index]
        return Triplet(*(record[name] for name in _PICTURES), *(_text(record[i]) for i in _IDS))

    @property
    def content_ids(self) -> Sequence[str]:
        """Id of each content picture."""
        return self._index[0]

    @property
    def style_ids(self) -> Sequence[str]:
        """Id of each style picture."""
        return self._index[1]

    @property
    def pairs(self) -> Int[np.ndarray, "p 2"]:
        """Row in `content_ids` and row in `style_ids` of each triplet."""
        return self._index[2]

    @functools.cached_property
    def _index(self) -> tuple[list[str], list[str], np.ndarray]:
        """Ids and pairs, by one pass over all records that decodes no pictures."""
        names = [[_text(record[i]) for i in _IDS] for record in self._undecoded]
        (contents, content_rows), (styles, style_rows) = (
            np.unique(column, return_inverse=True) for column in zip(*names, strict=True)
        )
        return contents.tolist(), styles.tolist(), np.stack([content_rows, style_rows], axis=1)


def _text(value: bytes | str | int | np.integer) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
