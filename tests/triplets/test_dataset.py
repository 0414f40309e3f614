import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from small_dump import CONTENTS, PAIRS, STYLES, dump, make_writer, stylise

from triplets import DatasetError, Triplet, TripletDataset, dataset

STYLISED = stylise(PAIRS)


@pytest.fixture
def root(tmp_path):
    return dump(tmp_path / "data").root


def assert_holds_the_dump(ds: TripletDataset) -> None:
    assert len(ds) == 12
    for (content, style), stylised, triplet in zip(PAIRS, STYLISED, ds, strict=True):
        assert isinstance(triplet, Triplet)
        np.testing.assert_array_equal(triplet.content, CONTENTS.images[content])
        np.testing.assert_array_equal(triplet.style, STYLES.images[style])
        np.testing.assert_array_equal(triplet.stylised, stylised)
        assert triplet.content_id == CONTENTS.ids[content]
        assert triplet.style_id == STYLES.ids[style]


def test_round_trip(root):
    ds = TripletDataset(root)
    assert_holds_the_dump(ds)
    np.testing.assert_array_equal(ds.contents, CONTENTS.images)
    np.testing.assert_array_equal(ds.styles, STYLES.images)
    np.testing.assert_array_equal(ds.pairs, PAIRS)
    assert ds.manifest["settings"]["seed"] == 7
    assert ds.verify() == []
    assert "12 triplets of 6 x 8" in repr(ds)


def test_indices(root):
    ds = TripletDataset(root)
    np.testing.assert_array_equal(ds[-1].stylised, STYLISED[11])
    np.testing.assert_array_equal(ds[np.int64(5)].stylised, STYLISED[5])
    for outside in (12, -13):
        with pytest.raises(IndexError):
            ds[outside]
    with pytest.raises(TypeError):
        ds["0"]


def test_triplets_are_copies_and_maps_are_read_only(root):
    ds = TripletDataset(root)
    triplet = ds[0]
    for array in triplet[:3]:
        assert not isinstance(array, np.memmap)
        array[:] = 0
    np.testing.assert_array_equal(ds[0].stylised, STYLISED[0])
    with pytest.raises(ValueError, match="read-only"):
        ds.contents[:] = 0


def test_more_shards_than_may_be_open(root, monkeypatch):
    monkeypatch.setattr(dataset, "_MAX_OPEN_SHARDS", 1)
    ds = TripletDataset(root)
    for position in (0, 11, 4, 5, 11, 0):
        np.testing.assert_array_equal(ds[position].stylised, STYLISED[position])


def test_pickle_carries_no_pictures(root, monkeypatch):
    ds = TripletDataset(root)
    untouched = pickle.dumps(ds)
    assert_holds_the_dump(ds)
    used = pickle.dumps(ds)
    # the pictures of this tiny dataset have 2736 bytes
    assert len(used) < len(untouched) + 1000
    monkeypatch.chdir("/")
    assert_holds_the_dump(pickle.loads(untouched))
    assert_holds_the_dump(pickle.loads(used))


def test_relative_folders_survive_a_change_of_directory(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    ds = TripletDataset("data")
    monkeypatch.chdir("/")
    assert_holds_the_dump(ds)


def test_an_unfinished_dump_is_readable_and_reported(tmp_path):
    writer = make_writer(tmp_path)
    with pytest.raises(DatasetError, match="has none of its 12 planned triplets yet"):
        TripletDataset(tmp_path)
    writer.write_shard(1, STYLISED[5:10])
    ds = TripletDataset(tmp_path)
    assert len(ds) == 5
    np.testing.assert_array_equal(ds[0].stylised, STYLISED[5])
    np.testing.assert_array_equal(ds[0].content, CONTENTS.images[PAIRS[5, 0]])
    faults = ds.verify()
    assert "pairs-00000 and 1 more" in faults[0]
    assert faults[1:] == ["5 of 12 planned pairs are there."]
    # An open dataset does not change under its reader; it is opened again to see more.
    writer.write_shard(0, STYLISED[:5])
    assert len(ds) == 5
    assert len(TripletDataset(tmp_path)) == 10


def test_wrong_folders(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DatasetError, match=r"no manifest\.json; style-distil dump"):
            TripletDataset(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3 is not known; this release reads versions 1 and"),
        ({"format_version": None}, "format version None"),
        ({"image_size": [6]}, r"image_size must be \[height, width\]"),
        ({"image_size": "6x8"}, "image_size"),
        ({"num_pairs": 0}, "num_pairs must be a positive whole number"),
        ({"num_contents": "3"}, "num_contents must be"),
        ({"num_styles": True}, "num_styles must be"),
        ({"shard_size": -5}, "shard_size must be"),
    ],
)
def test_unusable_manifests(root, change, message):
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DatasetError, match=message):
        TripletDataset(root)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "[" * 100_000])
