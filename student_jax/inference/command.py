"""Stylising picture files: each content with each style."""

import glob
import io
import itertools
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from student_jax.compilation import enable_compilation_cache
from student_jax.inference.pictures import FORMATS, colour_profile, encode
from student_jax.inference.stylist import MAX_MEMORY, STYLE_SIZE, EncodedStyle, Stylist
from student_jax.inference.video import VIDEO_SUFFIXES, stylise_video
from student_jax.weights.folder import open_student
from triplets import (
    ImageError,
    ImageFile,
    ImageFolder,
    ImageSource,
    InputError,
    decode_image,
    float_from_uint8,
    open_source,
    resize_shorter_side,
    uint8_from_float,
)
from triplets.atomic import atomic_write
from triplets.images import IMAGE_SUFFIXES

STREAM = "-"
"""Standard input as a content, standard output as the result."""

MAX_STREAM_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StyliseConfig:
    """Stylise each content with each style."""

    content: tuple[str, ...]
    """Pictures, folders, patterns such as "photos/*.jpg", videos, or - for standard input."""
    style: tuple[str, ...]
    """Pictures, folders or patterns; with weights, such as a.jpg:0.7 b.jpg:0.3, they are mixed."""
    out: str
    """Folder for CONTENT--STYLE.png, a pattern such as "out/{content}_{style}.jpg", a picture or
    video file for a single result, or - for standard output."""
    checkpoint: str = "mini"
    """"mini" (the bundled student), the workdir of a training run, an exported folder or
    safetensors file, or hf://OWNER/NAME."""
    step: Literal["best", "latest"] | int = "best"
    """Which checkpoint of a training run; "best" has the smallest squared error, but of a run with
    another loss than L1 it is the latest: that error would choose the smoothest pictures."""
    strength: float = 1.0
    """0 keeps the content, 1 is the student's full effect."""
    preserve_colour: bool = False
    """Keep the content's colours: only its luminance is stylised."""
    mask: str | None = None
    """Grey picture, white where the contents are stylised and black where they stay; or a folder
    with one for each content, by its name. It needs the content's proportions."""
    size: int | None = None
    """Shorter side in pixels to which larger contents are reduced; by default they keep theirs."""
    style_size: int = STYLE_SIZE
    """Shorter side in pixels at which styles are shown to the student: what it was trained with."""
    max_memory: float = MAX_MEMORY / 2**30
    """GiB for the computation: larger pictures are done in tiles."""
    smoothing: float = 0.5
    """Videos: share of the previous frame that still regions keep, against flicker; 0 to 0.95."""
    json: bool = False
    """Print one JSON object about all results, failed ones too, on standard output."""
    overwrite: bool = False
    """Replace results that exist already instead of keeping them."""

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; expected 0 to 1")
        if not 0 <= self.smoothing <= 0.95:
            raise ValueError(f"smoothing is {self.smoothing}; expected 0 to 0.95")
        for name in ("size", "style_size", "max_memory"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not self.content or not self.style:
            raise ValueError("expected at least one content and one style")
        weighted = [_weighted(spec) is not None for spec in self.style]
        if any(weighted) and not all(weighted):
            raise ValueError("some styles have weights and some have none; expected all or none")
        if self.json and self.out == STREAM:
            raise ValueError("--json and the picture would both go to standard output")
        if "" in (*self.content, *self.style, self.out):  # which would be the current folder
            raise ValueError("content, style or out is empty; expected names")
        unknown = set(re.findall(r"\{.*?\}", self.out)) - {"{content}", "{style}"}
        if unknown:
            raise ValueError(f"out has {min(unknown)}; expected only {{content}} and {{style}}")
        suffix = Path(self.out).suffix.lower()
        if _is_pattern(self.out) and suffix not in (*FORMATS, *VIDEO_SUFFIXES):
            raise ValueError(
                f"out is {self.out!r}; expected a folder, or a file or pattern that ends in "
                f"{', '.join((*FORMATS, *VIDEO_SUFFIXES))}"
            )
        kinds = _kinds(self.content)
        if self.out == STREAM and "video" in kinds:
            raise ValueError("videos cannot go to standard output; expected a folder or file")
        for kind, suffixes in (("picture", FORMATS), ("video", VIDEO_SUFFIXES)):
            if _is_pattern(self.out) and kinds == {kind} and suffix not in suffixes:
                raise ValueError(
                    f"out is {self.out!r}; expected a {kind} to end in {', '.join(suffixes)}"
                )


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


class _Input(NamedTuple):
    """A picture, or a video, that was asked for."""

    id: str
    label: str
    path: Path | None
    source: ImageSource | None = None
    index: int = 0

    @property
    def is_video(self) -> bool:
        return self.path is not None and self.path.suffix.lower() in VIDEO_SUFFIXES

    def load(self, size: int | None) -> tuple[UInt8[np.ndarray, "h w 3"], bytes | None]:
        """Pixels, with the shorter side reduced to `size`, and the colour profile."""
        if self.source is not None and self.path is None:
            pixels, profile = self.source.load(self.index, at_least=size).pixels, None
        else:
            encoded = _read(self.path)
            pixels = decode_image(io.BytesIO(encoded), name=self.label, at_least=size).pixels
            profile = colour_profile(encoded)
        return (pixels if size is None else resize_shorter_side(pixels, size)), profile


def stylise_files(config: StyliseConfig) -> list[Result]:
    """Write a picture for each pair; unusable inputs are named, and the others still done.

    Raises:
        InputError: at the end, when some input failed; at once, when no result is possible.
    """
    enable_compilation_cache()
    start = time.monotonic()
    results: list[Result] = []
    try:
        _stylise_all(config, results)
    except InputError as error:
        if config.json:
            _print_json(results, time.monotonic() - start, str(error))
        raise
    if config.json:
        _print_json(results, time.monotonic() - start)
    return results


def _stylise_all(config: StyliseConfig, results: list[Result]) -> None:
    """Append what became of every input, also where an error ends it early."""
    start = time.monotonic()
    contents, missing_contents = _expand(config.content)
    specs = [_weighted(spec) or (spec, None) for spec in config.style]
    styles, missing_styles = _expand([spec for spec, _ in specs])
    results += [Result(spec, "", "", "failed", error=e) for spec, e in missing_contents]
    results += [Result("", spec, "", "failed", error=e) for spec, e in missing_styles]
    for result in results:
        _say(f"failed: {result.error}")
    if config.mask is not None and not Path(config.mask).exists():
        raise InputError(f"the mask {config.mask!r} does not exist; expected a grey picture.")
    if missing_styles and specs[0][1] is not None:
        raise InputError("a mixture needs all of its styles.")

    for name, found, specified in (
        ("content", contents, config.content),
        ("style", styles, config.style),
    ):
        if not found:
            raise InputError(f"no usable {name} in {' '.join(specified)!r}.")
    stylist = Stylist(
        open_student(config.checkpoint, config.step),
        style_size=config.style_size,
        max_memory=int(config.max_memory * 2**30),
    )
    encoded = _encode_styles(stylist, styles, [weight for _, weight in specs], results)
    if not encoded:
        raise InputError(f"no usable style in {' '.join(config.style)!r}.")

    files = {one.path for one in (*contents, *styles)}
    if config.mask is not None:
        files |= {Path(config.mask), *Path(config.mask).rglob("*")}
    jobs = _jobs(config, contents, list(encoded), files)
    with tqdm(total=len(jobs), unit="picture", desc="stylising", disable=None) as bar:
        for content, of_content in itertools.groupby(jobs, key=lambda job: job[0]):
            done = _stylise_one(config, stylist, content, list(of_content), encoded, bar)
            results.extend(done)
    if not config.json:
        _print_summary(config, results, time.monotonic() - start)
    failed = [result for result in results if result.status == "failed"]
    if failed:
        raise InputError(f"{len(failed)} of {len(results)} failed; the first: {failed[0].error}")


def _encode_styles(
    stylist: Stylist,
    styles: Sequence[_Input],
    weights: Sequence[float | None],
    results: list[Result],
) -> dict[str, EncodedStyle]:
    """Styles by name, or their mixture; those that cannot be read are appended to the results."""
    encoded = {}
    names = _names(styles)
    for name, style in zip(names, styles, strict=True):
        try:
            pixels, _ = style.load(None)
            encoded[name] = stylist.encode_style(pixels)
        except InputError as error:
            _say(f"failed: {error}")
            results.append(Result("", style.label, "", "failed", error=str(error)))
    if weights[0] is not None:
        if not len(weights) == len(styles) == len(encoded):
            raise InputError("a mixture needs one readable picture for each weight.")
        encoded = {"+".join(names): stylist.encode_style(list(encoded.values()), weights)}
    return encoded


def _stylise_one(config, stylist, content, jobs, encoded, bar) -> list[Result]:
    """All results of one content, which is decoded once, and only if something is to be done."""
    results, loaded, mask = [], None, None
    for _, style, out in jobs:
        began = time.monotonic()
        result = Result(content.label, style, str(out), "kept")
        if out == STREAM or config.overwrite or not Path(out).exists():
            try:
                _make_folder_of(out)
                mask = mask or _mask_of(content, config.mask)
                result = result._replace(mask=str(mask or ""))
                if content.is_video:
                    size = _stylise_video(config, stylist, content.path, mask, encoded[style], out)
                else:
                    loaded = loaded or (*content.load(config.size), mask)
                    size = _stylise_picture(config, stylist, *loaded, encoded[style], out)
                seconds = round(time.monotonic() - began, 3)
                result = result._replace(status="written", seconds=seconds)
                result = result._replace(height=size[0], width=size[1])
            except (InputError, OSError) as error:
                reason = str(error)
                if isinstance(error, OSError):  # reading fails with an InputError
                    reason = f"cannot write {str(out)!r}: {error.strerror or error}"
                result = result._replace(status="failed", error=reason)
                _say(f"failed: {reason}")
        results.append(result)
        bar.update()
    return results


def _stylise_picture(config, stylist, pixels, profile, mask, style, out) -> tuple[int, int]:
    plan = stylist.plan(*pixels.shape[:2], style)
    if plan.tile is not None:
        _say(str(plan))
    stylised = stylist(
        float_from_uint8(pixels),
        style,
        config.strength,
        preserve_colour=config.preserve_colour,
        mask=mask,
    )
    suffix = ".png" if out == STREAM else Path(out).suffix
    picture = encode(uint8_from_float(stylised), suffix, profile)
    if out == STREAM:
        sys.stdout.buffer.write(picture)
        sys.stdout.buffer.flush()
    else:
        with atomic_write(out) as file:
            file.write(picture)
    return pixels.shape[:2]


def _stylise_video(config, stylist, path, mask, style, out) -> tuple[int, int]:
    video = stylise_video(
        stylist,
        path,
        style,
        Path(out),
        strength=config.strength,
        preserve_colour=config.preserve_colour,
        mask=mask,
        smoothing=config.smoothing,
        size=config.size,
    )
    _say(str(video))
    return video.height, video.width


def _mask_of(content: _Input, mask: str | None) -> Path | None:
    """The picture that says where a content is stylised.

    Raises:
        InputError: a folder of masks has none with the content's name.
    """
    if mask is None or not Path(mask).is_dir():
        return None if mask is None else Path(mask)
    name = PurePosixPath(content.id)
    for suffix in IMAGE_SUFFIXES:
        path = Path(mask, name.with_suffix(suffix))
        if path.is_file():
            return path
    expected = str(Path(mask, name.with_suffix(".png")))
    raise InputError(f"{content.label!r} has no mask; expected {expected!r} or another format.")


def _make_folder_of(out: Path | str) -> None:
    """Before the work, so that a place that cannot be written is found at once.

    Raises:
        InputError: a file is where a folder should be.
        OSError: no permission and so on.
    """
    try:
        if out != STREAM:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"cannot write {str(out)!r}: its folder is a file.") from error


