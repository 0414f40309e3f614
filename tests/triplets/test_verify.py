import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_dump import dump, make_writer, stylise, tree

from triplets import DatasetError
from triplets.verify import VerifyConfig, verify


def test_a_whole_dataset(tmp_path, capsys):
    dump(tmp_path / "data")
    verify(VerifyConfig(tmp_path / "data"))
    assert capsys.readouterr().out == (
        "12 triplets, all that were planned; every checksum matches.\n"
    )


def test_missing_and_damaged_shards_are_named(tmp_path, capsys):
    root = dump(tmp_path / "data").root
    shutil.rmtree(root / "pairs-00001")
    array = np.load(root / "pairs-00000" / "stylised.npy", mmap_mode="r+")
    array[0, 0, 0, 0] ^= 1
    array.flush()
    with pytest.raises(DatasetError, match="has 3 faults, listed above; --repair sets"):
        verify(VerifyConfig(root))
    out = capsys.readouterr().out
    assert "pairs-00001 is missing: run the command" in out
    assert "pairs-00000/stylised.npy: its sha256 is" in out
    assert "7 of 12 planned pairs are there" in out


@pytest.mark.parametrize(
    "name", ["pairs-00001/stylised.npy", "pairs-00002/shard.json", "contents.npy", "styles.json"]
)
def test_what_is_damaged_is_set_aside_and_made_anew(tmp_path, name):
    root = dump(tmp_path / "data").root
    whole = tree(root)
    encoded = bytearray((root / name).read_bytes())
    encoded[-20] ^= 1
    (root / name).write_bytes(encoded)
    with pytest.raises(DatasetError, match=r"run the command that wrote the dataset again"):
        verify(VerifyConfig(root, repair=True))
    aside = tree(root / "damaged")
    assert bytes(encoded) in aside.values()
    dump(root)
    shutil.rmtree(root / "damaged")
    assert tree(root) == whole


def test_a_dump_does_not_call_a_damaged_shard_finished(tmp_path):
    root = dump(tmp_path / "data").root
    (root / "pairs-00001" / "stylised.npy").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"damaged: .*00001/stylised.*verify .* --repair sets"):
        dump(root)
    (root / "pairs-00001" / "shard.json").unlink()
    with pytest.raises(DatasetError):
        verify(VerifyConfig(root, repair=True))
    dump(root)
    verify(VerifyConfig(root))


def test_command_fails_for_an_unfinished_dump(tmp_path):
    writer = make_writer(tmp_path / "data")
    writer.write_shard(0, stylise(writer.shard_pairs(0)))
    command = [sys.executable, "-m", "style_distil", "triplets", "verify", str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "pairs-00001 and 1 more shards are missing" in result.stdout
    assert result.stderr.startswith("error: ") and "2 faults" in result.stderr
