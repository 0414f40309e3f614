"""Triplets from a prepared TFDS dataset."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from triplets import SourceError
from triplets.tfds_triplets import TFDSTriplets

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5, 3), np.uint8)
CONTENT_IDS, STYLE_IDS = ("b", "a", "b"), (7, 7, 2)


class MyTriplets(tfds.core.GeneratorBasedBuilder):
    """Three triplets of two contents and two styles."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        def picture():
            encoding = tfds.features.Encoding.BYTES
            return tfds.features.Tensor(shape=(4, 5, 3), dtype=np.uint8, encoding=encoding)

        features = {
            "content": picture(),
            "style": picture(),
            "stylised": picture(),
            "content_id": tfds.features.Text(),
            "style_id": np.int32,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, (content, style, stylised) in enumerate(IMAGES):
            yield (
                i,
                {
                    "content": content,
                    "style": style,
                    "stylised": stylised,
                    "content_id": CONTENT_IDS[i],
                    "style_id": STYLE_IDS[i],
                },
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = MyTriplets(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_triplets_are_read_without_tensorflow(folder):
    triplets = TFDSTriplets.open(f"tfds:{folder}:train")
    assert len(triplets) == 3
    contents = {IMAGES[i, 0].tobytes(): i for i in range(3)}
    order = [contents[triplets[i].content.tobytes()] for i in range(3)]  # TFDS shuffles
    assert sorted(order) == [0, 1, 2]
    for position, i in enumerate(order):
        triplet = triplets[position]
        for array, expected in zip(triplet[:3], IMAGES[i], strict=True):
            np.testing.assert_array_equal(array, expected)
        assert (triplet.content_id, triplet.style_id) == (CONTENT_IDS[i], str(STYLE_IDS[i]))
        content, style = triplets.pairs[position]
        assert triplets.content_ids[content] == triplet.content_id
        assert triplets.style_ids[style] == triplet.style_id
    assert (list(triplets.content_ids), list(triplets.style_ids)) == (["a", "b"], ["2", "7"])
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("spec", ["tfds:", "tfds:dump", "tfds::train"])
def test_malformed_names(spec):
    with pytest.raises(SourceError, match="expected tfds:NAME:SPLIT"):
        TFDSTriplets.open(spec)


def test_what_cannot_be_read(folder):
    with pytest.raises(SourceError, match=r"cannot read triplets from tfds:.*:nosplit"):
        TFDSTriplets.open(f"tfds:{folder}:nosplit")
