"""Which measures there are, and taking them of stylised pictures."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from student_jax.evaluation.measures.frechet import art_fid, frechet_distance
from student_jax.evaluation.measures.histogram_loss import histogram_loss
from student_jax.evaluation.measures.inception import Inception
from student_jax.evaluation.measures.intervals import interval
from student_jax.evaluation.measures.networks import (
    LPIPS,
    ContentStructureDistance,
    GramDistance,
    load_vgg19,
)
from student_jax.evaluation.measures.pixels import (
    brightness,
    histogram_distance,
    mean_squared_error,
    psnr,
    saturation,
    sharpness,
    ssim,
)
from student_jax.nets.vgg_weights import bundled_vgg16
from triplets import InputError

Picture = Float32[np.ndarray, "h w 3"]
ART_INCEPTION = (
    "get art_inception.pth from https://huggingface.co/matthias-wright/art_inception, convert it "
    "with scripts/convert_art_inception.py and give the result with --fid-weights"
)
VGG19_WEIGHTS = (
    "get model.safetensors from https://huggingface.co/timm/vgg19.tv_in1k and give it with "
    "--vgg19-weights"
)


class Measure(NamedTuple):
    """How a measure is shown and read."""

    title: str
    better: Literal["lower", "higher", "as the teacher"]
    digits: int
    meaning: str


MEASURES: dict[str, Measure] = {
    "mse": Measure("MSE", "lower", 5, "mean squared error to the teacher"),
    "psnr": Measure("PSNR (dB)", "higher", 2, "peak signal-to-noise ratio to the teacher"),
    "ssim": Measure("SSIM", "higher", 3, "structural similarity to the teacher"),
    "lpips": Measure("LPIPS", "lower", 3, "LPIPS (alex) to the teacher"),
    "content_lpips": Measure("content LPIPS", "lower", 3, "LPIPS (alex) to the content"),
    "cfsd": Measure("CFSD", "lower", 4, "content feature structural distance (VGG19)"),
    "cfsd_vgg16": Measure(
        *("CFSD (VGG16)", "lower", 4),
        "content feature structural distance (bundled VGG16): compare within a table only",
    ),
    "style_gram": Measure("style Gram", "lower", 3, "relative distance of Gram matrices (VGG16)"),
    "style_histogram": Measure(
        "style colours", "lower", 4, "earth mover's distance of the colour histograms"
    ),
    "histogram_loss": Measure("histogram loss", "lower", 3, "HistoGAN's, of StyleID's protocol"),
    "brightness": Measure("brightness", "as the teacher", 3, "mean luma"),
    "saturation": Measure("saturation", "as the teacher", 3, "mean HSV saturation"),
    "sharpness": Measure("sharpness", "as the teacher", 4, "mean gradient of the luma"),
    "fid": Measure("FID", "lower", 2, "to the styles, art Inception, plain at this sample size"),
    "art_fid": Measure("ArtFID", "lower", 2, "(1 + content LPIPS) (1 + FID)"),
}
MIN_PICTURES = 5
"""Contents and styles that an interval takes: fewer say too little about others."""
OF_SETS = ("fid", "art_fid")


def smallest_side(fid_weights: Path | None) -> int:
    """Side in pixels that pictures need: LPIPS is defined from 64 on, the art Inception from 75."""
    return 64 if fid_weights is None else 75


@dataclass(frozen=True)
class Example:
    """A content and a style, with the teacher's picture where there is one; all of one size."""

    content: Picture
    style: Picture
    teacher: Picture | None = None
    ids: tuple[str, str] = ("", "")
    """Of the content and of the style; empty where they have none."""


Method = Callable[[Example], Picture]


@dataclass
class Judgement:
    """Measures of some methods on the same examples."""

    measures: dict[str, dict[str, float]]
    """By method, by measure: the mean over the examples; of sets: the one figure."""
    intervals: dict[str, dict[str, tuple[float, float]]]
    """Likewise, 95 % intervals of the means (`measures.intervals`); none of sets, of infinite
    figures and of fewer than `MIN_PICTURES`."""
    count: int
    """Examples."""
    missing: dict[str, str] = field(default_factory=dict)
    """Measures that could not be taken: why, and what to do."""


