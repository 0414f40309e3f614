"""`style-distil stylize`: each content with each style."""

import itertools
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from student_jax.default import DEFAULT_STUDENT
from student_jax.inference.inputs import (
    STREAM,
    Input,
    find_inputs,
    kinds_by_name,
    looks_weighted,
    mask_file,
    split_weight,
)
from student_jax.inference.memory import MAX_MEMORY
from student_jax.inference.pictures import mask_pixels
from student_jax.inference.quick import QuickStylist, quick_files
from student_jax.inference.result_names import Job, check_suffix, list_jobs, unique_names
from triplets import DecodedImage, InputError, encode_image, float_from_uint8, uint8_from_float
from triplets.atomic import atomic_write
from triplets.errors import one_line


@dataclass(frozen=True)
class StyliseConfig:
    """Stylise each content with each style."""

    content: tuple[str, ...]
    """Pictures, folders, patterns such as "photos/*.jpg", videos, or - for standard input."""
    style: tuple[str, ...]
    """Pictures, folders or patterns. With weights, as in a.jpg:0.7 b.jpg:0.3, they are mixed."""
    out: str
    """Where results go: a folder (files are named CONTENT--STYLE.png), a pattern such as
    "out/{content}_{style}.jpg", a file if there is one result, or - for standard output."""
    checkpoint: str = DEFAULT_STUDENT
    """"modulated" or "mini" (the bundled students), the workdir of a training run, an exported
    folder or safetensors file, or hf://OWNER/NAME."""
    step: Literal["best", "latest"] | int = "best"
    """Checkpoint of a training run. best: lowest validation MSE for runs with L1, the latest step
    for other losses (MSE prefers blurry pictures)."""
    strength: float = 1.0
    """Strength of the effect, from 0 (the content) to 1 (the student's full effect)."""
    preserve_colour: bool = False
    """Keep the colours of the content; only its luminance is stylised."""
    mask: str | None = None
    """Grey picture: white is stylised, black is left as it is. Or a folder with one mask per
    content, of the same name. A mask needs the proportions of its content."""
    size: int | None = None
    """Reduce larger contents to this shorter side (px); by default they keep their size."""
    style_scale: int | None = None
    """Reduce larger styles to this shorter side (px): smaller gives finer strokes. By default what
    the student was trained for."""
    stroke_size: float | Literal["picture"] = 1.0
    """Size of the strokes relative to those of the style; 2 makes broad ones and takes a quarter of
    the time. "picture": they grow with the picture, from 1 at a shorter side of 512 px."""
    max_memory: float = MAX_MEMORY / 2**30
    """Memory for the computation (GiB). Pictures that need more are processed in tiles."""
    engine: Literal["auto", "onnx", "jax"] = "auto"
    """What computes. auto: ONNX Runtime, which starts sooner, for bundled students where it is
    installed and the picture fits into memory; else JAX. They differ by less than a grey level,
    and at the lower and right border, where JAX pads further, by a few."""
    smoothing: float = 0.5
    """Videos: how much of the previous frame still regions keep, from 0 to 0.95, to reduce
    flicker."""
    json: bool = False
    """Print one JSON object with all results, failed ones included, on standard output."""
    overwrite: bool = False
    """Replace existing results instead of keeping them."""

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; expected 0 to 1.")
        if not 0 <= self.smoothing <= 0.95:
            raise ValueError(f"smoothing is {self.smoothing}; expected 0 to 0.95.")
        for name in ("size", "style_scale", "max_memory"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0.")
        if not math.isfinite(self.max_memory):
            raise ValueError(f"max_memory is {self.max_memory}; expected a number of GiB.")
        if not self.content or not self.style:
            raise ValueError("expected at least one content and one style.")
        _check_weights([looks_weighted(spec) for spec in self.style])
        if self.json and self.out == STREAM:
            raise ValueError("--json and the picture would both go to standard output.")
        if "" in (*self.content, *self.style, self.out):  # which would be the current folder
            raise ValueError("content, style or out is empty; expected names.")
        unknown = set(re.findall(r"\{.*?\}", self.out)) - {"{content}", "{style}"}
        if unknown:
            raise ValueError(f"out has {min(unknown)}; expected only {{content}} and {{style}}.")
        check_suffix(self.out, kinds_by_name(self.content))


class Result(NamedTuple):
    """What became of one content with one style."""

    content: str
    style: str
    out: str
    status: Literal["written", "kept", "failed"]
    seconds: float = 0.0
    width: int = 0
    height: int = 0
    error: str = ""
    mask: str = ""


def stylise_files(config: StyliseConfig) -> list[Result]:
    """Write a picture for each pair; unusable inputs are reported, and the others still done.

    Raises:
        InputError: at the end, if an input failed; at once, if no result is possible.
    """
    start = time.monotonic()
    results: list[Result] = []
    error = ""
    try:
        _stylise_all(config, results)
    except BaseException as ended:
        error = str(ended) if isinstance(ended, InputError) else f"{one_line(ended)}."
        raise
    finally:
        if config.json:
            _print_json(results, time.monotonic() - start, error)
    return results


def _stylise_all(config: StyliseConfig, results: list[Result]) -> None:
    """Append what became of every input, even if an error ends the work early."""
    start = time.monotonic()
    contents, unusable_contents = find_inputs(config.content)
    specs, weights = zip(*map(split_weight, config.style), strict=True)
    styles, unusable_styles = find_inputs(specs)
    results += [Result(spec, "", "", "failed", error=error) for spec, error in unusable_contents]
    results += [Result("", spec, "", "failed", error=error) for spec, error in unusable_styles]
    for result in results:
        _say(f"failed: {result.error}")

    is_mixture = _check_weights([weight is not None for weight in weights])
    if config.mask is not None and not Path(config.mask).exists():
        raise InputError(f"the mask {config.mask!r} does not exist; expected a grey picture.")
    if unusable_styles and is_mixture:
        raise InputError("a mixture needs all of its styles.")
    for name, found, specified in (
        ("content", contents, config.content),
        ("style", styles, config.style),
    ):
        if not found:
            raise InputError(f"no usable {name} in {' '.join(specified)!r}.")
    if None in kinds_by_name(config.content) and not Path(config.out).is_dir():
        check_suffix(config.out, {content.kind for content in contents})

    stylist = _open_stylist(config)
    encoded, unreadable = _encode_styles(stylist, styles)
    results += unreadable
    if is_mixture:
        if unreadable or len(encoded) != len(weights):
            raise InputError("a mixture needs one readable picture for each weight.")
        encoded = {"+".join(encoded): stylist.encode_style(list(encoded.values()), weights)}
    if not encoded:
        raise InputError(f"no usable style in {' '.join(config.style)!r}.")

    jobs = list_jobs(config.out, contents, list(encoded), _files(config, contents, styles))
    with tqdm(total=len(jobs), unit="picture", desc="stylising", disable=None) as bar:
        work = Work(config, stylist, encoded, bar)
        for content, of_content in itertools.groupby(jobs, key=lambda job: job.content):
            # One by one: what was done before an interruption is reported.
            for result in work.stylise(content, list(of_content)):
                results.append(result)

    if not config.json:
        _print_summary(config, results, time.monotonic() - start)
    failed = [result for result in results if result.status == "failed"]
    if failed:
        first = failed[0].error.removesuffix(".")
        raise InputError(f"{len(failed)} of {len(results)} failed; the first: {first}.")


@dataclass(frozen=True)
class Work:
    """What all results of one call share."""

    config: StyliseConfig
    stylist: Any
    """A `Stylist` or a `QuickStylist`."""
    styles: Mapping[str, Any]
    """By name."""
    bar: tqdm

    def stylise(self, content: Input, jobs: Sequence[Job]) -> Iterator[Result]:
        """Make the results of one content, which is decoded once, and only if one is missing."""
        decoded = _DecodedContent(content, self.config)
        for job in jobs:
            yield self._make(decoded, job)
            self.bar.update()

    def _make(self, content: "_DecodedContent", job: Job) -> Result:
        start = time.monotonic()
        mask = error = ""
        height = width = 0
        try:
            if job.path is not None:
                if job.path.exists() and not self.config.overwrite:
                    return Result(job.content.label, job.style, job.out, "kept")
                _make_folder_of(job.path)
            mask = str(content.mask_file or "")
            make = self._make_video if job.content.kind == "video" else self._make_picture
            height, width = make(content, job)
        except InputError as unusable:
            error = str(unusable)
        except OSError as unwritable:  # reading fails with an InputError
            error = f"cannot write {job.out!r}: {one_line(unwritable)}."
        if error:
            _say(f"failed: {error}")
        return Result(
            job.content.label,
            job.style,
            job.out,
            status="failed" if error else "written",
            seconds=0.0 if error else round(time.monotonic() - start, 3),
            width=width,
            height=height,
            error=error,
            mask=mask,
        )

    def _make_picture(self, content: "_DecodedContent", job: Job) -> tuple[int, int]:
        """Write one picture; returns its height and width in pixels."""
        pixels, style = content.picture.pixels, self.styles[job.style]
        plan = self.stylist.plan(*pixels.shape[:2], style)
        if plan.tile is not None:
            _say(str(plan))
        stylised = self.stylist(
            float_from_uint8(pixels),
            style,
            self.config.strength,
            preserve_colour=self.config.preserve_colour,
            mask=content.mask,
            plan=plan,
        )
        encoded = encode_image(
            uint8_from_float(stylised),
            ".png" if job.path is None else job.path.suffix,
            profile=content.picture.profile,
            name=job.out,
        )
        if job.path is None:
            sys.stdout.buffer.write(encoded)
            sys.stdout.buffer.flush()
        else:
            with atomic_write(job.path) as file:
                file.write(encoded)
        return pixels.shape[:2]

    def _make_video(self, content: "_DecodedContent", job: Job) -> tuple[int, int]:
        """Write one video; returns its height and width in pixels."""
        from student_jax.inference.video import stylise_video  # with it comes JAX

        stylist, style = self.stylist, self.styles[job.style]
        if isinstance(stylist, QuickStylist):
            stylist, style = stylist.stylist, stylist.encoded(style)
        video = stylise_video(
            stylist,
            job.content.path,
            style,
            job.path,
            strength=self.config.strength,
            preserve_colour=self.config.preserve_colour,
            mask=content.mask_file,
            smoothing=self.config.smoothing,
            size=self.config.size,
        )
        _say(str(video))
        return video.height, video.width


class _DecodedContent:
    """The picture and the mask of a content, each read when it is first asked for."""

    def __init__(self, content: Input, config: StyliseConfig):
        self._content, self._config = content, config

    @cached_property
    def picture(self) -> DecodedImage:
        return self._content.load(self._config.size)

    @cached_property
    def mask_file(self) -> Path | None:
        mask = self._config.mask
        return None if mask is None else mask_file(self._content, Path(mask))

    @cached_property
    def mask(self) -> Float32[np.ndarray, "h w"] | None:
        if self.mask_file is None:
            return None
        return mask_pixels(self.mask_file, self.picture.pixels.shape)[..., 0]


def _open_stylist(config: StyliseConfig) -> Any:
    """A `Stylist`, or where it can be had one that starts sooner."""
    options = {
        "style_scale": config.style_scale,
        "stroke_size": config.stroke_size,
        "max_memory": int(config.max_memory * 2**30),
    }

    def stylist() -> Any:
        # JAX takes seconds to start.
        from student_jax.compilation import enable_compilation_cache
        from student_jax.inference.stylist import Stylist
        from student_jax.weights.folder import open_student

        enable_compilation_cache()
        return Stylist(open_student(config.checkpoint, config.step), **options)

    if config.engine != "jax" and not isinstance(config.step, int):
        folder = quick_files(config.checkpoint)
        if folder is not None:
            return QuickStylist(folder, stylist, **options)
    if config.engine == "onnx":
        raise InputError(
            f"--engine onnx needs a bundled student, not {config.checkpoint!r}, and the packages "
            'of pip install "style-distil[export]".'
        )
    return stylist()


def _check_weights(weighted: Sequence[bool]) -> bool:
    """Whether styles are to be mixed: all of them have a weight.

    Raises:
        InputError: only some have one.
    """
    if any(weighted) and not all(weighted):
        raise InputError("some styles have weights and some have none; expected all or none.")
    return all(weighted)


def _encode_styles(stylist: Any, styles: Sequence[Input]) -> tuple[dict[str, Any], list[Result]]:
    """Styles by name, and what became of those that cannot be read."""
    encoded, unreadable = {}, []
    for name, style in zip(unique_names(styles), styles, strict=True):
        try:
            encoded[name] = stylist.encode_style(style.load().pixels)
        except InputError as error:
            _say(f"failed: {error}")
            unreadable.append(Result("", style.label, "", "failed", error=str(error)))
    return encoded, unreadable


def _files(config: StyliseConfig, contents: Sequence[Input], styles: Sequence[Input]) -> set[Path]:
    """All files that are read, which no result may replace."""
    files = {one.path for one in (*contents, *styles) if one.path is not None}
    if config.mask is not None:
        files |= {Path(config.mask), *Path(config.mask).rglob("*")}
    return files


def _make_folder_of(path: Path) -> None:
    """Before the work, so that a path that cannot be written is found at once.

    Raises:
        InputError: a file is where a folder should be.
        OSError: no permission and so on.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"cannot write {str(path)!r}: its folder is a file.") from error


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _counts(results: Sequence[Result]) -> dict[str, int]:
    return {
        status: sum(result.status == status for result in results)
        for status in ("written", "kept", "failed")
    }


def _print_json(results: Sequence[Result], seconds: float, error: str = "") -> None:
    fields = [result._asdict() for result in results]
    report = {"results": fields, "seconds": round(seconds, 3)} | _counts(results) | {"error": error}
    print(json.dumps(report, indent=2))


def _print_summary(config: StyliseConfig, results: Sequence[Result], seconds: float) -> None:
    counts = _counts(results)
    times = sorted(result.seconds for result in results if result.status == "written")
    each = ""
    if times:
        # The first picture of a size waits for its program to be compiled: the median does not.
        each = f", {times[len(times) // 2]:.2f} s per picture (median)"
    print(
        f"{counts['written']} pictures written to {config.out} in {seconds:.1f} s{each}; "
        f"{counts['kept']} were there already and kept, {counts['failed']} inputs failed.",
        file=sys.stderr if config.out == STREAM else sys.stdout,
    )