def _expand(specs: Sequence[str]) -> tuple[list[_Input], list[tuple[str, str]]]:
    """All pictures that the specs stand for, and the specs that stand for none, with reasons."""
    inputs, missing = [], []
    for spec in specs:
        if spec == STREAM:
            inputs.append(_Input("stdin", "standard input", None))
            continue
        paths = _paths(spec)
        if not paths:
            missing.append((spec, f"{spec!r} matches nothing; expected pictures"))
        for path in paths:
            if Path(path).suffix.lower() in VIDEO_SUFFIXES and Path(path).is_file():
                inputs.append(_Input(Path(path).name, path, Path(path)))
                continue
            try:
                source = open_source(path)
            except InputError as error:
                missing.append((path, str(error)))
                continue
            missing += [(name, f"{name!r} {reason}") for name, reason in source.skipped]
            for index, name in enumerate(source.ids):
                file = None
                if isinstance(source, ImageFile):
                    file = source.path
                elif isinstance(source, ImageFolder):
                    file = source.folder / name
                inputs.append(_Input(name, str(file or name), file, source, index))
    unique = {picture.label: picture for picture in inputs}
    return list(unique.values()), missing


def _paths(spec: str) -> list[str]:
    """What a pattern matches; anything else stands for itself."""
    if glob.has_magic(spec) and not Path(spec).exists() and not spec.startswith("tfds:"):
        return sorted(glob.glob(spec, recursive=True))
    return [spec]


