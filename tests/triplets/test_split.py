import pytest

from triplets import InputError, held_out_files, is_held_out, training_files
from triplets.split import SplitConfig, split_pictures


def test_held_out_rule_is_the_documented_one():
    """int(sha1(file name), 16) % 10 == 0, worked out with sha1sum."""
    names = [f"picture{i}.jpg" for i in range(30)]
    held_out = ["picture14.jpg", "picture15.jpg", "picture29.jpg"]
    assert [name for name in names if is_held_out(name)] == held_out


def test_split_of_a_folder(tmp_path, capsys):
    (tmp_path / "all").mkdir()
    for i in range(30):
        (tmp_path / "all" / f"picture{i}.jpg").write_bytes(bytes([i]))
    for _ in range(2):
        split_pictures(SplitConfig(tmp_path / "all", tmp_path / "parts"))
        assert capsys.readouterr().out.endswith("27 to train on, 3 held out\n")
    parts = {name: set((tmp_path / "parts" / name).iterdir()) for name in ("train", "held_out")}
    assert {f.name for f in parts["held_out"]} == {f.name for f in held_out_files(tmp_path / "all")}
    assert len(parts["train"]) == 27
    assert sorted(f.name for f in parts["train"]) == [
        f.name for f in training_files(tmp_path / "all")
    ]
    for file in parts["train"] | parts["held_out"]:
        assert file.read_bytes() == (tmp_path / "all" / file.name).read_bytes()


def test_folders_without_such_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for files in (training_files, held_out_files):
        with pytest.raises(InputError, match="nowhere' is no folder; expected a folder"):
            files(tmp_path / "nowhere")
        with pytest.raises(InputError, match=r"holds no pictures \(\.jpg"):
            files(tmp_path)
    (tmp_path / "picture1.jpg").touch()
    with pytest.raises(InputError, match=r"none of the 1 pictures in .* is in the held-out tenth"):
        held_out_files(tmp_path)
    (tmp_path / "picture1.jpg").rename(tmp_path / "picture14.jpg")
    with pytest.raises(InputError, match=r"all 1 pictures in .* are held out"):
        training_files(tmp_path)


def test_split_into_a_file(tmp_path):
    (tmp_path / "picture.jpg").touch()
    with pytest.raises(InputError, match="a file is in the way"):
        split_pictures(SplitConfig(tmp_path, tmp_path / "picture.jpg"))


def test_split_of_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        split_pictures(SplitConfig(tmp_path / "none", tmp_path / "parts"))