def test_damaged_manifests(root, text):
    (root / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.json': "):
        TripletDataset(root)


BINARY = ["contents.npy", "styles.npy", "pairs-00001/stylised.npy", "pairs-00002/index.npy"]
DESCRIPTIONS = ["contents.json", "styles.json", "pairs-00001/shard.json"]


@pytest.mark.parametrize("name", BINARY)
def test_verify_finds_one_flipped_byte(root, name):
    data = bytearray((root / name).read_bytes())
    data[-1] ^= 1
    (root / name).write_bytes(data)
    faults = TripletDataset(root).verify()
    assert name in faults[0]


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "empty", "pickled", "other dtype", "text"]
)
def test_verify_finds_damaged_arrays(root, name, damage):
    path = root / name
    array = np.load(path, allow_pickle=False)
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickled":
        np.save(path, array.astype(object), allow_pickle=True)
    elif damage == "other dtype":
        np.save(path, array.astype(np.float32))
    elif damage == "text":
        path.write_text("text")
    faults = TripletDataset(root).verify()
    assert len(faults) == 1
    assert name in faults[0]
    assert "\n" not in faults[0]
    with pytest.raises(DatasetError, match=name):
        list(TripletDataset(root))


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("damage", ["missing", "cut", "list", "empty object"])
def test_verify_finds_damaged_descriptions(root, name, damage):
    path = root / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"cut": data[:-3], "list": b"[]", "empty object": b"{}"}[damage])
    faults = TripletDataset(root).verify()
    assert faults
    assert all(name.removesuffix(".json").split("/")[0] in fault for fault in faults)


def test_verify_finds_a_wrong_sha256(root):
    path = root / "pairs-00000" / "shard.json"
    recorded = json.loads(path.read_text())
    recorded["sha256"]["stylised"] = "0" * 64
    path.write_text(json.dumps(recorded))
    (fault,) = TripletDataset(root).verify()
    assert "pairs-00000/stylised.npy: its sha256 is" in fault
    assert fault.endswith("0" * 64 + ".")


def test_verify_finds_a_wrong_row_count(root):
    path = root / "pairs-00000" / "shard.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": 6}))
    (fault,) = TripletDataset(root).verify()
    assert "index.npy has 5 rows, not 6" in fault


def test_verify_finds_missing_and_exchanged_shards(root):
    ds = TripletDataset(root)
    os.rename(root / "pairs-00000", root / "kept")
    os.rename(root / "pairs-00001", root / "pairs-00000")
    os.rename(root / "kept", root / "pairs-00001")
    (fault,) = TripletDataset(root).verify()
    assert "pairs_sha256 does not match" in fault
    shutil.rmtree(root / "pairs-00001")
    faults = TripletDataset(root).verify()
    assert faults[0].startswith("pairs-00001 is missing")
    assert faults[1] == "7 of 12 planned pairs are there."
    # ... and where the shard went while the dataset was open
    assert any("pairs-00001/shard.json': No such file" in fault for fault in ds.verify())


@pytest.mark.parametrize("row", [[3, 0], [0, 4], [-1, 0]])
def test_rows_outside_the_pictures_are_refused(root, row):
    index = PAIRS[:5].astype(np.int32)
    index[2] = row
    np.save(root / "pairs-00000" / "index.npy", index)
    ds = TripletDataset(root)
    with pytest.raises(DatasetError, match=r"pairs-00000/index\.npy: rows must be at least 0"):
        ds[0]
    assert "rows must be at least 0 and below [3, 4]." in ds.verify()[0]


@pytest.mark.parametrize("ids", [["a"], ["a", "b", 3], "abc", None])
def test_ids_that_do_not_fit_are_refused(root, ids):
    path = root / "contents.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ids": ids}))
    with pytest.raises(DatasetError, match=r"contents\.json: ids must be a list of 3 strings"):
        TripletDataset(root)[0]