def _kinds(specs: Sequence[str]) -> set[Literal["picture", "video"]]:
    """What the specs stand for, by their names."""
    suffixes = (Path(path).suffix.lower() for spec in specs for path in _paths(spec))
    return {"video" if suffix in VIDEO_SUFFIXES else "picture" for suffix in suffixes}


def _jobs(config, contents, styles, inputs) -> list[tuple[_Input, str, Path | str]]:
    """Content, style and place of every result.

    Raises:
        InputError: two results would share a place, or one would replace an input.
    """
    jobs, places = [], {}
    inputs = {path.resolve() for path in inputs if path is not None}
    for content, name in zip(contents, _names(contents), strict=True):
        for style in styles:
            out = _place(config.out, name, style, content.is_video)
            if out in places:
                raise InputError(
                    f"{places[out]} and {content.label} with {style} would both be {out}; "
                    "give a folder, or a pattern with {content} and {style}."
                )
            if out != STREAM and out.resolve() in inputs:
                raise InputError(f"{out} is one of the inputs; choose another place for results.")
            places[out] = f"{content.label} with {style}"
            jobs.append((content, style, out))
    return jobs


def _place(out: str, content: str, style: str, video: bool) -> Path | str:
    if out == STREAM:
        return STREAM
    if not _is_pattern(out):
        return Path(out) / f"{content}--{style}{'.mp4' if video else '.png'}"
    place = Path(out.replace("{content}", content).replace("{style}", style))
    if video != (place.suffix.lower() in VIDEO_SUFFIXES):
        place = place.with_suffix(".mp4" if video else ".png")
    return place


