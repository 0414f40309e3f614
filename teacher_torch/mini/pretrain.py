"""Pre-training of the mini teacher: a small latent diffusion model, from two folders of pictures.

Stage 1 trains the autoencoder (8x downsampling) on crops: L1 + perceptual distance + KL.
Stage 2 encodes a pool of crops and trains the UNet on their latents: v-prediction (Salimans & Ho,
2022, eq. 10), conditioned on the VGG16 statistics of each crop, in a tenth of the rows on nothing.
Both keep an exponential moving average, checkpoint themselves in the workdir and continue from
there; each training sample is a function of (seed, stage, index), so a continued run sees what an
unbroken one would. The learning rate stays constant until the last fifth, hence a longer training
can take up a shorter one where its rate began to fall. Both stages can begin with the networks of
another model.
"""

import copy
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from pytorch_optimizer import Muon
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from teacher_torch.devices import open_device
from teacher_torch.latent_diffusion import NULL_TEXT, Components, load_components
from teacher_torch.mini.checks import UNetCheck, check_autoencoder, load_crops
from teacher_torch.mini.condition import WIDTH, PictureCondition, null_condition
from teacher_torch.mini.crops import NativeCrops
from teacher_torch.mini.latents import LatentPool
from teacher_torch.mini.networks import (
    build_autoencoder,
    build_scheduler,
    build_unet,
    standardise_latents,
)
from teacher_torch.mini.perceptual import VGG16, feature_distance
from triplets import InputError, read_image, test_files
from triplets.atomic import atomic_write, make_folder

DECAY = 0.2
"""Share of a stage's steps, at its end, in which the learning rate falls to 0."""


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of the mini teacher's pre-training."""

    photos: Path
    """Folder of photos. The tenth that a hash of the names holds out is only measured on."""
    paintings: Path
    """Folder of paintings at their own resolution; half of all training samples come from here."""
    artists: Path | None = None
    """CSV table with the columns "file" and "artist": paintings are then drawn evenly by artist."""
    workdir: Path = Path("runs/mini_teacher")
    """Checkpoints, metrics and sheets; an interrupted run continues from here."""
    init_from: Path | None = None
    """A model to begin with, such as "teacher_torch/mini"; its latents keep their scale."""
    out: Path = Path("runs/mini_teacher/model")
    """The model: a diffusers folder with float16 weights, renewed at each evaluation."""
    image_size: int = 256
    """Native size in pixels of the diffusion model."""
    min_scale: float = 0.7
    """Pictures are reduced to this share of their native scale at most."""
    autoencoder_steps: int = 6000
    """A continued run may have more, as long as no latents are encoded. 0 keeps the autoencoder of
    --init-from."""
    autoencoder_batch: int = 8
    autoencoder_crop: int = 128
    """Side in pixels of the autoencoder's training crops; it is convolutional, so small ones do."""
    autoencoder_lr: float = 6e-3
    perceptual_weight: float = 0.1
    kl_weight: float = 1e-3
    latent_pool: int = 12_288
    """Augmented crops that are encoded once. A continued run may have more."""
    unet_steps: int = 40_000
    """A continued run may have more; it takes up the training where its rate began to fall."""
    unet_batch: int = 16
    unet_lr: float = 6e-3
    null_share: float = 0.1
    """Share of the rows that are trained without a condition."""
    ema_decay: float = 0.999
    checkpoint_every: int = 50
    evaluate_every: int = 1000
    evaluation_pictures: int = 32
    """Held-out photos, and held-out paintings, that are measured on."""
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the networks' arithmetic. Processors without bfloat16 units are faster in float32."""

    def __post_init__(self):
        if self.autoencoder_steps < 0 or (self.autoencoder_steps == 0 and self.init_from is None):
            raise ValueError(
                f"autoencoder_steps is {self.autoencoder_steps}; expected more than 0, or 0 with "
                "--init-from"
            )
        sizes = ("image_size", "autoencoder_crop", "latent_pool", "checkpoint_every", "min_scale")
        autoencoder = ("autoencoder_batch", "autoencoder_lr")
        evaluation = ("evaluate_every", "evaluation_pictures")
        for name in (*sizes, *autoencoder, *evaluation, "unet_steps", "unet_batch", "unet_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        # The autoencoder halves its pictures three times, and the UNet its latents.
        for name, multiple in (("image_size", 64), ("autoencoder_crop", 8)):
            if getattr(self, name) % multiple:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a multiple of {multiple}"
                )
        for name in ("min_scale", "null_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more")


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


