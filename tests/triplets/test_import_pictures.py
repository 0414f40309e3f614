from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triplets import InputError, TripletDataset, read_image
from triplets.import_pictures import KINDS, ImportConfig, import_pictures


def save(path, value, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Three folders that share the names 1, 2 and deep/3."""
    for k, kind in enumerate(KINDS):
        for i, name in enumerate(("1", "2", "deep/3")):
            save(tmp_path / kind / f"{name}.{'png' if k == 2 else 'bmp'}", 10 * k + i)
    return tmp_path


def folders(root, **changes):
    return ImportConfig(root / "out", *(root / kind for kind in KINDS), **changes)


def test_folders_with_matching_names(pictures, capsys):
    save(pictures / "content" / "alone.png", 99)
    import_pictures(folders(pictures, shard_size=2))
    assert "skipped content alone.png: not in all folders" in capsys.readouterr().err
    dataset = TripletDataset(pictures / "out")
    assert dataset.verify() == []
    assert dataset.content_ids == ["1.bmp", "2.bmp", "deep/3.bmp"]
    values = [[picture[0, 0, 0] for picture in triplet[:3]] for triplet in dataset]
    assert values == [[0, 10, 20], [1, 11, 21], [2, 12, 22]]
    assert dataset[0].content.shape == (16, 16, 3)  # the shorter side of the first stylised one


def test_continued_import_ends_in_the_same_bytes(pictures):
    import_pictures(folders(pictures, shard_size=1))
    shard = pictures / "out" / "pairs-00001"
    before = {path.name: path.read_bytes() for path in shard.iterdir()}
    for path in shard.iterdir():
        path.unlink()
    shard.rmdir()
    import_pictures(folders(pictures, shard_size=1))
    assert {path.name: path.read_bytes() for path in shard.iterdir()} == before
    save(pictures / "stylised" / "2.png", 200)
    with pytest.raises(InputError, match=r"settings\.stylised_sha256 is"):
        import_pictures(folders(pictures, shard_size=1))


def test_csv_stores_shared_pictures_once(pictures):
    table = pictures / "table.csv"
    lines = ["style,stylised,content"]
    lines += [f"style/{s}.bmp,stylised/1.png,content/{c}.bmp" for c in (1, 2) for s in (1, 2)]
    table.write_text("\n".join(lines))
    import_pictures(ImportConfig(pictures / "out", csv=table, size=8))
    dataset = TripletDataset(pictures / "out")
    assert dataset.pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert dataset.content_ids == ["content/1.bmp", "content/2.bmp"]
    expected = read_image(pictures / "stylised" / "1.png")[:8, :8]
    np.testing.assert_array_equal(dataset[3].stylised, expected)


def test_pictures_that_cannot_be_used(pictures):
    (pictures / "stylised" / "2.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2\.png.*; repair it, or leave its triplet out"):
        import_pictures(folders(pictures))
    save(pictures / "content" / "1.png", 0)
    with pytest.raises(InputError, match=r"several pictures are called 1\.\*; keep one"):
        import_pictures(folders(pictures))


def test_folders_without_shared_names(tmp_path):
    for i, kind in enumerate(KINDS):
        save(tmp_path / kind / f"{i}.png", 0)
    with pytest.raises(InputError, match="the three folders share no names"):
        import_pictures(folders(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("content,style\na,b\n", "columns content, style, stylised"),
        ("content,style,stylised\n", "names no triplets"),
        ("\xff\xd8\xff\xe0", "is not a table; expected a CSV file"),
        ("content,style,stylised\na,b\n", "line 2: a column is empty"),
        ("content,style,stylised\na.png,b.png,c.png\n", r"c\.png"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
    table = tmp_path / "table.csv"
    if text is not None:
        table.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        import_pictures(ImportConfig(tmp_path / "out", csv=table))


@pytest.mark.parametrize(("name", "flag"), [("size", "--size"), ("shard_size", "--shard-size")])
def test_sizes_that_make_no_sense(tmp_path, name, flag):
    with pytest.raises(InputError, match=f"{flag} 0: expected at least 1"):
        folders(tmp_path, **{name: 0})


@pytest.mark.parametrize("changes", [{"csv": Path("a.csv")}, {"style": None}])
def test_folders_or_a_table(tmp_path, changes):
    with pytest.raises(InputError, match="either --csv, or the three folders"):
        ImportConfig(**{"out": tmp_path / "out"} | {k: tmp_path for k in KINDS} | changes)
