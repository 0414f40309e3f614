"""The released STTR and ImageNet backbones as students, and students by the authors' names."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save

from student_jax.nets.resnet_weights import NOT_THE_BACKBONE, resnet50_from_torch
from student_jax.nets.torch_names import matching
from student_jax.student import student_name
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.convert import NOT_THE_MODEL, sttr_from_torch, sttr_to_torch
from student_jax.students.sttr.model import STTR
from student_jax.weights.folder import open_student, save_pretrained
from student_jax.weights.published import find_weights, read_weights
from triplets import InputError
from triplets.atomic import atomic_write, write_json


@dataclass(frozen=True)
class ImportConfig:
    """Make a student of published weights, for `style-distil train --init-from` or --checkpoint."""

    kind: Literal["sttr", "resnet50"]
    """sttr: the checkpoint of STTR's authors. resnet50: a new student of the reference architecture
    with ImageNet backbones."""
    source: str
    """File of weights (.safetensors, or .pth where PyTorch is installed), or a repository of the
    Hugging Face Hub with a model.safetensors: OWNER/NAME[@REVISION], such as
    timm/resnet50.tv_in1k."""
    out: Path
    """Folder for config.json, model.safetensors and import.json, which records their source."""
    ignore: tuple[str, ...] = ()
    """Regular expressions of further names in the file that are not part of the model."""
    seed: int = 0
    """Of what a new student does not get from the backbones."""

    def __post_init__(self):
        for pattern in self.ignore:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"ignore has {pattern!r}, which is not a regular expression: {error}"
                ) from error


def import_weights(config: ImportConfig) -> None:
    """Read, convert, check both ways and write; see `ImportConfig`.

    Raises:
        InputError: a file that cannot be read, weights that do not fit, or a folder that is taken.
    """
    if config.out.exists():
        raise InputError(f'"{config.out}" exists already; give another --out.')
    path = find_weights(config.source)
    weights = read_weights(path)
    known = NOT_THE_MODEL if config.kind == "sttr" else NOT_THE_BACKBONE
    patterns = (*known, *config.ignore)
    try:
        if config.kind == "sttr":
            model = sttr_from_torch(weights, STTRConfig.reference(), ignored=patterns)
        else:
            model = _import_resnet50(weights, config.seed, patterns)
    except ValueError as error:
        raise InputError(f"{config.source}: {error}.") from error
    ignored = matching(weights, patterns)
    save_pretrained(model, config.out)
    origin = {
        "kind": config.kind,
        "source": config.source,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "ignored": ignored,
    }
    write_json(config.out / "import.json", origin)
    print(f'{len(weights) - len(ignored)} arrays of {config.source} are in "{config.out}"')
    if ignored:
        print(f"ignored {len(ignored)}: {', '.join(ignored)}")


def _import_resnet50(weights: dict[str, np.ndarray], seed: int, ignored: Iterable[str]) -> STTR:
    config = STTRConfig.reference()

    def build() -> STTR:
        return STTR(config, rngs=nnx.Rngs(seed))

    # As one program, which compiles much faster than hundreds of small ones.
    model = nnx.merge(nnx.graphdef(nnx.eval_shape(build)), jax.jit(lambda: nnx.state(build()))())
    model.content_backbone = resnet50_from_torch(weights, config.content_widths, ignored=ignored)
    model.style_backbone = resnet50_from_torch(weights, config.style_widths, ignored=ignored)
    return model


@dataclass(frozen=True)
class ExportConfig:
    """Write a student of the reference architecture by the names of STTR's authors."""

    student: str
    """Workdir of a training run, or a folder that `style-distil weights import` or export wrote."""
    out: Path
    """The .safetensors file: what their `load_state_dict` takes."""


def export_weights(config: ExportConfig) -> None:
    """Write the exact inverse of what `import_weights` reads.

    Raises:
        InputError: no student there, or one that has no names in the authors' code.
    """
    model = open_student(config.student)
    if not isinstance(model, STTR):
        raise InputError(
            f"{config.student} is a {student_name(model.config)} student; only the paper's STTR "
            "has names in its authors' code."
        )
    weights = sttr_to_torch(model)
    with atomic_write(config.out) as file:
        file.write(save(weights))
    print(f'{len(weights)} arrays are in "{config.out}"')
