"""Files stand under their names whole, or not at all; errors name the file that was asked for."""

import errno
import json
import os
from pathlib import Path

import pytest

from triplets.atomic import atomic_path, atomic_write, write_json


def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_another_program_writes_to_a_path_with_the_suffix(tmp_path):
    out = tmp_path / "video.mp4"
    out.write_bytes(b"old")
    with atomic_path(out) as partial:
        assert partial.suffix == ".mp4" and partial.parent == tmp_path
        assert partial.name.startswith(".")  # which `ImageFolder` passes over
        partial.write_bytes(b"new")
        assert out.read_bytes() == b"old"
    assert out.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["video.mp4"]


@pytest.mark.parametrize("error", [ValueError("no frames"), KeyboardInterrupt()])
def test_an_error_in_the_block_keeps_the_old_file(tmp_path, error):
    out = tmp_path / "model.pt"
    out.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_path(out) as partial:
        partial.write_bytes(b"half")
        raise error
    assert out.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_block_that_writes_nothing_names_the_file(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r": '.*model\.pt'"),
        atomic_path(tmp_path / "model.pt"),
    ):
        pass


def test_errors_about_other_files_keep_their_names_and_reasons(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"),
        atomic_write(tmp_path / "a.json"),
    ):
        (tmp_path / "nowhere.jpg").read_bytes()
    with pytest.raises(OSError, match=r"^the network is down$"), atomic_write(tmp_path / "a.json"):
        raise OSError("the network is down")
    assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_json(tmp_path):
    value = {"b": [1, 2.5, None], "a": Path("runs/mini")}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": [1, 2.5, None], "a": "runs/mini"}
    assert text.startswith('{\n  "b": [') and text.endswith("}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", {"array": object()})
    assert os.listdir(tmp_path) == ["a.json"]
