"""Copies of a dataset in the other version of the format."""

import json

import fsspec
import numpy as np
import pytest
from small_dump import PAIRS, make_writer, stylise, tree

from triplets import DatasetError, TripletDataset
from triplets.convert import ConvertConfig, convert
from triplets.format import encode_json


def whole(root):
    writer = make_writer(root, arrays={"null_text": np.arange(3.0)}, provenance={"device": "cpu"})
    for shard in writer.missing_shards():
        remarks = {"rows_per_call": 8} if shard == 1 else None
        writer.write_shard(shard, stylise(writer.shard_pairs(shard)), remarks)
    return root


def test_there_and_back(tmp_path, monkeypatch, capsys):
    """Raw, compressed in a bucket, compressed in a folder, raw again: the same bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = whole(tmp_path / "first")
    places = [first, "memory://bucket/convert", tmp_path / "second", tmp_path / "third"]
    for source, target, version in zip(places, places[1:], (None, 2, None), strict=False):
        convert(ConvertConfig(source, target, version))
    assert "12 triplets are in memory://bucket/convert, in version 2" in capsys.readouterr().out
    assert tree(tmp_path / "third") == tree(first)
    fingerprints = {TripletDataset(place).fingerprint for place in places}
    assert len(fingerprints) == 1
    fsspec.filesystem("memory").store.clear()


def test_a_copy_continues(tmp_path):
    first = whole(tmp_path / "first")
    convert(ConvertConfig(first, tmp_path / "second", 2))
    before = tree(tmp_path / "second")
    for path in (tmp_path / "second" / "pairs-00001").iterdir():
        path.unlink()
    (tmp_path / "second" / "pairs-00001").rmdir()
    convert(ConvertConfig(first, tmp_path / "second"))
    assert tree(tmp_path / "second") == before


def test_what_cannot_be_copied(tmp_path):
    writer = make_writer(tmp_path / "unfinished")
    writer.write_shard(0, stylise(PAIRS[:5]))
    with pytest.raises(DatasetError, match="has 5 of 12 planned triplets; finish it first"):
        convert(ConvertConfig(tmp_path / "unfinished", tmp_path / "out"))
    for name in ("pairs-00001/stylised.npy", "contents.npy"):
        root = whole(tmp_path / name.replace("/", "-"))
        data = bytearray((root / name).read_bytes())
        data[-1] ^= 1
        (root / name).write_bytes(data)
        with pytest.raises(DatasetError, match="does not match its sha256"):
            convert(ConvertConfig(root, tmp_path / f"{root.name}-out"))


def test_a_dataset_of_another_tool(tmp_path):
    """Without a shard size, with shards of any size."""
    root = whole(tmp_path / "first")
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["shard_size"]
    (root / "manifest.json").write_bytes(encode_json(manifest))
    convert(ConvertConfig(root, tmp_path / "second", 2))
    dataset = TripletDataset(tmp_path / "second")
    assert dataset.verify() == [] and len(dataset.shards) == 1
    np.testing.assert_array_equal(dataset.stylised(range(12)), stylise(PAIRS))
