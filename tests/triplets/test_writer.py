import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_dump
from small_dump import CONTENTS, NUM_SHARDS, PAIRS, SETTINGS, dump, image_set, make_writer, tree

from triplets import DatasetError, ImageSet, TripletDataset, TripletWriter, writer


def test_the_layout_of_format_version_1(tmp_path):
    dump(tmp_path / "data")
    root = tmp_path / "data"
    names = {"manifest.json", "contents.npy", "contents.json", "styles.npy", "styles.json"}
    shards = {f"pairs-0000{shard}" for shard in range(NUM_SHARDS)}
    members = {f"{s}/{m}" for s in shards for m in ("stylised.npy", "index.npy", "shard.json")}
    assert set(tree(root)) == names | shards | members

    manifest = json.loads((root / "manifest.json").read_text())
    pairs_sha256 = manifest.pop("pairs_sha256")
    assert len(pairs_sha256) == 64
    assert manifest == {
        "format_version": 1,
        "image_size": [6, 8],
        "num_contents": 3,
        "num_styles": 4,
        "num_pairs": 12,
        "shard_size": 5,
        "settings": SETTINGS,
        "provenance": {},
    }
    contents = json.loads((root / "contents.json").read_text())
    assert contents["ids"] == list(CONTENTS.ids)
    assert contents["original_sizes"] == [[60, 80]] * 3
    assert json.loads((root / "pairs-00002" / "shard.json").read_text())["rows"] == 2
    index = np.load(root / "pairs-00001" / "index.npy", allow_pickle=False)
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, PAIRS[5:10])


def test_arrays_are_written_as_numpy_itself_would(tmp_path):
    dump(tmp_path / "data")
    np.save(tmp_path / "expected.npy", CONTENTS.images)
    written = (tmp_path / "data" / "contents.npy").read_bytes()
    assert written == (tmp_path / "expected.npy").read_bytes()


def test_the_settings_alone_decide_the_bytes(tmp_path):
    dump(tmp_path / "one")
    fortran = ImageSet(np.asfortranarray(CONTENTS.images), CONTENTS.ids, CONTENTS.original_sizes)
    settings = dict(reversed(SETTINGS.items()), styleid={"layers": (6, 7), "gamma": 0.75})
    writer = make_writer(
        tmp_path / "two", contents=fortran, settings=settings, pairs=PAIRS.astype(np.uint8)
    )
    for shard in reversed(writer.missing_shards()):
        writer.write_shard(shard, np.asfortranarray(small_dump.stylise(writer.shard_pairs(shard))))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_missing_shards_shrink_until_finished(tmp_path):
    writer = make_writer(tmp_path / "data")
    assert (writer.num_shards, writer.missing_shards()) == (NUM_SHARDS, [0, 1, 2])
    writer.write_shard(1, small_dump.stylise(writer.shard_pairs(1)))
    assert writer.missing_shards() == [0, 2]
    again = make_writer(tmp_path / "data")
    assert again.missing_shards() == [0, 2]
    assert not again.finished()
    assert dump(tmp_path / "data").finished()
    assert again.missing_shards() == []


def test_ranks_share_the_shards_among_them(tmp_path):
    writers = [make_writer(tmp_path / "data", rank=rank, world_size=2) for rank in (0, 1)]
    # Consecutive shards, because consecutive pairs share pictures.
    assert [writer.missing_shards() for writer in writers] == [[0, 1], [2]]
    with pytest.raises(DatasetError, match="shard 2 is not missing here: rank 0 of 2"):
        writers[0].write_shard(2, small_dump.stylise(PAIRS[10:]))
    dump(tmp_path / "data", rank=0, world_size=2)
    assert writers[0].missing_shards() == []
    assert not writers[0].finished()
    dump(tmp_path / "data", rank=1, world_size=2)
    assert writers[0].finished()