class Judge:
    """Takes all measures of which the networks are there; those of the others are named."""

    def __init__(
        self,
        *,
        vgg19_weights: Path | None = None,
        fid_weights: Path | None = None,
        structure: bool = True,
    ):
        """`structure` off leaves out CFSD, which takes most of the time on a CPU.

        Raises:
            InputError: a file that does not hold such weights.
        """
        self.missing: dict[str, str] = {}
        self._lpips, self._gram = LPIPS(), GramDistance()
        self._cfsd: tuple[str, ContentStructureDistance] | None = None
        if not structure:
            self.missing["cfsd"] = "switched off with --no-structure"
        elif vgg19_weights:
            self._cfsd = ("cfsd", ContentStructureDistance(load_vgg19(vgg19_weights)))
        else:
            self._cfsd = ("cfsd_vgg16", ContentStructureDistance(bundled_vgg16()))
            self.missing["cfsd"] = f"its VGG19 weights are missing: {VGG19_WEIGHTS}"
        self._smallest = smallest_side(fid_weights)
        self._inception = Inception.from_file(fid_weights) if fid_weights else None
        if self._inception is None:
            for name in OF_SETS:
                self.missing[name] = f"the art Inception's weights are missing: {ART_INCEPTION}"

    def of_pair(
        self, result: Picture, example: Example, only: Collection[str] = MEASURES
    ) -> dict[str, float]:
        """The measures of one stylised picture of the example's size, or those named by `only`.

        Raises:
            InputError: the pictures are too small to measure.
        """
        content, style, teacher = example.content, example.style, example.teacher
        if min(content.shape[:2]) < self._smallest:
            raise InputError(
                f"pictures of {content.shape[1]} x {content.shape[0]} px are too small to measure; "
                f"expected sides of {self._smallest} px or more."
            )
        takers: dict[str, Callable[[], float]] = {}
        if teacher is not None:
            takers |= {
                "mse": lambda: mean_squared_error(result, teacher),
                "psnr": lambda: psnr(result, teacher),
                "ssim": lambda: ssim(result, teacher),
                "lpips": lambda: self._lpips(result, teacher),
            }
        takers["content_lpips"] = lambda: self._lpips(result, content)
        if self._cfsd:
            name, distance = self._cfsd
            takers[name] = lambda: distance(result, content)
        takers |= {
            "style_gram": lambda: self._gram(result, style),
            "style_histogram": lambda: histogram_distance(result, style),
            "histogram_loss": lambda: histogram_loss(result, style),
            "brightness": lambda: brightness(result),
            "saturation": lambda: saturation(result),
            "sharpness": lambda: sharpness(result),
        }
        return {name: take() for name, take in takers.items() if name in only}

    def of_methods(
        self,
        methods: dict[str, Method],
        examples: Iterable[Example],
        *,
        only: Collection[str] = MEASURES,
        seen: Callable[[Example, dict[str, Picture]], None] = lambda example, results: None,
    ) -> Judgement:
        """Measures of each method, and of the teacher itself where there is one.

        Args:
            methods: by name, functions of an example; `on_pictures` makes one of a function of
                content and style.
            examples: gone through once, so they may be read or computed one at a time.
            only: names of the measures to take of each picture.
            seen: called with every example and its results by method, such as to draw them.

        Raises:
            InputError: the pictures are too small to measure.
        """
        values = defaultdict(lambda: defaultdict(list))
        features = defaultdict(list)
        pairs = []
        for example in examples:
            pairs.append(example.ids)
            results = {name: method(example) for name, method in methods.items()}
            seen(example, results)
            shown = results if example.teacher is None else {"teacher": example.teacher} | results
            for name, result in shown.items():
                for measure, value in self.of_pair(result, example, only).items():
                    values[name][measure].append(value)
                if self._inception:
                    features[name].append(self._inception(result[None])[0])
            if self._inception:
                features[None].append(self._inception(example.style[None])[0])
        measures = {
            name: {m: float(np.mean(v)) for m, v in of.items()} for name, of in values.items()
        }
        intervals = {name: _intervals(of, pairs) for name, of in values.items()}
        missing = dict(self.missing)
        if self._inception and len(pairs) > 1:
            styles = np.stack(features[None])
            for name, of in measures.items():
                of["fid"] = frechet_distance(np.stack(features[name]), styles)
                of["art_fid"] = art_fid(of["fid"], of["content_lpips"])
        elif self._inception:
            missing |= dict.fromkeys(OF_SETS, "a set needs two pictures at least")
        return Judgement(measures, intervals, len(pairs), missing)


def on_pictures(function: Callable[[Picture, Picture], Picture]) -> Method:
    """A method of a function of content and style."""
    return lambda example: function(example.content, example.style)


def _intervals(
    values: dict[str, list[float]], pairs: Sequence[tuple[str, str]]
) -> dict[str, tuple[float, float]]:
    """By measure, where all of its values are finite."""
    if min(len(set(column)) for column in zip(*pairs, strict=True)) < MIN_PICTURES:
        return {}
    names = [name for name, of in values.items() if np.isfinite(of).all()]
    ends = interval(np.stack([values[name] for name in names], axis=1), pairs)
    return {name: (float(low), float(high)) for name, low, high in zip(names, *ends, strict=True)}
