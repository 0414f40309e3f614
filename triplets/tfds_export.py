"""The command that writes a triplet dataset in the format of TensorFlow Datasets.

TensorFlow is needed neither to write it nor to read it as random-access records.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from triplets.dataset import TripletDataset
from triplets.errors import InputError

NAME = "triplets"
VERSION = "1.0.0"


@dataclass(frozen=True)
class ExportConfig:
    """Copy a dataset into the format of TensorFlow Datasets, as OUT/triplets/1.0.0."""

    root: Positional[str | Path]
    """Folder of the dataset, or an address such as s3://bucket/folder."""
    out: Path
    """A `data_dir` of TensorFlow Datasets."""
    file_format: Literal["array_record", "parquet"] = "array_record"
    """array_record is faster with tfds.data_source; parquet serves tfds.load (TensorFlow), too."""


def export_tfds(config: ExportConfig) -> None:
    """Write the copy, which appears under its name only when complete.

    Raises:
        InputError: no tensorflow_datasets, a damaged dataset, or another copy there already.
    """
    dataset = TripletDataset(config.root)
    try:
        builder = _builder(dataset, config.out)
    except ImportError as error:
        raise InputError(
            'export-tfds needs TensorFlow Datasets: pip install "style-distil[tfds]".'
        ) from error
    if Path(builder.data_dir).exists():
        raise InputError(f"{builder.data_dir} exists; remove it, or choose another --out.")
    builder.download_and_prepare(file_format=config.file_format)
    print(
        f'{len(dataset)} triplets are in {builder.data_dir}; read them with tfds.data_source("'
        f'{NAME}", split="train", data_dir="{config.out}")'
    )


def _builder(dataset: TripletDataset, data_dir: Path):
    # Imported here: an extra, and slow.
    import numpy as np
    import tensorflow_datasets as tfds

    class Triplets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Contents, styles and contents in these styles, from `TripletDataset`."""

        name = NAME
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            # Raw bytes: five times faster to read than tfds.features.Image, and no TensorFlow.
            picture = tfds.features.Tensor(
                shape=(*dataset.manifest["image_size"], 3),
                dtype=np.uint8,
                encoding=tfds.features.Encoding.BYTES,
            )
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "content": picture,
                        "style": picture,
                        "stylised": picture,
                        "content_id": tfds.features.Text(),
                        "style_id": tfds.features.Text(),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict]]:
            for index, triplet in enumerate(dataset):
                yield index, triplet._asdict()

    return Triplets(data_dir=data_dir)