def _is_pattern(out: str) -> bool:
    named = "{content}" in out or "{style}" in out
    is_file = Path(out).suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    return named or (is_file and not Path(out).is_dir())


def _weighted(spec: str) -> tuple[str, float] | None:
    """Path and weight of "a.jpg:0.7"."""
    match = re.fullmatch(r"(.+):(\d+\.?\d*|\.\d+)", spec)
    if match is None or spec.startswith("tfds:") or Path(spec).exists():
        return None
    return match[1], float(match[2])


def _names(inputs: Sequence[_Input]) -> list[str]:
    """Ids as parts of file names: folders joined by "_", suffixes dropped where that is unique.

    Raises:
        InputError: two inputs would share a name.
    """
    ways = (
        [PurePosixPath(one.id).with_suffix("") for one in inputs],
        [PurePosixPath(one.id) for one in inputs],  # such as a.jpg beside a.png
        [PurePosixPath(Path(one.label).as_posix()) for one in inputs],  # x/a.jpg beside y/a.jpg
    )
    for way in ways:
        names = ["_".join(part for part in path.parts if part not in "/..") for path in way]
        if len(set(names)) == len(names):
            return names
    for i, name in enumerate(names):
        if name in names[:i]:
            first, second = inputs[names.index(name)].label, inputs[i].label
            raise InputError(f'"{first}" and "{second}" would share a result name.')
    return names


def _read(path: Path | None) -> bytes:
    if path is not None:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ImageError(f"cannot read {str(path)!r}: {error.strerror}") from error
    data = sys.stdin.buffer.read(MAX_STREAM_BYTES + 1)
    if len(data) > MAX_STREAM_BYTES:
        raise ImageError(f"standard input has more than {MAX_STREAM_BYTES >> 20} MiB")
    return data


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
        each = f", {times[len(times) // 2]:.2f} s a picture (median)"
    print(
        f"{counts['written']} pictures written to {config.out} in {seconds:.1f} s{each}; "
        f"{counts['kept']} were there already and kept, {counts['failed']} inputs failed.",
        file=sys.stderr if config.out == STREAM else sys.stdout,
    )
