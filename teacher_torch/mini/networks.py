"""The mini teacher's networks: autoencoder, UNet and noise schedule, all of diffusers' classes."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from teacher_torch.mini.condition import WIDTH

LATENT_CHANNELS = 16


def build_autoencoder() -> AutoencoderKL:
    """3.3 M parameters, 16 latent channels at an eighth of the size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        # Without attention the autoencoder is local: the same picture at any size.
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
        # It was trained in bfloat16 and stays small enough for float16.
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """8.5 M parameters; the block structure of Stable Diffusion, so layers 0 to 11 exist.

    Most of the width is where the strokes are, at 32 x 32 latents; the 4 x 4 level has the least.
    """
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 96, 96, 64),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,  # heads; on a CPU the softmax of each costs more than its products
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@torch.no_grad()
def standardise_latents(
    autoencoder: AutoencoderKL, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
) -> None:
    """Change the autoencoder in place: its latents become (latents - mean) / std.

    Both 1 x 1 convolutions about the latents take the change up, so pictures decode as before and
    each channel has mean 0 and deviation 1, as diffusion expects.
    """
    into, out_of = autoencoder.quant_conv, autoencoder.post_quant_conv
    into.weight[: len(mean)] /= std.view(-1, 1, 1, 1)
    into.bias[: len(mean)] = (into.bias[: len(mean)] - mean) / std
    into.bias[len(mean) :] -= 2 * std.log()  # the other half are logarithms of variances
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= std.view(1, -1, 1, 1)
