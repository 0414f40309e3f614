"""Which measures there are, and taking them of stylised pictures."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float

from losses.pixel import LOW_BAND, low_band_loss
from student_jax.evaluation.measures.frechet import art_fid, frechet_distance
from student_jax.evaluation.measures.histogram_loss import histogram_loss
from student_jax.evaluation.measures.inception import SMALLEST_PX, ArtFeatures
from student_jax.evaluation.measures.intervals import interval
from student_jax.evaluation.measures.networks import (
    LPIPS,
    ContentStructureDistance,
    GramDistance,
)
from student_jax.evaluation.measures.pixels import (
    Picture,
    brightness,
    histogram_distance,
    luma,
    mean_squared_error,
    psnr,
    saturation,
    sharpness,
    ssim,
)
from student_jax.evaluation.measures.texture import (
    SlicedWasserstein,
    high_band,
    match_colours,
    sameness,
    standardised_luminance,
)
from student_jax.nets.vgg_weights import bundled_vgg16
from student_jax.training.objective import load_features
from triplets import InputError

MIN_PICTURES = 5
"""Contents and styles that an interval takes: fewer say too little about others."""

WHERE_TO_GET = {
    "vgg19": "its VGG19 weights are missing: give --vgg19-weights timm/vgg19.tv_in1k, or the path "
    "of model.safetensors from https://huggingface.co/timm/vgg19.tv_in1k",
    "art_inception": "the art Inception's weights are missing: get art_inception.pth from "
    "https://huggingface.co/matthias-wright/art_inception and give its path with --fid-weights",
}


@dataclass(frozen=True)
class Example:
    """A content and a style, with the teacher's picture if there is one; all of one size."""

    content: Picture
    style: Picture
    teacher: Picture | None = None
    ids: tuple[str, str] = ("", "")
    """Of the content and of the style; empty if they have none."""


@dataclass(frozen=True)
class PictureSet:
    """What a measure of a whole set looks at."""

    means: Mapping[str, float]
    """The set's other measures, by name."""
    residuals: Mapping[str, Sequence[Float[np.ndarray, "h w"]]]
    """By content: the high band of the luma of every result minus the content."""
    results: Float[np.ndarray, "n d"] | None = None
    """Features of all stylised pictures, by the art Inception if it is there."""
    styles: Float[np.ndarray, "n d"] | None = None
    """Those of their styles."""

    @cached_property
    def fid(self) -> float:
        """Distance of the stylised pictures from the styles."""
        return frechet_distance(self.results, self.styles)

    @property
    def sameness(self) -> float | None:
        """Mean over the contents that have several styles; None if there is no such content."""
        several = [residuals for residuals in self.residuals.values() if len(residuals) > 1]
        return float(np.mean([sameness(residuals) for residuals in several])) if several else None


