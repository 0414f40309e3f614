import errno
import os

import pytest

from triplets import InputError, split
from triplets.split import SplitConfig, split_pictures


def test_the_rule_is_the_documented_one():
    """int(sha1(file name), 16) % 10 == 0, worked out with sha1sum."""
    names = [f"picture{i}.jpg" for i in range(30)]
    chosen = ["picture14.jpg", "picture15.jpg", "picture29.jpg"]
    assert [name for name in names if split.in_test_split(name)] == chosen


def no_links(*_):
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("links", [True, False])
def test_split_of_a_folder(tmp_path, capsys, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "all" / "subfolder").mkdir(parents=True)
    for i in range(30):
        (tmp_path / "all" / f"picture{i}.jpg").write_bytes(bytes([i]))
    for _ in range(2):
        split_pictures(SplitConfig(tmp_path / "all", tmp_path / "parts"))
        assert capsys.readouterr().out == f"{tmp_path / 'parts'}: 27 in train, 3 in test\n"
    assert sorted(os.listdir(tmp_path / "parts")) == ["test", "train"]
    parts = {name: set((tmp_path / "parts" / name).iterdir()) for name in ("train", "test")}
    assert {f.name for f in parts["test"]} == {f.name for f in split.test_files(tmp_path / "all")}
    assert len(parts["train"]) == 27
    assert sorted(f.name for f in parts["train"]) == [
        f.name for f in split.training_files(tmp_path / "all")
    ]
    for file in parts["train"] | parts["test"]:
        original = tmp_path / "all" / file.name
        assert file.read_bytes() == original.read_bytes()
        assert file.samefile(original) == links


def test_a_copy_that_fails_leaves_nothing_half_written(tmp_path, monkeypatch):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "picture14.jpg").write_bytes(b"picture")
    monkeypatch.setattr(os, "link", no_links)

    def disk_full(source, target):
        target.write_bytes(b"pic")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(split.shutil, "copyfile", disk_full)
    with pytest.raises(OSError, match=r"No space left on device: '.*test/picture14\.jpg'"):
        split_pictures(SplitConfig(tmp_path / "all", tmp_path / "parts"))
    assert os.listdir(tmp_path / "parts" / "test") == []


def test_folders_without_such_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for files in (split.training_files, split.test_files):
        with pytest.raises(InputError, match="nowhere' is not a folder; expected a folder"):
            files(tmp_path / "nowhere")
        with pytest.raises(InputError, match=r"holds no pictures \(\.jpg"):
            files(tmp_path)
    (tmp_path / "picture1.jpg").touch()
    with pytest.raises(InputError, match=r"none of the 1 pictures in .* is in the test split"):
        split.test_files(tmp_path)
    (tmp_path / "picture1.jpg").rename(tmp_path / "picture14.jpg")
    with pytest.raises(InputError, match=r"all 1 pictures in .* are in the test split"):
        split.training_files(tmp_path)


def test_split_into_a_file(tmp_path):
    (tmp_path / "picture.jpg").touch()
    with pytest.raises(InputError, match="a file is in the way"):
        split_pictures(SplitConfig(tmp_path, tmp_path / "picture.jpg"))


def test_split_of_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        split_pictures(SplitConfig(tmp_path / "none", tmp_path / "parts"))
