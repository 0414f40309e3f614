import huggingface_hub
import pytest

from student_jax.weights.hub import Repository, download_weights, parse_repository
from student_jax.weights.published import find_weights
from triplets import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm/vgg19.tv_in1k", Repository("timm/vgg19.tv_in1k", None)),
        ("hf://timm/vgg19.tv_in1k", Repository("timm/vgg19.tv_in1k", None)),
        ("a/b@v1.0", Repository("a/b", "v1.0")),
        ("hf://a/b@refs/pr/1", Repository("a/b", "refs/pr/1")),
        ("mini", None),
        ("a/b/c", None),
        ("../etc", None),
        ("/absolute", None),
        ("folder/weights.safetensors", None),
        ("folder/weights.pth", None),
    ],
)
def test_both_spellings(text, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_repository(text) == expected


def test_a_folder_here_is_a_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert parse_repository("runs/mine") is None
    assert parse_repository("hf://runs/mine") == Repository("runs/mine", None)


@pytest.mark.parametrize("text", ["hf://a", "hf://../etc", "hf://a/b/c", "hf://a/b@"])
def test_what_is_no_repository_is_refused(text):
    with pytest.raises(
        InputError, match="is not a repository of the Hub; expected hf://OWNER/NAME"
    ):
        parse_repository(text)


def test_weights_of_a_revision(monkeypatch, tmp_path):
    """The Hub's function replaced: what is asked of it is checked."""

    def download(name, file, revision, local_files_only):
        assert (name, file) == ("a/b", "model.safetensors")
        if revision != "v1":
            raise OSError("no route\nto host")
        return str(tmp_path / "weights")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for source in ("a/b@v1", "hf://a/b@v1"):
        assert find_weights(source) == tmp_path / "weights"
    address = r"https://huggingface\.co/a/b/resolve/main/model\.safetensors"
    with pytest.raises(InputError, match=rf"cannot download hf://a/b: no route; .* {address}"):
        download_weights(Repository("a/b", None))