Need = Literal["teacher", "vgg16", "vgg19", "art_inception"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a measure is taken, shown and read."""

    title: str
    better: Literal["lower", "higher", "as the teacher"]
    digits: int
    meaning: str
    needs: Need | None = None
    """What there must be beside a content and a style: the teacher's picture, or a network that
    the command line decides on."""
    smallest_px: int = 1
    """Shortest side of a picture that it can be taken of."""
    take: "Callable[[Judge, Picture, Example], float] | None" = None
    """Of one stylised picture of the example's size."""
    take_set: Callable[[PictureSet], float | None] | None = None
    """Of all of them at once; None if the set does not allow it."""


MEASURES: dict[str, Measure] = {
    "mse": Measure(
        title="MSE",
        better="lower",
        digits=5,
        meaning="mean squared error to the teacher",
        needs="teacher",
        take=lambda judge, result, example: mean_squared_error(result, example.teacher),
    ),
    "low_band_mse": Measure(
        title="MSE, low band",
        better="lower",
        digits=5,
        meaning="mean squared error to the teacher of both reduced 8 times: colours and shapes",
        needs="teacher",
        smallest_px=LOW_BAND,
        take=lambda judge, result, example: float(
            low_band_loss(result[None], example.teacher[None])
        ),
    ),
    "psnr": Measure(
        title="PSNR (dB)",
        better="higher",
        digits=2,
        meaning="peak signal-to-noise ratio to the teacher",
        needs="teacher",
        take=lambda judge, result, example: psnr(result, example.teacher),
    ),
    "ssim": Measure(
        title="SSIM",
        better="higher",
        digits=3,
        meaning="structural similarity to the teacher",
        needs="teacher",
        smallest_px=11,
        take=lambda judge, result, example: ssim(result, example.teacher),
    ),
    "lpips": Measure(
        title="LPIPS",
        better="lower",
        digits=3,
        meaning="LPIPS (alex) to the teacher",
        needs="teacher",
        smallest_px=64,
        take=lambda judge, result, example: judge.lpips(result, example.teacher),
    ),
    "content_lpips": Measure(
        title="content LPIPS",
        better="lower",
        digits=3,
        meaning="LPIPS (alex) to the content",
        smallest_px=64,
        take=lambda judge, result, example: judge.lpips(result, example.content),
    ),
    "cfsd": Measure(
        title="CFSD",
        better="lower",
        digits=4,
        meaning="content feature structural distance (VGG19)",
        needs="vgg19",
        take=lambda judge, result, example: judge.structure(result, example.content),
    ),
    "cfsd_vgg16": Measure(
        title="CFSD (VGG16)",
        better="lower",
        digits=4,
        meaning="content feature structural distance (bundled VGG16): compare within a table only",
        needs="vgg16",
        take=lambda judge, result, example: judge.structure(result, example.content),
    ),
    "style_gram": Measure(
        title="style Gram",
        better="lower",
        digits=3,
        meaning="relative distance of Gram matrices (VGG16)",
        take=lambda judge, result, example: judge.gram(result, example.style),
    ),
    "style_gram_matched": Measure(
        title="style Gram, colours matched",
        better="lower",
        digits=3,
        meaning="style Gram after the result's colour covariance was matched to the style's",
        take=lambda judge, result, example: judge.gram(
            match_colours(result, example.style), example.style
        ),
    ),
    "style_gram_luminance": Measure(
        title="style Gram, luminance",
        better="lower",
        digits=3,
        meaning="style Gram of the standardised luminance",
        take=lambda judge, result, example: judge.gram(
            standardised_luminance(result), standardised_luminance(example.style)
        ),
    ),
    "style_swd": Measure(
        title="style SWD",
        better="lower",
        digits=3,
        meaning="relative sliced Wasserstein distance of VGG16 features",
        take=lambda judge, result, example: judge.wasserstein.features(result, example.style),
    ),
    "style_swd_patches": Measure(
        title="style SWD, patches",
        better="lower",
        digits=3,
        meaning="relative sliced Wasserstein distance of luminance patches of 3, 7 and 15 px",
        smallest_px=15,
        take=lambda judge, result, example: judge.wasserstein.patches(result, example.style),
    ),
    "sameness": Measure(
        title="sameness",
        better="lower",
        digits=2,
        meaning="correlation of what different styles leave on one content (luma, high band)",
        take_set=lambda pictures: pictures.sameness,
    ),
    "style_histogram": Measure(
        title="style colours",
        better="lower",
        digits=4,
        meaning="earth mover's distance of the colour histograms",
        take=lambda judge, result, example: histogram_distance(result, example.style),
    ),
    "histogram_loss": Measure(
        title="histogram loss",
        better="lower",
        digits=3,
        meaning="HistoGAN's, as in StyleID's protocol",
        take=lambda judge, result, example: histogram_loss(result, example.style),
    ),
    "brightness": Measure(
        title="brightness",
        better="as the teacher",
        digits=3,
        meaning="mean luma",
        take=lambda judge, result, example: brightness(result),
    ),
    "saturation": Measure(
        title="saturation",
        better="as the teacher",
        digits=3,
        meaning="mean HSV saturation",
        take=lambda judge, result, example: saturation(result),
    ),
    "sharpness": Measure(
        title="sharpness",
        better="as the teacher",
        digits=4,
        meaning="mean gradient of the luma",
        take=lambda judge, result, example: sharpness(result),
    ),
    "fid": Measure(
        title="FID",
        better="lower",
        digits=2,
        meaning="to the styles, art Inception, plain at this sample size",
        needs="art_inception",
        smallest_px=SMALLEST_PX,
        take_set=lambda pictures: pictures.fid,
    ),
    "art_fid": Measure(
        title="ArtFID",
        better="lower",
        digits=2,
        meaning="(1 + content LPIPS) (1 + FID)",
        needs="art_inception",
        smallest_px=SMALLEST_PX,
        take_set=lambda pictures: art_fid(pictures.fid, pictures.means["content_lpips"]),
    ),
}


def smallest_side(*, fid: bool) -> int:
    """Side in pixels that pictures need for all measures, with or without FID and ArtFID."""
    return max(
        measure.smallest_px
        for measure in MEASURES.values()
        if fid or measure.needs != "art_inception"
    )


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
    """Takes all measures whose networks are there, and names the others.

    The rows of `MEASURES` call `lpips`, `gram`, `wasserstein`, `structure` and `art_features`.
    """

    def __init__(
        self,
        *,
        vgg19_weights: str | None = None,
        fid_weights: str | None = None,
        structure: bool = True,
    ):
        """Load the networks.

        Args:
            vgg19_weights: VGG19 for CFSD as published, a file or a repository; see `find_weights`.
            fid_weights: the art Inception for FID and ArtFID, likewise.
            structure: False leaves out CFSD, which takes most of the time on a CPU.

        Raises:
            InputError: no such weights.
        """
        self.lpips, self.gram = LPIPS(), GramDistance()
        self.wasserstein = SlicedWasserstein()
        self.structure: ContentStructureDistance | None = None
        self.art_features: ArtFeatures | None = None
        self.missing: dict[str, str] = {}
        networks: set[Need | None] = {None}
        if not structure:
            self.missing["cfsd"] = "switched off with --no-structure"
        elif vgg19_weights is not None:
            self.structure = ContentStructureDistance(load_features("vgg19", vgg19_weights))
            networks.add("vgg19")
        else:
            self.structure = ContentStructureDistance(bundled_vgg16())
            networks.add("vgg16")
            self.missing["cfsd"] = WHERE_TO_GET["vgg19"]
        if fid_weights is not None:
            self.art_features = ArtFeatures.load(fid_weights)
            networks.add("art_inception")
        else:
            unseen = [name for name, m in MEASURES.items() if m.needs == "art_inception"]
            self.missing |= dict.fromkeys(unseen, WHERE_TO_GET["art_inception"])
        self._networks = networks
        self._smallest = smallest_side(fid=fid_weights is not None)

    def of_pair(
        self, result: Picture, example: Example, only: Collection[str] = MEASURES
    ) -> dict[str, float]:
        """The measures of one stylised picture of the example's size, or those named by `only`.

        Raises:
            InputError: the pictures are too small to measure.
        """
        height, width = example.content.shape[:2]
        if min(height, width) < self._smallest:
            raise InputError(
                f"pictures of {width} x {height} px are too small to measure; expected sides of "
                f"{self._smallest} px or more."
            )
        has = self._networks if example.teacher is None else self._networks | {"teacher"}
        return {
            name: measure.take(self, result, example)
            for name, measure in MEASURES.items()
            if name in only and measure.needs in has and measure.take
        }

    def of_methods(
        self,
        methods: dict[str, Method],
        examples: Iterable[Example],
        *,
        only: Collection[str] = MEASURES,
        seen: Callable[[Example, dict[str, Picture]], None] = lambda example, results: None,
    ) -> Judgement:
        """Measures of each method, and of the teacher itself if there is one.

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
        residuals = defaultdict(lambda: defaultdict(list))
        features, style_features, pairs = defaultdict(list), [], []
        for example in examples:
            pairs.append(example.ids)
            results = {name: method(example) for name, method in methods.items()}
            seen(example, results)
            shown = results if example.teacher is None else {"teacher": example.teacher} | results
            for name, result in shown.items():
                by_measure = values[name]
                for measure, value in self.of_pair(result, example, only).items():
                    by_measure[measure].append(value)
                content_id, _ = example.ids
                if content_id and "sameness" in only:
                    residual = high_band(luma(result) - luma(example.content))
                    # Half precision: a thousand pictures of 512 px would take 2 GB otherwise.
                    residuals[name][content_id].append(residual.astype(np.float16))
                if self.art_features:
                    features[name].append(self.art_features(result[None])[0])
            if self.art_features:
                style_features.append(self.art_features(example.style[None])[0])
        measures = {
            name: {m: float(np.mean(v)) for m, v in by_measure.items()}
            for name, by_measure in values.items()
        }
        intervals = {name: _intervals(by_measure, pairs) for name, by_measure in values.items()}
        missing = dict(self.missing)
        for name, means in measures.items():
            pictures = PictureSet(means, residuals[name])
            if self.art_features and len(pairs) > 1:
                of_art = (np.stack(features[name]), np.stack(style_features))
                pictures = PictureSet(means, residuals[name], *of_art)
            of_set = {}
            for measure, row in MEASURES.items():
                if not row.take_set or measure not in only:
                    continue
                if row.needs == "art_inception" and pictures.results is None:
                    if self.art_features:
                        missing[measure] = "a set needs two pictures at least"
                    continue
                value = row.take_set(pictures)
                if value is None:
                    missing[measure] = "no content has two styles"
                else:
                    of_set[measure] = value
            measures[name] = means | of_set
        return Judgement(measures, intervals, len(pairs), missing)


def on_pictures(function: Callable[[Picture, Picture], Picture]) -> Method:
    """A method of a function of content and style."""
    return lambda example: function(example.content, example.style)


def _intervals(
    values: dict[str, list[float]], pairs: Sequence[tuple[str, str]]
) -> dict[str, tuple[float, float]]:
    """By measure, if all of its values are finite."""
    if min(len(set(column)) for column in zip(*pairs, strict=True)) < MIN_PICTURES:
        return {}
    names = [name for name, of_pictures in values.items() if np.isfinite(of_pictures).all()]
    if not names:
        return {}
    ends = interval(np.stack([values[name] for name in names], axis=1), pairs)
    return {name: (float(low), float(high)) for name, low, high in zip(names, *ends, strict=True)}