def test_a_dump_killed_anywhere_is_finished_as_if_it_had_not_been(tmp_path):
    program = subprocess.run(
        [sys.executable, small_dump.__file__, tmp_path], capture_output=True, text=True
    )
    assert program.returncode == 0, program.stderr
    assert int(program.stdout) > 60  # processes killed
    whole = tree(tmp_path / "whole")
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert len(folders) > 60
    differing = [name for name in folders if tree(tmp_path / name) != whole]
    assert differing == []
    assert TripletDataset(tmp_path / "whole").verify() == []


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    syncs, failing = 0, None

    def fsync(descriptor):
        nonlocal syncs
        syncs += 1
        if syncs == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    dump(tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    for failing in range(1, syncs + 1):
        syncs = 0
        root = tmp_path / str(failing)
        with pytest.raises(OSError, match="No space left on device; finished shards") as caught:
            dump(root)
        assert caught.value.errno == errno.ENOSPC
        left = tree(root)
        assert not any(".staging" in name for name in left)
        assert left.items() <= whole.items()
        dump(root)
        assert tree(root) == whole


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"settings": SETTINGS | {"seed": 8}}, "settings.seed is 7 there, now 8"),
        (
            {"settings": SETTINGS | {"styleid": {"gamma": 0.5, "layers": [6, 7]}}},
            "settings.styleid.gamma is 0.75 there, now 0.5",
        ),
        (
            {"settings": SETTINGS | {"styleid": {"gamma": 0.75, "layers": (6, 8)}}},
            r"settings.styleid.layers\[1\] is 7 there, now 8",
        ),
        ({"settings": SETTINGS | {"steps": 50}}, "settings.steps is not set there, now 50"),
        ({"settings": {"teacher": "test"}}, "settings.seed is 7 there, now not set"),
        (
            {"settings": SETTINGS | {"seed": 8}, "pairs": PAIRS[::-1]},
            "settings.seed is 7 there, now 8",
        ),
        ({"shard_size": 4}, "shard_size is 5 there, now 4"),
        ({"pairs": PAIRS[:-1]}, "num_pairs is 12 there, now 11"),
        ({"pairs": PAIRS[::-1]}, "pairs_sha256 is"),
        ({"styles": image_set(5, seed=2)}, "num_styles is 4 there, now 5"),
        ({"styles": image_set(4, seed=3)}, "styles.npy holds other values than the given styles"),
        (
            {"contents": ImageSet(CONTENTS.images, ["x", "y", "z"], CONTENTS.original_sizes)},
            r"contents.json describes other pictures.*: ids\[0\] is '1/0.png' there, now 'x'",
        ),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, changes, difference):
    dump(tmp_path / "data")
    before = tree(tmp_path / "data")
    with pytest.raises(DatasetError, match=difference):
        make_writer(tmp_path / "data", **changes)
    assert tree(tmp_path / "data") == before


def test_ranks_have_equal_shares_and_every_shard_has_one(tmp_path):
    for world_size in range(1, 14):
        writers = [
            make_writer(tmp_path / "data", shard_size=1, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        shares = [writer.missing_shards() for writer in writers]
        assert [shard for share in shares for shard in share] == list(range(12))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_defaults_are_what_the_first_start_recorded(tmp_path):
    first = make_writer(tmp_path / "data", defaults={"rows_per_call": 64})
    assert first.settings == SETTINGS | {"rows_per_call": 64}
    before = tree(tmp_path / "data")
    assert make_writer(tmp_path / "data", defaults={"rows_per_call": 16}).settings == first.settings
    assert tree(tmp_path / "data") == before
    with pytest.raises(DatasetError, match=r"settings.rows_per_call is 64 there, now not set"):
        make_writer(tmp_path / "data")


def test_further_arrays(tmp_path):
    embedding = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    root = make_writer(tmp_path / "data", arrays={"null_text": embedding}).root
    dump(root, arrays={"null_text": embedding})
    np.testing.assert_array_equal(np.load(root / "null_text.npy", allow_pickle=False), embedding)
    assert TripletDataset(root).verify() == []
    with pytest.raises(DatasetError, match=r"arrays.null_text is '\w+' there, now '\w+'"):
        make_writer(root, arrays={"null_text": embedding + 1})
    np.save(root / "null_text.npy", embedding + 1)
    (fault,) = TripletDataset(root).verify()
    assert "null_text.npy: its sha256 is" in fault
    with pytest.raises(DatasetError, match=r"null_text\.npy holds other values than the given"):
        make_writer(root, arrays={"null_text": embedding})


@pytest.mark.parametrize("name", ["../evil", "contents", "", "a.b", "A"])
def test_names_of_further_arrays(tmp_path, name):
    with pytest.raises(DatasetError, match="expected small letters and underscores"):
        make_writer(tmp_path / "data", arrays={name: np.zeros(1)})
    root = make_writer(tmp_path / "data").root
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {"arrays": {name: "0" * 64}}))
    with pytest.raises(DatasetError, match="expected small letters and underscores"):
        TripletDataset(root)


