"""How much memory StyleID's joint sampling takes."""

from diffusers import AutoencoderKL, UNet2DConditionModel

from teacher_torch.devices import MemoryNeed
from teacher_torch.styleid.config import StyleIDConfig

# Feature maps of the first level (its channels, the latents' size) that are alive at once when one
# row or picture passes: counted on Stable Diffusion 1.5 and 2.1 and the mini model, which agree.
UNET_MAPS = 26
VAE_MAPS = 6

# For the workspaces of kernels and for fragmentation, which a count of tensors does not show.
MARGIN = 1.5


def memory_need(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    config: StyleIDConfig,
    *,
    size_px: int,
    contents: int,
    styles: int,
    pairs: int,
) -> MemoryNeed:
    """The need of sampling a grid of square pictures jointly."""
    channels = unet.config.block_out_channels
    tokens = (size_px // 2 ** (len(vae.config.block_out_channels) - 1)) ** 2
    layers = config.injection_layers
    features = sum(channels[3 - i // 3] * tokens // 4 ** (3 - i // 3) for i in layers)
    trajectories = (contents + styles) * (config.num_steps + 1) + 4 * pairs
    latents = trajectories * unet.config.in_channels * tokens * 4
    row = UNET_MAPS * channels[0] * tokens * unet.dtype.itemsize
    if unet.device.type == "mps":  # there the attention's score matrices stand in memory
        heads = unet.config.attention_head_dim
        row += (heads if isinstance(heads, int) else heads[0]) * tokens**2 * 4
    picture = VAE_MAPS * vae.config.block_out_channels[0] * size_px**2 * vae.dtype.itemsize
    return MemoryNeed(
        weights=sum(p.nbytes for module in (unet, vae) for p in module.parameters()),
        # A content leaves its queries, a style its keys and values.
        step=features * unet.dtype.itemsize * (contents + 2 * styles) + latents,
        row=int(MARGIN * row),
        picture=int(MARGIN * picture),
    )
