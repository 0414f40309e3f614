"""Pre-training of the mini teacher: a small latent diffusion model, from two folders of pictures.

Stage 1 trains the autoencoder (8x downsampling) on crops: L1 + perceptual distance + KL.
Stage 2 encodes a pool of crops and trains the UNet on their latents: v-prediction (Salimans & Ho,
2022, eq. 10), one fixed null-text embedding. Both keep an exponential moving average, checkpoint
themselves in the workdir and continue from there; each training sample is a function of
(seed, stage, index), so a continued run sees what an unbroken one would.
"""

import itertools
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Float16
from PIL import Image, ImageEnhance
from pytorch_optimizer import Muon
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from teacher_torch.devices import open_device
from teacher_torch.mini.perceptual import VGG16, feature_distance
from triplets import InputError, read_image, training_files
from triplets.atomic import atomic_write, make_folder

NULL_TEXT_SEED = 0
NULL_TEXT_SHAPE = (1, 1, 64)


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of the mini teacher's pre-training."""

    photos: Path
    """Folder of photos."""
    paintings: Path
    """Folder of paintings; half of all training samples come from here."""
    workdir: Path = Path("runs/mini_teacher")
    """Checkpoints and metrics; an interrupted run continues from here."""
    out: Path = Path("runs/mini_teacher/model")
    """The finished model: a diffusers folder with float16 weights."""
    image_size: int = 256
    """Native size in pixels of the diffusion model."""
    autoencoder_steps: int = 5000
    autoencoder_batch: int = 6
    autoencoder_crop: int = 128
    """Side in pixels of the autoencoder's training crops; it is convolutional, so small ones do."""
    autoencoder_lr: float = 6e-3
    perceptual_weight: float = 0.1
    kl_weight: float = 1e-3
    latent_pool: int = 12_000
    """Augmented crops that are encoded once; encoding anew at each step would cost a third more."""
    unet_steps: int = 6000
    unet_batch: int = 16
    unet_lr: float = 6e-3
    ema_decay: float = 0.99
    """Short, since the schedule ends at a rate of zero: at 0.999 the average was 0.7 dB behind."""
    checkpoint_every: int = 250
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self):
        sizes = ("image_size", "autoencoder_crop", "latent_pool", "checkpoint_every")
        autoencoder = ("autoencoder_steps", "autoencoder_batch", "autoencoder_lr")
        for name in (*sizes, *autoencoder, "unet_steps", "unet_batch", "unet_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        # The autoencoder halves its pictures three times, and the UNet its latents.
        for name, multiple in (("image_size", 64), ("autoencoder_crop", 8)):
            if getattr(self, name) % multiple:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a multiple of {multiple}"
                )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more")


def build_autoencoder() -> AutoencoderKL:
    """3.1 M parameters, 16 latent channels at an eighth of the size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 96, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        # Without attention the autoencoder is local: the same picture at any size.
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
    )


def build_unet() -> UNet2DConditionModel:
    """7.9 M parameters; the block structure of Stable Diffusion, so layers 6 to 11 exist."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=16,
        out_channels=16,
        block_out_channels=(64, 96, 96, 96),
        layers_per_block=2,
        cross_attention_dim=NULL_TEXT_SHAPE[-1],
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


def null_text_embedding() -> Float[Tensor, "1 n d"]:
    """The one text condition that the mini teacher knows: a fixed normal draw."""
    return torch.randn(NULL_TEXT_SHAPE, generator=torch.Generator().manual_seed(NULL_TEXT_SEED))


class AugmentedCrops(Dataset):
    """Endless augmented squares, float [3 size size] in [-1, 1]; each a function of (seed, index).

    Photos and paintings alternate. A square of at least `min_scale` of the shorter side is cut,
    resized, mirrored half of the time, and its brightness, contrast and saturation vary mildly.

    Raises:
        InputError: a folder without pictures to train on.
    """

    def __init__(self, folders: tuple[Path, ...], size: int, min_scale: float, seed: tuple):
        self.groups = [training_files(folder) for folder in folders]
        self.size, self.min_scale, self.seed = size, min_scale, seed

    def __getitem__(self, index: int) -> Float[Tensor, "3 size size"]:
        rng = np.random.default_rng((*self.seed, index))
        group = self.groups[index % len(self.groups)]
        image = Image.fromarray(read_image(group[rng.integers(len(group))]))
        side = int(min(image.size) * rng.uniform(self.min_scale, 1.0))
        left = int(rng.integers(image.width - side + 1))
        top = int(rng.integers(image.height - side + 1))
        image = image.resize(
            (self.size, self.size), Image.LANCZOS, box=(left, top, left + side, top + side)
        )
        if rng.random() < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(rng.uniform(0.8, 1.2))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def make_optimizer(model: nn.Module, lr: float) -> Muon:
    """Muon (Jordan et al., 2024) for weight matrices and kernels, AdamW for biases and scales.

    On these networks 150 steps of it bring what AdamW needs many times as many for.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return Muon(
        [
            {"params": matrices, "lr": lr, "use_muon": True},
            {"params": vectors, "lr": 1e-3, "betas": (0.9, 0.99), "use_muon": False},
        ]
    )


def learning_rate_factor(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a half cosine that ends at 0 with the last of `steps` steps."""
    return min(step / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))


