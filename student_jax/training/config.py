"""Settings of a training."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from student_jax.student import STUDENTS, StudentConfig, config_to_json
from triplets.cache import DEFAULT_GIB


def _run_only(default: Any) -> Any:
    """A setting that decides where and how a run computes but not what: it may change when the run
    is resumed."""
    return dataclasses.field(default=default, metadata={"run_only": True})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Distil a teacher's triplets into a student; checkpoints and figures go to the workdir."""

    data: tuple[str, ...]
    """Triplet datasets: folders or addresses, such as s3://bucket/folder, that `style-distil dump`
    wrote to, or tfds:NAME:SPLIT."""
    workdir: Path = dataclasses.field(metadata={"run_only": True})
    """Folder for config.json, checkpoints/, samples/, metrics.jsonl, TensorBoard events and
    summary.json."""
    model: StudentConfig
    """The student's architecture."""
    resume: bool = _run_only(False)
    """Continue the run in the workdir exactly where its latest checkpoint is."""
    init_from: str | None = None
    """Start from a student: "mini" (the bundled one), another run's workdir, a folder that
    `style-distil export` or `style-distil weights import` wrote, or OWNER/NAME on the Hugging Face
    Hub."""
    data_weights: tuple[float, ...] = ()
    """How often each of several datasets is drawn from, relative to the others; by default equally
    often, whatever their sizes."""
    validation: str | None = None
    """Triplet dataset to validate on; by default a part of the training data is kept for it."""
    validation_fraction: float = dataclasses.field(
        default=0.1, metadata={"formerly": "held_out_fraction"}
    )
    """Share of the contents and of the styles that is kept for validation without --validation."""
    loss: Literal["L1", "L2", "L3", "perceptual", "texture", "paint"] = "L1"
    """L1 = MSE, L2 = 0.5 MSE + 0.5 Gram, L3 = 0.7 MSE + 0.3 Gram, perceptual = MSE + 0.01 distance
    of features, texture = MSE + 0.1 difference of the amount of texture + 0.1 relative
    Gram distance to the teacher + 0.06 to the style, paint = low band, structure and amount of
    texture of the teacher, distributions of the style's features, and marks that differ from style
    to style (docs/training.md)."""
    without: tuple[str, ...] = ()
    """Terms of the loss to leave out, such as style_gram, to see what they do."""
    features: Literal["vgg16", "vgg19"] = "vgg16"
    """Network whose features are compared by all losses but L1: VGG16 is bundled; VGG19 is
    downloaded once."""
    features_crop: int | None = None
    """Compare features on a random square of this side (px) only; by default on the whole crop,
    which is several times slower on a CPU."""
    vgg19_weights: str = "timm/vgg19.tv_in1k"
    """Repository of the Hugging Face Hub, OWNER/NAME[@REVISION], or file with torchvision's names
    (.safetensors, or .pth where PyTorch is installed)."""
    gram_reduction: Literal["sum", "mean"] = "sum"
    """Reduction of the squared Gram differences of a layer; "mean" is smaller by channels^2."""
    steps: int = 20_000
    """Updates of the parameters."""
    batch_size: int = 8
    """Pictures per step, over all devices of all processes."""
    accumulate: int = 1
    """Parts of a batch that are computed one after the other, to save memory."""
    image_size: int | None = None
    """Reduce larger pictures to this shorter side (px) before crops are cut, in training only:
    colours are learned several times faster from small pictures."""
    crop_size: int = 256
    """Side of the training crops in pixels."""
    learning_rate: float = 1e-4
    """Peak of the schedule."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After a linear warm-up: a cosine to zero, a tenth after two thirds of the steps (as STTR's
    authors), or no change."""
    slow_rate: float = dataclasses.field(default=0.1, metadata={"formerly": "backbone_rate"})
    """Learning rate, relative to the rest, of what a student wants to learn slowly: its
    backbones."""
    warmup_steps: int = 500
    """Steps in which the learning rate grows from zero to its peak."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    clip_norm: float = 0.1
    """Largest global norm of the gradients."""
    ema_decay: float = 0.999
    """Of the averaged parameters, which are validated and used."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters, optimiser and losses stay float32."""
    remat: bool = _run_only(False)
    """Compute parts of the student again in the backward pass, to save memory."""
    checkpoint_every: int = 1000
    """Steps between two validations, each with samples and a checkpoint."""
    validation_pairs: int = 64
    """Largest number of triplets that a validation looks at."""
    seed: int = 0
    """Of the initial parameters, the order of the data, the crops and dropout."""
    log_every: int = _run_only(10)
    """Steps between two lines of metrics."""
    num_workers: int = _run_only(0)
    """Processes that prepare batches; 0 uses threads of this one."""
    cache_dir: Path | None = dataclasses.field(default=None, metadata={"run_only": True})
    """Folder in which files of buckets are kept; by default ~/.cache/style-distil."""
    cache_gib: float = _run_only(DEFAULT_GIB)
    """GiB that such files may take there. If a dataset takes more, its compressed pictures are read
    one by one, each with a request."""
    fsdp: int = _run_only(1)
    """Devices over which each copy of the parameters and of the optimiser is spread."""
    coordinator: str | None = _run_only(None)
    """To train with several processes: HOST:PORT of the first, or "auto" on SLURM, Cloud TPU and
    Open MPI."""
    num_processes: int | None = _run_only(None)
    """How many processes there are; not needed with --coordinator auto."""
    process_id: int | None = _run_only(None)
    """Which of them this is, from 0; not needed with --coordinator auto."""
    peak_tflops: float | None = _run_only(None)
    """Peak rate of a device, to print the share that is reached; known for common devices."""
    wandb: str | None = _run_only(None)
    """Project in Weights & Biases to send figures to."""

    def __post_init__(self):
        positive = ("steps", "batch_size", "accumulate", "crop_size", "learning_rate", "clip_norm")
        for name in (*positive, "checkpoint_every", "validation_pairs", "log_every", "fsdp"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("slow_rate", "warmup_steps", "weight_decay", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("validation_fraction", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0, below 1")
        if self.image_size is not None and self.image_size < self.crop_size:
            raise ValueError(
                f"image_size is {self.image_size}; expected at least crop_size ({self.crop_size})"
            )
        # VGG halves its input three times.
        if self.features_crop is not None and self.features_crop < 8:
            raise ValueError(f"features_crop is {self.features_crop}; expected at least 8")
        for name in ("content_stride", "style_stride"):
            stride = getattr(self.model, name)
            if self.crop_size % stride:
                raise ValueError(
                    f"crop_size is {self.crop_size}; this student needs a multiple of {stride}"
                )
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; expected fewer than steps ({self.steps})"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size is {self.batch_size}; expected a multiple of accumulate "
                f"({self.accumulate})"
            )
        if self.data_weights and (
            len(self.data_weights) != len(self.data) or min(self.data_weights) <= 0
        ):
            raise ValueError(
                f"data_weights is {self.data_weights}; expected a positive number for each of "
                f"{len(self.data)} datasets"
            )
        processes = (self.num_processes, self.process_id)
        given = self.coordinator is not None and self.coordinator != "auto"
        if any((value is not None) != given for value in processes):
            raise ValueError(
                "coordinator HOST:PORT, num_processes and process_id are given together, or none "
                "of them, or coordinator auto alone"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values; the student's with its name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}
        return plain | {
            "model": config_to_json(self.model),
            "workdir": str(self.workdir),
            "cache_dir": None if self.cache_dir is None else str(self.cache_dir),
        }

    @classmethod
    def mini(cls, data: tuple[str, ...], workdir: Path) -> "TrainConfig":
        """The mini student from scratch, light enough for a CPU.

        `style-distil train mini --data TRIPLETS --workdir RUN --steps 4000 --warmup-steps 400
        --crop-size 96 --ema-decay 0.98` takes 15 minutes on one core of an AMD EPYC and reaches a
        squared error of 0.0045 to the teacher on test pictures (docs/experiments/losses.md).
        """
        return cls(
            data,
            workdir,
            STUDENTS["mini"].config(),
            features_crop=128,
            learning_rate=1e-3,
            slow_rate=1.0,
            clip_norm=1.0,
        )

    @classmethod
    def modulated(cls, data: tuple[str, ...], workdir: Path) -> "TrainConfig":
        """The modulated student from scratch, with the objective that paints."""
        return cls(
            data,
            workdir,
            STUDENTS["modulated"].config(),
            loss="paint",
            crop_size=128,
            batch_size=4,
            learning_rate=1e-3,
            slow_rate=1.0,
            clip_norm=1.0,
        )

    @classmethod
    def reference(cls, data: tuple[str, ...], workdir: Path) -> "TrainConfig":
        """The student of the STTR paper with its authors' rates, for a GPU or TPU.

        `style-distil train reference --data TRIPLETS --workdir RUN --init-from IMAGENET`. Not yet
        trained to its end; on two CPU cores a step of one triplet of 256 px takes 0.99 s
        (benchmarks/RESULTS.md).
        """
        return cls(data, workdir, STUDENTS["sttr"].config(), steps=200_000)