def test_reading_with_numpy_alone(root):
    manifest = json.loads((root / "manifest.json").read_text())
    contents = np.load(root / "contents.npy", mmap_mode="r", allow_pickle=False)
    styles = np.load(root / "styles.npy", mmap_mode="r", allow_pickle=False)
    triplets = []
    for shard in sorted(root.glob("pairs-*")):
        stylised = np.load(shard / "stylised.npy", mmap_mode="r", allow_pickle=False)
        for row, (c, s) in enumerate(np.load(shard / "index.npy", allow_pickle=False)):
            triplets.append((contents[c], styles[s], stylised[row]))

    assert len(triplets) == manifest["num_pairs"]
    for mine, theirs in zip(triplets, TripletDataset(root), strict=True):
        for one, other in zip(mine, theirs[:3], strict=True):
            np.testing.assert_array_equal(one, other)


def test_writing_with_numpy_alone(tmp_path):
    rng = np.random.default_rng(0)
    contents, styles, stylised = (rng.integers(0, 256, (2, 16, 24, 3), np.uint8) for _ in range(3))
    index = np.array([[0, 1], [1, 0]], np.int32)  # row in contents, row in styles

    def sha256(array):
        return hashlib.sha256(array.tobytes()).hexdigest()

    def write_json(path, **values):
        path.write_text(json.dumps(values))

    shard = tmp_path / "pairs-00000"
    shard.mkdir()
    np.save(tmp_path / "contents.npy", contents)
    np.save(tmp_path / "styles.npy", styles)
    np.save(shard / "stylised.npy", stylised)
    np.save(shard / "index.npy", index)
    write_json(tmp_path / "contents.json", ids=["a.jpg", "b.jpg"], sha256=sha256(contents))
    write_json(tmp_path / "styles.json", ids=["x.jpg", "y.jpg"], sha256=sha256(styles))
    checksums = {"stylised": sha256(stylised), "index": sha256(index)}
    write_json(shard / "shard.json", rows=2, sha256=checksums)
    counts = {"num_contents": 2, "num_styles": 2, "num_pairs": 2}
    write_json(tmp_path / "manifest.json", format_version=1, image_size=[16, 24], **counts)

    ds = TripletDataset(tmp_path)
    assert ds.verify() == []
    assert len(ds) == 2
    np.testing.assert_array_equal(ds[1].content, contents[1])
    np.testing.assert_array_equal(ds[1].style, styles[0])
    np.testing.assert_array_equal(ds[1].stylised, stylised[1])
    assert (ds[1].content_id, ds[1].style_id) == ("b.jpg", "x.jpg")


def test_a_plan_of_any_size_takes_no_memory(root):
    manifest = json.loads((root / "manifest.json").read_text())
    manifest |= {"num_pairs": 10**15, "shard_size": 1, "num_contents": 10**12}
    (root / "manifest.json").write_text(json.dumps(manifest))
    faults = TripletDataset(root).verify()
    assert any("and 999999999999996 more shards are missing" in fault for fault in faults)


def test_pipes_are_not_waited_for(root):
    for name in ("pairs-00001/shard.json", "pairs-00000/index.npy", "styles.npy"):
        (root / name).unlink()
        os.mkfifo(root / name)
    faults = TripletDataset(root).verify()
    assert sum("not a regular file" in fault for fault in faults) == 3


def test_changed_ids_are_found(root):
    path = root / "contents.json"
    first = json.loads(path.read_text())["ids"][0]
    path.write_text(path.read_text().replace(json.dumps(first), json.dumps(f"{first}x")))
    (fault,) = TripletDataset(root).verify()
    assert "contents.json: the ids do not match ids_sha256" in fault


def test_datasets_without_a_checksum_of_the_ids(root):
    """Those from before it was recorded: they are read and continued."""
    path = root / "contents.json"
    fields = json.loads(path.read_text())
    del fields["ids_sha256"]
    path.write_text(json.dumps(fields))
    assert TripletDataset(root).verify() == []
    dump(root)


def test_ids_that_are_no_text(root):
    path = root / "contents.json"
    first = json.loads(path.read_text())["ids"][0]
    path.write_text(path.read_text().replace(json.dumps(first), r'"\udc80"'))
    with pytest.raises(DatasetError, match="an id is not text in UTF-8"):
        TripletDataset(root)[0]
