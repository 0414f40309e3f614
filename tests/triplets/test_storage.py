"""Datasets in a bucket, which is fsspec's memory here, and in version 2 of the format."""

import errno
import io
import json
import os
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image
from small_dump import (
    CONTENTS,
    NUM_SHARDS,
    PAIRS,
    SETTINGS,
    STYLES,
    dump,
    make_writer,
    stylise,
    tree,
)

from triplets import Cache, DatasetError, InputError, TripletDataset, storage
from triplets.format import array_sha256
from triplets.preview import PreviewConfig, preview
from triplets.verify import VerifyConfig, verify

MEMORY = fsspec.filesystem("memory")


@pytest.fixture
def address():
    yield "memory://bucket/data"
    MEMORY.store.clear()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 10**8)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(storage, "PAUSE", 0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "default"))


def files(address: str) -> dict[str, bytes]:
    """Every file below an address with its bytes."""
    root = address.removeprefix("memory:/")
    return {path[len(root) + 1 :]: MEMORY.cat_file(path) for path in MEMORY.find(root)}


def assert_holds_the_dump(dataset: TripletDataset) -> None:
    assert len(dataset) == 12
    for (content, style), stylised, triplet in zip(PAIRS, stylise(PAIRS), dataset, strict=True):
        np.testing.assert_array_equal(triplet.content, CONTENTS.images[content])
        np.testing.assert_array_equal(triplet.style, STYLES.images[style])
        np.testing.assert_array_equal(triplet.stylised, stylised)
        assert triplet[3:] == (CONTENTS.ids[content], STYLES.ids[style])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_round_trip(place, version, tmp_path, address, cache):
    root = tmp_path / "data" if place == "folder" else address
    dump(root, version=version)
    dataset = TripletDataset(root, cache)
    assert dataset.version == version
    assert_holds_the_dump(dataset)
    assert_holds_the_dump(pickle.loads(pickle.dumps(dataset)))
    np.testing.assert_array_equal(dataset.contents, CONTENTS.images)
    np.testing.assert_array_equal(dataset.pairs, PAIRS)
    assert dataset.verify() == []
    assert dataset.fingerprint == TripletDataset(dump(tmp_path / "plain").root).fingerprint


def test_version_1_is_the_default_of_a_folder_and_2_of_a_bucket(tmp_path, address):
    assert dump(tmp_path / "data").version == 1
    assert dump(address).version == 2
    dump(tmp_path / "other", version=2)
    assert dump(tmp_path / "other").version == 2  # what was started continues
    with pytest.raises(DatasetError, match="format_version is 2 there, now 1"):
        dump(tmp_path / "other", version=1)


def test_a_bucket_holds_what_a_folder_would(tmp_path, address):
    for version in (1, 2):
        dump(f"{address}-{version}", version=version)
        folder = tree(dump(tmp_path / str(version), version=version).root)
        assert files(f"{address}-{version}") == {k: v for k, v in folder.items() if v is not None}


def test_the_layout_of_format_version_2(tmp_path):
    root = dump(tmp_path / "data", version=2).root
    np.testing.assert_array_equal(np.load(root / "pairs.npy"), PAIRS)
    shard = json.loads((root / "pairs-00001" / "shard.json").read_text())
    assert shard["sha256"]["stylised"] == array_sha256(stylise(PAIRS[5:10]))
    (path,) = (root / "pairs-00001").glob("*.tar")
    assert path.name == f"stylised-{shard['tar_sha256'][:16]}.tar"
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"{row:06d}.webp" for row in range(5)]
        for row, (offset, length) in enumerate(shard["offsets"]):
            data = path.read_bytes()[offset : offset + length]
            assert tar.extractfile(f"{row:06d}.webp").read() == data
            pixels = np.asarray(Image.open(io.BytesIO(data)))
            np.testing.assert_array_equal(pixels, stylise(PAIRS[5 + row : 6 + row])[0])


@pytest.mark.parametrize("version", [1, 2])
def test_a_shard_without_its_description_is_made_again(address, version, monkeypatch):
    """Killed at each upload of a run: what is there is never taken for more than it is."""
    whole = files(str(dump(f"{address}-whole", version=version).root))
    put_file = type(MEMORY).put_file
    for allowed in range(len(whole)):
        left = allowed

        def upload_and_die(self, local, remote, **options):
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return put_file(self, local, remote, **options)

        MEMORY.rm(address.removeprefix("memory:/"), recursive=True) if allowed else None
        monkeypatch.setattr(type(MEMORY), "put_file", upload_and_die)
        with pytest.raises(KeyboardInterrupt):
            dump(address, version=version)
        monkeypatch.setattr(type(MEMORY), "put_file", put_file)
        for name in files(address):
            assert whole[name] == files(address)[name]
        dump(address, version=version)
        assert files(address) == whole