def decay_start(steps: int) -> int:
    """The last step at the full learning rate."""
    return steps - round(DECAY * steps)


def learning_rate_factor(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, 1, and a straight fall to 0 at the end (Hu et al., 2024, "MiniCPM").

    The last step is not at 0 but one step's worth above.
    """
    falling = (steps - step + 1) / (steps - decay_start(steps) + 1)
    return min(step / warmup, 1.0, falling)


class Checkpoints:
    """A stage's state in the workdir: the latest, and the last one at the full learning rate."""

    def __init__(self, workdir: Path, name: str, parts: dict, steps: int):
        self.latest = workdir / f"{name}.pt"
        self.full_rate = workdir / f"{name}.full_rate.pt"
        self.name, self.parts, self.steps = name, parts, steps

    def save(self, step: int) -> None:
        """Replace the latest checkpoint, and the other one where the rate begins to fall."""
        state = {key: part.state_dict() for key, part in self.parts.items()}
        state |= {"step": step, "steps": self.steps}
        # The copy comes first: after an interruption between the two it is written again.
        copies = [self.full_rate] if step == decay_start(self.steps) else []
        for path in (*copies, self.latest):
            with atomic_write(path) as file:
                torch.save(state, file)

    def load(self, device: torch.device) -> int:
        """Restore the latest state that an unbroken training of `steps` would have passed.

        Returns:
            Its step, 0 where there is none.

        Raises:
            InputError: the training is past the step at which its rate should have begun to fall.
        """
        if not self.latest.exists():
            return 0
        for path in (self.latest, self.full_rate):
            if not path.exists():
                continue
            saved = torch.load(path, map_location=device, weights_only=True)
            began = min(decay_start(self.steps), decay_start(saved["steps"]))
            if saved["steps"] == self.steps or saved["step"] <= began:
                for key, part in self.parts.items():
                    part.load_state_dict(saved[key])
                return saved["step"]
        enough = next(n for n in itertools.count(saved["step"]) if decay_start(n) >= saved["step"])
        raise InputError(
            f"the {self.name} is at step {saved['step']} of its full learning rate, too late to "
            f"end at --{self.name}-steps {self.steps}; give {enough} or more."
        )


def train_stage(
    name: str,
    model: nn.Module,
    loss_fn: Callable[..., dict[str, Tensor]],
    dataset: Dataset,
    evaluate: Callable[[nn.Module, int], dict[str, float]],
    *,
    steps: int,
    batch: int,
    lr: float,
    config: PretrainConfig,
) -> nn.Module:
    """Train `model`; return its moving average.

    `loss_fn(model, generator, *samples of the dataset)` returns named terms; they are summed.
    `evaluate(moving average, step)` returns figures for the metrics.
    """
    device = torch.device(config.device)
    # On processors with bfloat16 units, kernels for channels-last pictures are twice as fast.
    model.to(device).to(memory_format=torch.channels_last).train()
    ema = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
    )
    ema.eval().requires_grad_(False)
    optimizer = make_optimizer(model, lr)
    peaks = [group["lr"] for group in optimizer.param_groups]
    checkpoints = Checkpoints(
        config.workdir, name, {"model": model, "ema": ema, "optimizer": optimizer}, steps
    )
    start = checkpoints.load(device)
    loader = DataLoader(
        dataset, batch_size=batch, sampler=range(start * batch, steps * batch), num_workers=1
    )
    sums: dict[str, float] = {}
    bar = tqdm(loader, desc=name, total=steps, initial=start, unit="step", mininterval=10)
    for step, samples in enumerate(bar, start=start + 1):
        generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
        samples = samples if isinstance(samples, list) else [samples]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            terms = loss_fn(model, generator, *(s.to(device) for s in samples))
        loss = torch.stack(list(terms.values())).sum()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update_parameters(model)
        for key, value in terms.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        if step % config.checkpoint_every and step not in (steps, decay_start(steps)):
            continue
        passed = step - start
        record = {"step": step, **{key: value / passed for key, value in sums.items()}}
        if not all(map(torch.isfinite, map(torch.tensor, record.values()))):
            raise FloatingPointError(f"{name}: not a number before step {step}: {record}")
        checkpoints.save(step)
        if step // config.evaluate_every > start // config.evaluate_every or step == steps:
            record |= evaluate(ema.module, step)
        bar.set_postfix({key: f"{record[key]:.4f}" for key in terms})
        with (config.workdir / f"{name}.jsonl").open("a") as metrics:
            print(json.dumps(record), file=metrics)
        sums, start = {}, step
    return ema.module


