"""Students in formats that other programs read: safetensors, StableHLO, ONNX."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from student_jax.export.onnx_files import onnx_files
from student_jax.export.space import Sdk, write_space
from student_jax.student import Student
from student_jax.students import DEFAULT_STUDENT
from student_jax.weights.folder import check_folder, open_student, push_to_hub, save_pretrained
from triplets import InputError
from triplets.atomic import atomic_write, make_folder

Format = Literal["safetensors", "stablehlo", "onnx"]
EXAMPLES = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class ExportConfig:
    """Write a student as safetensors, StableHLO and ONNX, each with an example that loads it."""

    out: Path | None = None
    """Folder for the files."""
    checkpoint: str = DEFAULT_STUDENT
    """"modulated" or "mini" (the bundled students), the workdir of a training run, an exported
    folder or file, or OWNER/NAME on the Hugging Face Hub."""
    step: Literal["best", "latest"] | int = "best"
    """Which checkpoint of a training run. best: lowest validation MSE for runs with L1, the latest
    step for other losses (MSE prefers blurry pictures)."""
    formats: tuple[Format, ...] = get_args(Format)
    """Which formats."""
    sizes: tuple[int, ...] = (256, 512)
    """StableHLO: sides in pixels of the square contents, which get a file each."""
    style_size: int = 256
    """StableHLO: side in pixels of the square styles."""
    weights: Literal["float32", "float16"] = "float32"
    """ONNX: how the files keep the weights. float16 halves them, and is as exact for students that
    are published in it, as the bundled ones are; the computation is in float32 either way."""
    push_to: str | None = None
    """OWNER/NAME on the Hugging Face Hub to push the folder to."""
    space: Path | None = None
    """Folder for a Space of the Hugging Face Hub, ready to push; instead of `out` or beside it."""
    space_sdk: Sdk = "static"
    """static: the demo page, which computes in the browser (any static host serves it). gradio: an
    app that computes on the Hub."""

    def __post_init__(self):
        if self.out is None and self.space is None:
            raise ValueError("expected --out, --space or both")
        for name in ("formats", "sizes"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected at least one")
        if min(*self.sizes, self.style_size) < 1:
            raise ValueError("sizes and style_size are in pixels; expected more than 0")


def export(config: ExportConfig) -> None:
    """Write the files of all formats, and an example for each.

    Raises:
        InputError: no such student, a size that it cannot do, a folder that holds something else
            or cannot be made, or a missing package.
    """
    if config.out is not None:
        check_folder(config.out)
    model = open_student(config.checkpoint, config.step)
    if config.space is not None:
        write_space(model, config.space, config.space_sdk)
        print(f"a {config.space_sdk} Space is in {config.space}")
    if config.out is not None:
        _export_files(model, config, config.out)


def _export_files(model: Student, config: ExportConfig, out: Path) -> None:
    for name, sides, stride in (
        ("sizes", config.sizes, model.config.content_stride),
        ("style_size", (config.style_size,), model.config.style_stride),
    ):
        for side in sides:
            if side % stride or side < 2 * stride:
                raise InputError(
                    f"{name} has {side}; this student needs multiples of {stride}, "
                    f"at least {2 * stride}."
                )
    make_folder(out)
    if "safetensors" in config.formats:
        save_pretrained(model, out)
    for size in config.sizes:
        if "stablehlo" in config.formats:
            with atomic_write(out / f"student-{size}.stablehlo") as file:
                file.write(to_stablehlo(model, size, config.style_size))
    if "onnx" in config.formats:
        for name, content in onnx_files(model, config.weights).items():
            with atomic_write(out / name) as file:
                file.write(content)
    for name in config.formats:
        shutil.copyfile(EXAMPLES / f"load_{name}.py", out / f"load_{name}.py")
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 2**20:8.2f} MiB  {path}")
    if config.push_to is not None:
        print(f"pushed to {push_to_hub(out, config.push_to)}")


def to_stablehlo(model: Student, size: int, style_size: int) -> bytes:
    """A `jax.export` artefact for CPU and CUDA, with the weights inside.

    It takes content [b size size 3] and style [b style_size style_size 3], float32 in [0, 1], for
    any b, and returns the clipped prediction, like the content.

    Raises:
        InputError: flatbuffers is missing.
    """
    predict = _predictor(model)

    def batch(content, style):
        # One picture at a time: how attention is cut into chunks depends on the batch size.
        return jax.lax.map(lambda pair: predict(pair[0][None], pair[1][None])[0], (content, style))

    (b,) = jax.export.symbolic_shape("b")
    arguments = [
        jax.ShapeDtypeStruct((b, side, side, 3), jnp.float32) for side in (size, style_size)
    ]
    try:
        exported = jax.export.export(jax.jit(batch), platforms=("cpu", "cuda"))(*arguments)
        return bytes(exported.serialize())
    except ImportError as error:
        raise InputError(
            'StableHLO needs flatbuffers: pip install "style-distil[export]".'
        ) from error


def _predictor(
    model: Student,
) -> Callable[[Float[Array, "b h w 3"], Float[Array, "b h2 w2 3"]], Float[Array, "b h w 3"]]:
    graphdef, state = nnx.split(model)

    def predict(
        content: Float[Array, "b h w 3"], style: Float[Array, "b h2 w2 3"]
    ) -> Float[Array, "b h w 3"]:
        return jnp.clip(nnx.merge(graphdef, state)(content, style), 0, 1)

    return predict
