import json
import os
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from student_jax import STTR
from student_jax.export.export import ExportConfig, export
from student_jax.weights.folder import from_pretrained, open_student, push_to_hub, save_pretrained
from triplets import InputError


@pytest.fixture(scope="module")
def student(tiny_model):
    return STTR(tiny_model, rngs=nnx.Rngs(1))


def test_round_trip_is_exact(student, tmp_path):
    save_pretrained(student, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == student.config
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (student, loaded)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_half_precision_on_disk_is_float32_in_use(student, tmp_path):
    save_pretrained(student, tmp_path, dtype="float16")
    assert {a.dtype for a in load_file(tmp_path / "model.safetensors").values()} == {
        np.dtype("float16")
    }
    for a, b in zip(
        *(jax.tree.leaves(nnx.state(m)) for m in (student, open_student(str(tmp_path)))),
        strict=True,
    ):
        assert b.dtype == np.float32
        # Half a unit in the last place of 11 bits; tiny values are denormal.
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=1e-7)


def test_weights_that_do_not_fit_are_all_named(student, tmp_path):
    save_pretrained(student, tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    arrays["extra"] = arrays.pop("tail.upsamplings.1.bias")
    arrays["decoder_norm.scale"] = arrays["decoder_norm.scale"][:-1]
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as error:
        from_pretrained(tmp_path)
    for fault in (
        "missing: tail.upsamplings.1.bias",
        "unexpected: extra",
        "decoder_norm.scale is (15,)",
    ):
        assert fault in str(error.value)


def test_damaged_files(student, tmp_path):
    save_pretrained(student, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot load a student"):
        from_pretrained(tmp_path)
    save_pretrained(student, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_heads": 0}))
    with pytest.raises(InputError, match="num_heads is 0"):
        from_pretrained(tmp_path)


def header_of(folder):
    """Header and data of a safetensors file."""
    encoded = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(encoded[:8], "little")
    return json.loads(encoded[8:end]), encoded[end:]


def damaged_weights(folder, kind):
    arrays = load_file(folder / "model.safetensors")
    name = min(arrays, key=lambda name: arrays[name].size)
    if kind == "nan":
        arrays[name] = np.full_like(arrays[name], np.nan)
        save_file(arrays, folder / "model.safetensors")
    else:  # a type that NumPy does not have
        header, data = header_of(folder)
        header[name]["dtype"] = "F8_E4M3"
        header[name]["shape"] = [4 * n for n in header[name]["shape"]]
        encoded = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(
            len(encoded).to_bytes(8, "little") + encoded + data
        )


@pytest.mark.parametrize(("kind", "message"), [("nan", "not finite numbers"), ("f8", "F8_E4M3")])
def test_weights_that_are_no_numbers(student, tmp_path, kind, message):
    save_pretrained(student, tmp_path)
    damaged_weights(tmp_path, kind)
    with pytest.raises(InputError, match=rf"cannot load a student from .*{message}"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "expected a JSON object, got list"),
        ({"hidden_dim": 10**9}, "hidden_dim is 1000000000; expected at most 65536"),
        ({"num_decoder_layers": 10**4}, "num_decoder_layers is 10000; expected at most 256"),
        ({"hidden_dim": 4 * 16000, "mlp_dim": 65536}, "wrong shape"),
        ({"content_widths": [256] * 1000}, "content_widths has 1000 entries"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"mlp_dim": "16"}, "mlp_dim is '16'; expected int"),
        ({"student": ["mini"]}, "cannot load"),
    ],
)
def test_configurations_that_no_student_has(student, tmp_path, change, message):
    save_pretrained(student, tmp_path)
    config = tmp_path / "config.json"
    fields = json.loads(config.read_text()) | change if isinstance(change, dict) else change
    config.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path)


def test_a_pipe_is_no_student(student, tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not a regular file"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", '{"data": [], "model": {}}'), ("config.json", "x"), ("manifest.json", "")],
)
def test_a_student_does_not_replace_something_else(student, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="give another folder"):
        save_pretrained(student, tmp_path)
    with pytest.raises(InputError, match="give another folder"):
        export(ExportConfig(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_folder_that_is_no_student(tmp_path):
    with pytest.raises(InputError, match="not the workdir of a training run"):
        open_student(str(tmp_path))


def test_the_model_card_of_a_user_stays(student, tmp_path):
    save_pretrained(student, tmp_path)
    card = tmp_path / "README.md"
    assert "pipeline_tag: image-to-image" in card.read_text()
    card.write_text("mine")
    save_pretrained(student, tmp_path)
    assert card.read_text() == "mine"


def test_hub(student, tmp_path, monkeypatch):
    """Push and load with the Hub's functions replaced: what is asked of them is checked."""
    remote = tmp_path / "remote"
    pushed = []

    class HfApi:
        def create_repo(self, repo, private, exist_ok):
            assert (repo, private, exist_ok) == ("someone/student", True, True)

        def upload_folder(self, repo_id, folder_path):
            pushed.append(repo_id)
            shutil.copytree(folder_path, remote)
            return "https://address"

    def snapshot_download(repo, revision, allow_patterns, local_files_only):
        assert (repo, revision) == ("someone/student", "v1")
        assert not any("*" in pattern for pattern in allow_patterns)  # no pickles
        return str(remote)

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        push_to_hub(tmp_path, "someone/student")
    save_pretrained(student, tmp_path / "local")
    assert push_to_hub(tmp_path / "local", "someone/student") == "https://address"
    loaded = open_student("hf://someone/student@v1")
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (student, loaded)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="expected hf://OWNER/NAME"):
        open_student("hf://../etc")
    assert from_pretrained("hf://someone/student@v1").config == student.config


def test_steps_are_those_of_training_runs():
    with pytest.raises(InputError, match='"mini" is a single student without step 5'):
        open_student("mini", 5)


def test_no_network_is_told_at_once(monkeypatch, tmp_path):
    """The client tries again and again; what was downloaded before is found without a network."""

    def unknown(*_):
        raise OSError("Name or service not known")

    asked = []

    def snapshot_download(*_, local_files_only, **__):
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("what the client says of its settings")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        InputError, match="hf://a/b: the Hub cannot be reached, and it is not in the c"
    ):
        open_student("hf://a/b")
    assert asked == [True]


def test_no_network(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    address = r"https://huggingface\.co/a/b/resolve/v1/model\.safetensors"
    # Both spellings; a folder named by mistake is looked for on the Hub, which the message says.
    for name in ("hf://a/b@v1", "a/b@v1"):
        with pytest.raises(InputError, match=rf"hf://a/b@v1: no route; .* {address} .*its path"):
            open_student(name)