def test_uploads_and_downloads_are_tried_again(address, cache, monkeypatch):
    """A server that answers with errors, and transfers that are cut."""
    calls = {"put_file": 0, "get_file": 0, "cat_file": 0}

    def unreliable(name):
        method = getattr(type(MEMORY), name)

        def call(self, *arguments, **options):
            calls[name] += 1
            if calls[name] % 3 == 1:
                raise OSError("503 Slow Down")
            result = method(self, *arguments, **options)
            if calls[name] % 3 == 2 and name == "get_file":
                os.truncate(arguments[1], 7)
            if calls[name] % 3 == 2 and name == "put_file":
                MEMORY.store[arguments[1]].truncate(7)
            return result

        monkeypatch.setattr(type(MEMORY), name, call)

    for name in calls:
        unreliable(name)
    dump(address)
    assert TripletDataset(address, cache).verify() == []
    assert min(calls.values()) > 6


def test_two_drivers_at_once(address, monkeypatch, tmp_path):
    first, second = make_writer(address), make_writer(address)
    for shard in range(NUM_SHARDS):
        for writer in (first, second):
            writer.write_shard(shard, stylise(writer.shard_pairs(shard)))
    assert files(address) == files(str(dump("memory://bucket/once").root))


def test_a_shard_that_two_machines_made_differently_is_one_of_both(address, cache):
    """What one uploads never stands beside the description of the other."""
    writer = make_writer(address)
    writer.write_shard(0, stylise(PAIRS[:5]))
    description = files(address)["pairs-00000/shard.json"]
    writer.write_shard(0, stylise(PAIRS[:5]) ^ 1)
    for last in (None, description):
        if last is not None:
            MEMORY.pipe_file("/bucket/data/pairs-00000/shard.json", last)
        assert TripletDataset(address, cache)._load_stylised(0, 5)[:].shape == (5, 6, 8, 3)
        faults = TripletDataset(address, cache).verify()
        assert all("missing" in fault or "are there" in fault for fault in faults), faults


def test_other_settings_are_refused(address):
    dump(address)
    with pytest.raises(DatasetError, match=r"settings\.seed is 7 there, now 8"):
        make_writer(address, settings=SETTINGS | {"seed": 8})
    MEMORY.pipe_file("/bucket/other/file", b"")
    with pytest.raises(DatasetError, match=r"holds other files and no manifest\.json"):
        make_writer("memory://bucket/other")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (FileNotFoundError("bucket"), "there is no such file or bucket"),
        (PermissionError("Access Denied"), "access is denied; check the credentials"),
        (type("NoCredentialsError", (Exception,), {})("no key"), "NoCredentialsError, no key"),
        (OSError(errno.EROFS, "read-only"), "Read-only file system|read-only"),
        (ConnectionError("refused"), "ConnectionError, refused; check the address"),
    ],
)
def test_buckets_that_cannot_be_written_to(address, failure, message, monkeypatch):
    def refuse(self, *arguments, **options):
        raise failure

    monkeypatch.setattr(type(MEMORY), "pipe_file", refuse)
    with pytest.raises((DatasetError, OSError), match=message):
        make_writer(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftpx://host/data", "cannot be opened: Protocol not known: ftpx; expected a folder"),
        ("abfs://container/data", r'client of abfs://: pip install "style-distil\[azure\]"'),
    ],
)
def test_addresses_that_nothing_can_open(address, message):
    with pytest.raises(InputError, match=message):
        make_writer(address)


def test_nothing_there(address):
    with pytest.raises(DatasetError, match=r"is not a triplet dataset: it has no manifest\.json"):
        TripletDataset(address)


@pytest.mark.parametrize("version", [1, 2])
def test_the_cache_stays_within_its_limit(address, version, tmp_path):
    dump(address, version=version)
    largest = max(map(len, files(address).values()))
    cache = Cache(tmp_path / "small", largest)
    assert_holds_the_dump(TripletDataset(address, cache))
    sizes = [path.stat().st_size for path in cache.folder.glob("[0-9a-f]*")]
    assert sizes and sum(sizes) <= largest
    with pytest.raises(InputError, match=r"cannot hold memory://.*, which has .*--cache-gib"):
        TripletDataset(address, Cache(tmp_path / "small", largest - 1))
    with pytest.raises(InputError, match="--cache-gib 0: expected a number of GiB above 0"):
        Cache.of(None, 0)


