import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from teacher_torch.latent_diffusion import load_components
from triplets import InputError


@pytest.fixture(scope="module")
def pipeline_folder(components, tmp_path_factory):
    """A complete Stable Diffusion pipeline, tokenizer and text encoder included, saved locally."""
    root = tmp_path_factory.mktemp("pipeline")
    letters = [chr(c) for c in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (root / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(root / "vocab.json"), str(root / "merges.txt"), model_max_length=77
    )
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    pipeline = StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=components.unet,
        scheduler=components.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(root / "full")
    pipeline.save_pretrained(root / "fp16", variant="fp16")
    tokens = tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
    return root, text_encoder(tokens)[0].detach()


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
