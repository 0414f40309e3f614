"""Settings of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from student_jax.evaluation.judge import smallest_side
from triplets.cache import DEFAULT_GIB


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a student (--checkpoint) or anyone's pictures (--results) beside three baselines.

    On what: the triplets that the student's training validated on (the default), a triplet dataset
    (--data), the gold set (--gold), or all pairs of two folders (--content, --style). With --data
    alone the dump itself is measured: the teacher beside the baselines.
    """

    out: Path
    """Folder for report.html, table.md, measures.json and comparison.png."""
    checkpoint: str | None = None
    """Workdir of a training run, an exported student, or "mini"."""
    step: Literal["best", "latest"] | int = "best"
    """Which checkpoint of a training run. best: lowest validation MSE for runs with L1, the latest
    step for other losses (MSE prefers blurry pictures)."""
    results: Path | None = None
    """Folder of stylised pictures named CONTENT--STYLE, as "style-distil stylize" writes them, or
    CONTENT_stylized_STYLE, as StyleID's authors do."""
    data: str | None = None
    """Triplets: a folder, an address such as s3://bucket/folder, or tfds:NAME:SPLIT. The distance
    to their teacher is measured too."""
    gold: bool = False
    """Use the gold set: fixed pairs of the sample pictures."""
    own_gold: Path | None = None
    """Folder with content/ and style/: pairs to add to the gold set."""
    content: str | None = None
    """Contents of StyleID's protocol: a folder or tfds:NAME:SPLIT."""
    style: str | None = None
    """Styles of StyleID's protocol, each for every content."""
    size: int = 512
    """Contents, styles and results are cropped and resized to squares of this side (px). Triplets
    stay as they are."""
    style_scale: int | None = None
    """Larger styles are reduced to this shorter side (px) before the student sees them; by default
    what it was trained for."""
    max_pairs: int = 64
    """Measure on at most this many triplets, evenly spread."""
    structure: bool = True
    """Measure CFSD, which takes most of the time on a CPU."""
    vgg19_weights: str | None = None
    """VGG19 for CFSD as published: a file by torchvision's names (.safetensors, or .pth if PyTorch
    is installed), or a repository of the Hugging Face Hub such as timm/vgg19.tv_in1k."""
    fid_weights: str | None = None
    """The art Inception for FID and ArtFID, likewise: its authors' art_inception.pth."""
    cache_dir: Path | None = None
    """Folder in which files of buckets are kept; by default ~/.cache/style-distil."""
    cache_gib: float = DEFAULT_GIB
    """GiB that such files may take there."""
    rows: int = 6
    """Examples in the comparison picture and in the report."""

    def __post_init__(self):
        for name in ("size", "style_scale", "max_pairs", "rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if self.size < self.smallest_side:
            raise ValueError(
                f"size is {self.size}; the measures need {self.smallest_side} px or more."
            )

    @property
    def smallest_side(self) -> int:
        """Side in pixels below which the chosen measures cannot be taken."""
        return smallest_side(fid=self.fid_weights is not None)
