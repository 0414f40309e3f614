"""How close a student comes to its teacher on triplets that it has not seen."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grain
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from student_jax.checkpoint import load_config
from student_jax.compilation import enable_compilation_cache
from student_jax.data import load_sources
from student_jax.stylise import Stylist
from triplets import (
    contact_sheet,
    float_from_uint8,
    uint8_from_float,
    write_image,
)
from triplets.atomic import atomic_write


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare a student and two simple baselines with the teacher."""

    checkpoint: Path
    """Workdir of a training run."""
    out: Path
    """Folder for comparison.png, table.md and measures.json."""
    data: Path | None = None
    """Triplet dataset to evaluate on; by default what the training held out."""
    step: Literal["best", "latest"] | int = "best"
    """Which checkpoint."""
    rows: int = 6
    """Triplets in the comparison picture."""


def colour_transfer(
    content: Float32[np.ndarray, "h w 3"], style: Float32[np.ndarray, "h2 w2 3"]
) -> Float32[np.ndarray, "h w 3"]:
    """The content with the style's mean colour and colour covariance, clipped to [0, 1].

    The linear Monge-Kantorovich map (Pitie and Kokaram, CVMP 2007, eq. 13): of all linear maps
    that match both statistics, the one that changes colours least.
    """
    x, y = content.reshape(-1, 3).astype(np.float64), style.reshape(-1, 3).astype(np.float64)
    # A grey picture has a singular covariance; a thousandth of a grey level makes it regular.
    a, b = (np.cov(pixels.T) + 1e-8 * np.eye(3) for pixels in (x, y))
    root = _symmetric_power(a, 0.5)
    inverse = _symmetric_power(a, -0.5)
    mapping = inverse @ _symmetric_power(root @ b @ root, 0.5) @ inverse
    moved = (x - x.mean(0)) @ mapping + y.mean(0)
    return moved.clip(0, 1).astype(np.float32).reshape(content.shape)


def _symmetric_power(matrix: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-12) ** power) @ vectors.T


def held_out_triplets(workdir: Path, data: Path | None) -> grain.MapDataset:
    """The triplets to evaluate a run on: what it held out, or all of a dataset.

    Raises:
        InputError: no run or no dataset there.
    """
    config = load_config(workdir)
    validation = str(data) if data else config["validation"]
    return load_sources(config["data"], validation, config["held_out_fraction"])[1]


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Mean squared error to the teacher by name of the method; prints and writes the table.

    Raises:
        InputError: a run or a dataset that cannot be used.
    """
    enable_compilation_cache()
    stylist = Stylist.from_checkpoint(config.checkpoint, config.step)
    triplets = held_out_triplets(config.checkpoint, config.data)
    methods = {
        "student": stylist,
        "colour statistics transferred": colour_transfer,
        "content copied": lambda content, style: content,
    }
    errors: dict[str, list[float]] = {name: [] for name in methods}
    rows = []
    for triplet in tqdm(triplets, unit="triplet", desc="evaluating"):
        pictures = [triplet[name] for name in ("content", "style", "stylised")]
        content, style, target = map(float_from_uint8, pictures)
        for name, method in methods.items():
            result = method(content, style)
            errors[name].append(float(np.mean((result - target) ** 2)))
            if name == "student" and len(rows) < config.rows:
                rows.append([*pictures, uint8_from_float(result)])
    measures = {name: float(np.mean(values)) for name, values in errors.items()}
    table = _table(measures, len(triplets))
    print(table)
    config.out.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(rows, ("content", "style", "teacher", "student"))
    write_image(config.out / "comparison.png", sheet)
    for name, text in (("table.md", table), ("measures.json", json.dumps(measures, indent=2))):
        with atomic_write(config.out / name) as file:
            file.write(f"{text}\n".encode())
    return measures


def _table(measures: dict[str, float], count: int) -> str:
    lines = [
        f"| on {count} held-out triplets | MSE to the teacher | PSNR (dB) |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {mse:.5f} | {-10 * np.log10(mse):.2f} |" for name, mse in measures.items()
    ]
    return "\n".join(lines)
