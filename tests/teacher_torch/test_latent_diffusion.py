import pytest
import torch

from teacher_torch.latent_diffusion import load_components
from triplets import InputError


@pytest.mark.parametrize("variant", ["full", "fp16"])
def test_pipeline_folder_gives_networks_and_null_text(pipeline_folder, components, variant):
    root, null_text = pipeline_folder
    loaded = load_components(str(root / variant))
    assert loaded.weights_sha256() == components.weights_sha256()
    torch.testing.assert_close(loaded.null_text_embedding, null_text)
    assert loaded.scheduler.config.steps_offset == 1
    assert loaded.native_size == 64


def test_dtype_applies_to_the_networks(model_folder, components):
    half = load_components(str(model_folder), dtype=torch.float16)
    assert half.unet.dtype == half.vae.dtype == half.null_text_embedding.dtype == torch.float16
    assert half.weights_sha256() != components.weights_sha256()


def test_path_that_does_not_exist():
    with pytest.raises(InputError, match=r'"\./models/sd": no such folder; expected "mini"'):
        load_components("./models/sd")


def test_folder_that_holds_no_model(tmp_path):
    with pytest.raises(InputError, match=f'cannot load a model from "{tmp_path}"'):
        load_components(str(tmp_path))


def test_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError) as error:
        load_components("nobody/no-such-model")
    message = str(error.value)
    assert "https://huggingface.co/nobody/no-such-model" in message and "--model PATH" in message
    assert "\n" not in message