def test_the_cache_removes_what_was_used_longest_ago(tmp_path):
    cache = Cache(tmp_path, 10)
    fetched = []

    def fetch(key: str) -> None:
        def download(path):
            fetched.append(key)
            path.write_bytes(b"1234")

        cache.fetch(key * 64, 4, key, download)

    for moment, key in enumerate("abab"):
        fetch(key)
        os.utime(tmp_path / (key * 64), (moment, moment))
    assert fetched == ["a", "b"]
    fetch("c")
    fetch("b")
    assert fetched == ["a", "b", "c"]
    fetch("a")
    assert fetched == ["a", "b", "c", "a"]
    # What a process left that was killed while it downloaded does not count for ever.
    (tmp_path / f".{'d' * 64}.9.part").touch()
    fetch("e")
    assert sorted(path.name[0] for path in tmp_path.glob("[a-f]*")) == ["a", "e"]


def test_files_that_vanish_from_the_cache_are_fetched_again(address, cache):
    dump(address)
    dataset = TripletDataset(address, cache)
    before = dataset[3].stylised
    for path in cache.folder.glob("[0-9a-f]*"):
        path.unlink()
    np.testing.assert_array_equal(dataset[3].stylised, before)


def test_a_dataset_that_is_made_anew_is_not_read_from_the_cache(address, cache):
    for version in (1, 2):
        dump(f"{address}-{version}", version=version)
        assert_holds_the_dump(TripletDataset(f"{address}-{version}", cache))
        MEMORY.rm(f"/bucket/data-{version}", recursive=True)
        writer = make_writer(f"{address}-{version}", version=version)
        writer.write_shard(0, stylise(PAIRS[:5]) ^ 1)
        stylised = TripletDataset(f"{address}-{version}", cache)[0].stylised
        np.testing.assert_array_equal(stylised, stylise(PAIRS[:1])[0] ^ 1)


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_verify_finds_and_repair_sets_aside(place, tmp_path, address, capsys):
    root = tmp_path / "data" if place == "folder" else address
    root = dump(root, version=2).root
    whole = tree(root) if place == "folder" else files(root)
    (name,) = [name for name in whole if name.startswith("pairs-00001/stylised")]
    damaged = bytearray(whole[name])
    damaged[600] ^= 0xFF
    if place == "folder":
        (root / name).write_bytes(damaged)
    else:
        MEMORY.pipe_file(f"/bucket/data/{name}", bytes(damaged))
    with pytest.raises(DatasetError, match="1 fault"):
        verify(VerifyConfig(root, repair=True))
    assert "set aside" in capsys.readouterr().out
    dump(root)
    after = tree(root) if place == "folder" else files(root)
    assert {k: v for k, v in after.items() if not k.startswith("damaged")} == whole
    verify(VerifyConfig(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [[0, 10]]}, "offsets must be 5 pairs"),
        ({"offsets": [[-1, 10]] * 5}, "offsets must be 5 pairs"),
        ({"tar_sha256": "../../x"}, "tar_sha256 must be 64 hexadecimal digits"),
        ({"tar_sha256": "0" * 64}, "No such file"),
        ({"offsets": [[0, 10]] * 5}, "picture 0: cannot identify image"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path, change, message):
    root = dump(tmp_path / "data", version=2).root
    path = root / "pairs-00000" / "shard.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DatasetError, match=message):
        TripletDataset(root)[0]
    assert any(message in sentence for sentence in TripletDataset(root).verify())
    with pytest.raises(DatasetError, match="a finished shard is damaged"):
        make_writer(root)


def test_a_full_disk_for_temporary_files(address, monkeypatch):
    writer = make_writer(address)

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left on device; finished shards are kept"):
        writer.write_shard(0, stylise(PAIRS[:5]))
    monkeypatch.undo()
    assert writer.unfinished_shards() == [0, 1, 2]


def test_preview_of_a_bucket(address, tmp_path, capsys):
    dump(address)
    preview(PreviewConfig(address, out=tmp_path / "sheet.png", cache_dir=tmp_path / "cache"))
    assert "12 of 12 planned triplets, 6 x 8 px" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file()
