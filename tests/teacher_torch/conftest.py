import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from teacher_torch.latent_diffusion import load_components


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random Stable Diffusion of the smallest size, as a diffusers folder without text parts."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("teacher") / "model"
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=2,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        force_upcast=False,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    unet.save_pretrained(root / "unet")
    vae.save_pretrained(root / "vae")
    scheduler.save_pretrained(root / "scheduler")
    save_file({"null_text": torch.randn(1, 3, 8)}, root / "null_text.safetensors")
    return root


@pytest.fixture(scope="session")
def components(model_folder):
    return load_components(str(model_folder))