def autoencoder_loss(vgg: VGG16, config: PretrainConfig) -> Callable[..., dict[str, Tensor]]:
    """L1 + perceptual distance + KL to the unit normal, each a mean over its elements."""

    def loss(autoencoder, generator, images):
        images = images.contiguous(memory_format=torch.channels_last)
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


def diffusion_loss(
    scheduler: DDIMScheduler, condition: PictureCondition, null_share: float
) -> Callable[..., dict[str, Tensor]]:
    """Mean squared error of the velocity v = sqrt(a) eps - sqrt(1 - a) x at uniform timesteps.

    Each row has its picture's condition, or with probability `null_share` the null condition.
    """
    null = null_condition()

    def loss(unet, generator, latents, statistics):
        options = {"generator": generator, "device": latents.device}
        latents = latents.contiguous(memory_format=torch.channels_last)
        noise = torch.randn(latents.shape, **options)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), **options)
        told = torch.rand((len(latents), 1, 1), **options) >= null_share
        tokens = torch.where(told, condition(statistics), null.to(latents.device))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        velocity = unet(noisy, timesteps, tokens).sample.float()
        target = scheduler.get_velocity(latents, noise, timesteps)
        return {"v": (velocity - target).square().mean()}

    return loss


def save_model(
    out: Path,
    unet: nn.Module,
    autoencoder: AutoencoderKL,
    scheduler: DDIMScheduler,
    condition: PictureCondition,
) -> None:
    """Write a diffusers folder with float16 safetensors, the null condition and the condition's.

    It is complete before it takes the place of the one before.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, model in (("vae", autoencoder), ("unet", unet)):
        model = copy.deepcopy(model).half().to(memory_format=torch.contiguous_format)
        model.save_pretrained(partial / name)
    scheduler.save_pretrained(partial / "scheduler")
    save_file({"null_text": null_condition()}, partial / "null_text.safetensors")
    condition.save(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)


def load_initial(folder: Path) -> Components:
    """A model to go on with, in float32; the scale of its latents has become the autoencoder's.

    Raises:
        InputError: there is no model, or its UNet is of another kind than the mini teacher's.
    """
    if not (folder / NULL_TEXT).is_file():
        raise InputError(
            f'--init-from "{folder}" holds no {NULL_TEXT}; expected a model that this command '
            'made, or "teacher_torch/mini".'
        )
    components = load_components(str(folder))
    expected, config = build_scheduler().config, components.scheduler.config
    unet = components.unet.config
    given = [unet.cross_attention_dim, unet.in_channels, config.prediction_type]
    wanted = [WIDTH, components.vae.config.latent_channels, expected.prediction_type]
    if given != wanted:
        raise InputError(
            f'--init-from "{folder}" has conditions of {given[0]} numbers, {given[1]} input '
            f"channels and {given[2]}; expected {wanted[0]}, {wanted[1]} and {wanted[2]}, as the "
            "mini teacher has."
        )
    scale = torch.full((unet.in_channels,), 1 / components.vae.config.scaling_factor)
    standardise_latents(components.vae, torch.zeros_like(scale), scale)
    components.vae.register_to_config(scaling_factor=1.0, force_upcast=False)
    for module in (components.unet, components.vae):
        module.requires_grad_(True)
        module.register_to_config(_name_or_path="")  # published models tell no local paths
    return components


def check_settings(config: PretrainConfig) -> None:
    """Record the settings of a new workdir; refuse to continue one with others.

    Raises:
        InputError: names the first setting that differs.
    """
    path = config.workdir / "config.json"
    given = json.loads(json.dumps(asdict(config), default=str))
    free = ("workdir", "out", "checkpoint_every", "evaluate_every", "evaluation_pictures", "device")
    # Those that `Checkpoints` and `LatentPool` can carry on with.
    longer = ["unet_steps", "latent_pool"]
    if not (config.workdir / "latents").exists():
        longer.append("autoencoder_steps")
    if path.exists():
        recorded = json.loads(path.read_text())
        for name in given:
            if name not in (*free, *longer) and recorded[name] != given[name]:
                raise InputError(
                    f'the training in "{config.workdir}" has --{name.replace("_", "-")} '
                    f"{recorded[name]}, not {given[name]}: continue it with the same settings, "
                    "or give another --workdir."
                )
    with atomic_write(path) as file:
        file.write(json.dumps(given, indent=2).encode())


def pretrain(config: PretrainConfig) -> None:
    """Train both stages, or what is left of them, and write the model to `config.out`.

    Raises:
        InputError: a folder, a picture, a table, a model or a device that cannot be used, or a
            workdir of other settings.
    """
    open_device(config.device)
    begun = None if config.init_from is None else load_initial(config.init_from)
    # Read before anything is written: what cannot be used leaves nothing behind, and a damaged
    # picture is found now instead of hours later.
    folders = (config.photos, config.paintings, config.artists)
    small_crops, crops = (
        NativeCrops(*folders, size=size, min_scale=config.min_scale, seed=(config.seed, stage))
        for stage, size in ((1, config.autoencoder_crop), (2, config.image_size))
    )
    held_out = [f for folder in folders[:2] for f in test_files(folder)]
    for file in tqdm([*crops.files, *held_out], desc="pictures", unit="picture", mininterval=10):
        read_image(file)
    make_folder(config.workdir)
    check_settings(config)
    size = (config.image_size, config.evaluation_pictures)
    pictures = {name: load_crops(getattr(config, name), *size) for name in ("photos", "paintings")}
    vgg = VGG16().to(config.device)

    torch.manual_seed(config.seed)
    autoencoder = train_stage(
        "autoencoder",
        begun.vae if begun else build_autoencoder(),
        autoencoder_loss(vgg, config),
        small_crops,
        lambda model, step: check_autoencoder(
            model, pictures, config.workdir / f"autoencoder_{step:06}.png"
        ),
        steps=config.autoencoder_steps,
        batch=config.autoencoder_batch,
        lr=config.autoencoder_lr,
        config=config,
    )
    pool = LatentPool(
        config.workdir / "latents",
        autoencoder,
        vgg,
        crops,
        size=config.latent_pool,
        seed=config.seed,
        standardise=begun is None,
        dtype=getattr(torch, config.dtype),
    )
    latent_mean, latent_std, *of_statistics = (m.to(config.device) for m in pool.moments)
    condition = PictureCondition(*of_statistics).to(config.device)
    standardise_latents(autoencoder, latent_mean, latent_std)
    scheduler = build_scheduler()
    corners = load_crops(config.paintings, *size, shift=-1.0)
    check = UNetCheck(autoencoder, condition, vgg, (pictures["paintings"], corners))

    def evaluate(unet: nn.Module, step: int) -> dict[str, float]:
        check.draw(unet, scheduler, config.workdir / f"unet_{step:06}.png")
        save_model(config.out, unet, autoencoder, scheduler, condition)
        return check.figures(unet, scheduler)

    torch.manual_seed(config.seed + 1)
    train_stage(
        "unet",
        begun.unet if begun else build_unet(),
        diffusion_loss(scheduler, condition, config.null_share),
        pool,
        evaluate,
        steps=config.unet_steps,
        batch=config.unet_batch,
        lr=config.unet_lr,
        config=config,
    )