def test_remarks_on_a_shard(tmp_path):
    writer = make_writer(tmp_path / "data")
    writer.write_shard(0, small_dump.stylise(PAIRS[:5]), remarks={"rows_per_call": 8})
    description = json.loads((tmp_path / "data" / "pairs-00000" / "shard.json").read_text())
    assert description["remarks"] == {"rows_per_call": 8}


def test_another_provenance_only_warns(tmp_path):
    make_writer(tmp_path / "data", provenance={"torch": "2.6"})
    before = tree(tmp_path / "data")
    with pytest.warns(UserWarning, match=r"torch is '2.6' there, now '2.7'; continuing"):
        make_writer(tmp_path / "data", provenance={"torch": "2.7"})
    assert tree(tmp_path / "data") == before


def test_folders_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match=r"holds other files and no manifest\.json"):
        make_writer(tmp_path)
    with pytest.raises(DatasetError, match="is a file; expected a folder"):
        make_writer(tmp_path / "thesis.tex")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_hidden_file_does_not_make_a_folder_taken(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    make_writer(tmp_path)


@pytest.mark.parametrize(
    ("stylised", "message"),
    [
        (np.zeros((5, 6, 8, 3), np.float32), r"expected uint8 \[5, 6, 8, 3\], got float32"),
        (np.zeros((4, 6, 8, 3), np.uint8), r"got uint8 \[4, 6, 8, 3\]"),
        (np.zeros((5, 3, 6, 8), np.uint8), r"got uint8 \[5, 3, 6, 8\]"),
    ],
)
def test_other_stylised_arrays_are_refused(tmp_path, stylised, message):
    writer = make_writer(tmp_path / "data")
    with pytest.raises(DatasetError, match=message):
        writer.write_shard(0, stylised)
    assert writer.missing_shards() == [0, 1, 2]


@pytest.mark.parametrize("shard", [0, 3, -1])
def test_only_missing_shards_are_written(tmp_path, shard):
    writer = make_writer(tmp_path / "data")
    writer.write_shard(0, small_dump.stylise(PAIRS[:5]))
    with pytest.raises(DatasetError, match=f"shard {shard} is not missing"):
        writer.write_shard(shard, small_dump.stylise(PAIRS[:5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": PAIRS.astype(float)}, r"expected integer pairs \[p 2\], got float64 \[12, 2\]"),
        ({"pairs": PAIRS.T}, r"got int64 \[2, 12\]"),
        ({"pairs": PAIRS[:0]}, "at least one pair"),
        (
            {"pairs": PAIRS + 1},
            r"rows of 3 contents and 4 styles, got rows from \[1, 1\] to \[3, 4\]",
        ),
        ({"pairs": PAIRS - 1}, r"got rows from \[-1, -1\]"),
        ({"shard_size": 0}, "shard_size 0"),
        ({"rank": 2, "world_size": 2}, "rank 2, world_size 2"),
        ({"settings": {"a": np.zeros(2)}}, "settings cannot be written as JSON"),
        ({"settings": {"a": float("nan")}}, "settings cannot be written as JSON"),
        (
            {"styles": ImageSet(np.zeros((4, 8, 8, 3), np.uint8), list("abcd"), [(8, 8)] * 4)},
            r"must have one size, got \[6, 8, 3\] and \[8, 8, 3\]",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        make_writer(tmp_path / "data", **changes)
    assert not (tmp_path / "data").exists()


def test_a_second_process_of_the_same_rank_cannot_spoil_a_shard(tmp_path, monkeypatch):
    first = make_writer(tmp_path / "data")
    save_json = writer._save_json

    def start_again_meanwhile(path, value):
        monkeypatch.setattr(writer, "_save_json", save_json)
        dump(tmp_path / "data")
        save_json(path, value)

    monkeypatch.setattr(writer, "_save_json", start_again_meanwhile)
    with pytest.raises(DatasetError, match="another process runs as rank 0"):
        first.write_shard(0, small_dump.stylise(PAIRS[:5]))
    dump(tmp_path / "whole")
    assert tree(tmp_path / "data") == tree(tmp_path / "whole")


def test_leftovers_are_renamed_before_they_are_removed(tmp_path, monkeypatch):
    root = make_writer(tmp_path / "data").root
    (root / ".staging-00000" / "pairs-00000").mkdir(parents=True)
    removed = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: removed.append(path.name))
    make_writer(root)
    # So a process that still prepares the shard there can no longer publish it.
    assert removed[0].startswith(".staging-00000.")
    assert not (root / ".staging-00000").exists()


def test_of_two_writers_at_once_the_first_decides(tmp_path, monkeypatch):
    other = make_writer(tmp_path / "other", settings={"seed": 8}).root
    real_link = os.link

    def come_too_late(source, destination):
        shutil.copy(other / "manifest.json", destination)
        real_link(source, destination)

    monkeypatch.setattr(os, "link", come_too_late)
    with pytest.raises(DatasetError, match=r"settings\.seed is 8 there, now 7"):
        make_writer(tmp_path / "data")
    assert tree(tmp_path / "data") == {"manifest.json": (other / "manifest.json").read_bytes()}


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def no_links(source, destination):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    dump(tmp_path / "whole")
    monkeypatch.setattr(os, "link", no_links)
    dump(tmp_path / "data")
    assert tree(tmp_path / "data") == tree(tmp_path / "whole")


@pytest.mark.parametrize("change", ["renamed", "without manifest"])
def test_a_folder_that_changes_under_the_dump(tmp_path, change):
    writer = make_writer(tmp_path / "data")
    writer.write_shard(0, small_dump.stylise(writer.shard_pairs(0)))
    if change == "renamed":
        (tmp_path / "data").rename(tmp_path / "other")
    else:
        (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises((DatasetError, OSError), match=r"manifest\.json|removed|No such file"):
        writer.write_shard(1, small_dump.stylise(writer.shard_pairs(1)))


def test_ids_never_become_paths(tmp_path):
    images = np.zeros((1, 4, 4, 3), np.uint8)
    evil = ImageSet(images, ["../../evil"], [(4, 4)])
    plain = ImageSet(images, ["\n"], [(4, 4)])
    not_utf8 = ImageSet(images, ["\udcff"], [(4, 4)])
    root = tmp_path / "deep" / "er" / "data"
    with pytest.raises(DatasetError, match=r"id '\\udcff' is not text in UTF-8"):
        TripletWriter(root, contents=evil, styles=not_utf8, pairs=np.zeros((1, 2), int))
    writer = TripletWriter(root, contents=evil, styles=plain, pairs=np.zeros((1, 2), int))
    writer.write_shard(0, images)
    triplet = TripletDataset(root)[0]
    assert (triplet.content_id, triplet.style_id) == ("../../evil", "\n")
    assert [path for path in Path(tmp_path).rglob("*evil*")] == []