def train_stage(
    name: str,
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Tensor, torch.Generator], dict[str, Tensor]],
    dataset: Dataset,
    *,
    steps: int,
    batch: int,
    lr: float,
    config: PretrainConfig,
) -> nn.Module:
    """Train `model` on a warm-up and cosine schedule; return its moving average.

    `loss_fn(model, samples of the dataset, generator)` returns named terms; they are summed.
    """
    device = torch.device(config.device)
    model.to(device).train()
    ema = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
    )
    optimizer = make_optimizer(model, lr)
    peaks = [group["lr"] for group in optimizer.param_groups]
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    checkpoint, start = config.workdir / f"{name}.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(saved[key])
        start = saved["step"]

    def save(step: int):
        state = {key: part.state_dict() for key, part in parts.items()} | {"step": step}
        partial = checkpoint.with_suffix(".tmp")
        torch.save(state, partial)
        os.replace(partial, checkpoint)

    loader = DataLoader(
        dataset, batch_size=batch, sampler=range(start * batch, steps * batch), num_workers=1
    )
    means: dict[str, float] = {}
    metrics = (config.workdir / f"{name}.jsonl").open("a")
    bar = tqdm(loader, desc=name, total=steps, initial=start, unit="step", smoothing=0.05)
    for step, samples in enumerate(bar, start=start + 1):
        generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
        with torch.autocast(device.type, torch.bfloat16):
            terms = loss_fn(model, samples.to(device), generator)
        loss = torch.stack(list(terms.values())).sum()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update_parameters(model)
        for key, value in terms.items():
            means[key] = 0.98 * means.get(key, value.item()) + 0.02 * value.item()
        if step % 25 == 0:
            bar.set_postfix({key: f"{value:.4f}" for key, value in means.items()})
        if step % config.checkpoint_every == 0 or step == steps:
            save(step)
            print(json.dumps({"step": step, **means}), file=metrics, flush=True)
    metrics.close()
    return ema.module.eval().requires_grad_(False)


