"""Round trips through TensorFlow Datasets itself, which `test_sources` replaces by a stand-in."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small_dump import dump

from triplets import InputError, TripletDataset, load_images, open_source
from triplets.tfds_export import ExportConfig, export_tfds


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_export_is_read_by_tfds_without_our_code(tmp_path, file_format):
    dataset = TripletDataset(dump(tmp_path / "data").root)
    export_tfds(ExportConfig(dataset.root, tmp_path / "tfds", file_format))
    if file_format == "array_record":
        records = tfds.data_source("triplets", split="train", data_dir=tmp_path / "tfds")
    else:
        builder = tfds.builder_from_directory(tmp_path / "tfds" / "triplets" / "1.0.0")
        records = builder.as_data_source("train")
    assert len(records) == len(dataset)
    # TFDS shuffles records by their keys.
    expected = {triplet[3:]: triplet for triplet in dataset}
    for record in records:
        ids = (record["content_id"].decode(), record["style_id"].decode())
        for kind in ("content", "style", "stylised"):
            np.testing.assert_array_equal(record[kind], getattr(expected[ids], kind))
    assert "tensorflow" not in sys.modules
    with pytest.raises(InputError, match="exists; remove it"):
        export_tfds(ExportConfig(dataset.root, tmp_path / "tfds", file_format))


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Three flat pictures."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for value in range(3):
            yield value, {"image": Image.new("RGB", (20, 16), (value, 0, 0))}


def test_source_reads_a_prepared_dataset_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    TinyPictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_source("tfds:tiny_pictures:train[:2]")
    images, skipped = load_images(source, 16)
    assert len(images) == 2 and skipped == []
    assert images.ids[0] == "tiny_pictures:train[:2]:0"
    values = images.images[:, 0, 0, 0].tolist()
    assert len(set(values)) == 2 and set(values) < {0, 1, 2}
    for image, value in zip(images.images, values, strict=True):
        assert (image == (value, 0, 0)).all()
    assert images.original_sizes == [(16, 20)] * 2
    assert "tensorflow" not in sys.modules