def autoencoder_loss(
    vgg: VGG16, config: PretrainConfig
) -> Callable[[nn.Module, Tensor, torch.Generator], dict[str, Tensor]]:
    """L1 + perceptual distance + KL to the unit normal, each a mean over its elements."""

    def loss(autoencoder, images, generator):
        posterior = autoencoder.encode(images).latent_dist
        latents = posterior.sample(generator)
        reconstruction = autoencoder.decode(latents).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        terms = {
            "l1": (reconstruction.float() - images).abs().mean(),
            "kl": config.kl_weight * kl,
        }
        if not config.perceptual_weight:
            return terms
        # VGG16 costs more than the autoencoder itself; a third of the batch steers it as well.
        some = slice(max(1, len(images) // 3))
        with torch.no_grad():
            target = vgg(images[some] / 2 + 0.5)
        distance = feature_distance(vgg(reconstruction[some] / 2 + 0.5), target)
        return terms | {"perceptual": config.perceptual_weight * distance}

    return loss


class LatentPool(Dataset):
    """Endless draws from encoded crops, float [c h w] of unit deviation; a function of the index.

    The pool is made once, from the first `config.latent_pool` crops, and kept in the workdir.
    """

    def __init__(self, autoencoder: AutoencoderKL, crops: Dataset, config: PretrainConfig):
        path = config.workdir / "latents.npy"
        if not path.exists():
            with atomic_write(path) as file:
                np.save(file, encode_crops(autoencoder, crops, config))
        self.latents = np.load(path, mmap_mode="r", allow_pickle=False)
        self.scale = 1 / float(self.latents[:256].std(dtype=np.float64))
        self.seed = config.seed

    def __getitem__(self, index: int) -> Float[Tensor, "c h w"]:
        row = np.random.default_rng((self.seed, 3, index)).integers(len(self.latents))
        return torch.from_numpy(self.latents[row].astype(np.float32)) * self.scale


@torch.inference_mode()
def encode_crops(
    autoencoder: AutoencoderKL, crops: Dataset, config: PretrainConfig
) -> Float16[np.ndarray, "n c h w"]:
    """Unscaled latents, the modes of their posteriors, of the first crops."""
    loader = DataLoader(crops, batch_size=16, sampler=range(config.latent_pool), num_workers=1)
    bar = tqdm(loader, desc="encoding", total=-(-config.latent_pool // 16), unit="batch")
    latents = []
    for images in bar:
        with torch.autocast(config.device, torch.bfloat16):
            mode = autoencoder.encode(images.to(config.device)).latent_dist.mode()
        latents.append(mode.float().cpu().numpy().astype(np.float16))
    return np.concatenate(latents)


def diffusion_loss(
    scheduler: DDIMScheduler,
) -> Callable[[nn.Module, Tensor, torch.Generator], dict[str, Tensor]]:
    """Mean squared error of the velocity v = sqrt(a) eps - sqrt(1 - a) x at uniform timesteps."""
    null_text = null_text_embedding()

    def loss(unet, latents, generator):
        options = {"generator": generator, "device": latents.device}
        noise = torch.randn(latents.shape, **options)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), **options)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        condition = null_text.to(latents.device).expand(len(latents), -1, -1)
        velocity = unet(noisy, timesteps, condition).sample.float()
        target = scheduler.get_velocity(latents, noise, timesteps)
        return {"v": (velocity - target).square().mean()}

    return loss


def save_model(
    out: Path, unet: nn.Module, autoencoder: AutoencoderKL, scheduler: DDIMScheduler
) -> None:
    """Write a diffusers folder with float16 safetensors and the null-text embedding."""
    autoencoder.half().save_pretrained(out / "vae")
    unet.half().save_pretrained(out / "unet")
    scheduler.save_pretrained(out / "scheduler")
    save_file({"null_text": null_text_embedding()}, out / "null_text.safetensors")


def check_settings(config: PretrainConfig) -> None:
    """Record the settings of a new workdir; refuse to continue one with others.

    Raises:
        InputError: names the first setting that differs.
    """
    path = config.workdir / "config.json"
    given = json.loads(json.dumps(asdict(config), default=str))
    if path.exists():
        recorded = json.loads(path.read_text())
        for name in given:
            where_only = name in ("workdir", "out", "checkpoint_every", "device")
            if not where_only and recorded.get(name) != given[name]:
                raise InputError(
                    f'the training in "{config.workdir}" has --{name.replace("_", "-")} '
                    f"{recorded.get(name)}, not {given[name]}: continue it with the same settings, "
                    "or give another --workdir."
                )
    with atomic_write(path) as file:
        file.write(json.dumps(given, indent=2).encode())


def pretrain(config: PretrainConfig) -> None:
    """Train both stages, or what is left of them, and write the model to `config.out`.

    Raises:
        InputError: a folder, a picture or a device that cannot be used, or a workdir of other
            settings.
    """
    open_device(config.device)
    # Read before anything is written: what cannot be used leaves nothing behind, and a damaged
    # picture is found now instead of hours later.
    folders = (config.photos, config.paintings)
    small_crops = AugmentedCrops(folders, config.autoencoder_crop, 0.5, (config.seed, 1))
    crops = AugmentedCrops(folders, config.image_size, 0.6, (config.seed, 2))
    for file in tqdm([*itertools.chain(*crops.groups)], desc="pictures", unit="picture"):
        read_image(file)
    make_folder(config.workdir)
    check_settings(config)
    torch.manual_seed(config.seed)
    autoencoder = train_stage(
        "autoencoder",
        build_autoencoder(),
        autoencoder_loss(VGG16().to(config.device), config),
        small_crops,
        steps=config.autoencoder_steps,
        batch=config.autoencoder_batch,
        lr=config.autoencoder_lr,
        config=config,
    )
    pool = LatentPool(autoencoder, crops, config)
    autoencoder.register_to_config(scaling_factor=pool.scale)
    scheduler = build_scheduler()
    unet = train_stage(
        "unet",
        build_unet(),
        diffusion_loss(scheduler),
        pool,
        steps=config.unet_steps,
        batch=config.unet_batch,
        lr=config.unet_lr,
        config=config,
    )
    save_model(config.out, unet, autoencoder, scheduler)
