"""How results are named: CONTENT--STYLE, or by the user's own pattern."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from student_jax.inference.inputs import STREAM, VIDEO_SUFFIXES, Input, Kind
from triplets import InputError
from triplets.images import IMAGE_SUFFIXES, WRITABLE_SUFFIXES

CONTENT_STYLE = "{content}--{style}"
"""Name of a result in a folder of results, without its suffix."""

STYLEID_AUTHORS = "{content}_stylized_{style}"
"""The same in the results of StyleID's authors."""

RESULT_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "picture": WRITABLE_SUFFIXES,
    "video": VIDEO_SUFFIXES,
}
"""What the file of a result may end in, the default first."""


_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


@dataclass(frozen=True)
class Job:
    """One result that is to be made."""

    content: Input
    style: str
    """Name of the style, or of the mixture of styles."""
    path: Path | None
    """Its file; None for standard output."""

    @property
    def out(self) -> str:
        """What messages call the result."""
        return STREAM if self.path is None else str(self.path)


def list_jobs(
    out: str, contents: Sequence[Input], styles: Sequence[str], files: Collection[Path]
) -> list[Job]:
    """Every content with every style, in this order.

    Args:
        out: as for `result_path`, or "-" for standard output.
        contents: the contents.
        styles: names of the styles.
        files: files that no result may replace.

    Raises:
        InputError: two results would have one path, or one would replace a file of `files`.
    """
    labels: dict[str, str] = {}
    files = {file.resolve() for file in files}
    jobs = []
    for content, name in zip(contents, unique_names(contents), strict=True):
        for style in styles:
            path = None if out == STREAM else result_path(out, name, style, content.kind)
            job = Job(content, style, path)
            label = f"{content.label} with {style}"
            if job.out in labels:
                raise InputError(
                    f"{labels[job.out]} and {label} would both be {job.out}; give a folder, or a "
                    "pattern with {content} and {style}."
                )
            if path is not None and path.resolve() in files:
                raise InputError(f"{path} is one of the inputs; choose another path for results.")
            labels[job.out] = label
            jobs.append(job)
    return jobs


def result_path(out: str, content: str, style: str, kind: Kind = "picture") -> Path:
    """The file of a result.

    Args:
        out: a folder, or a file name that may hold {content} and {style}.
        content: name of the content.
        style: name of the style.
        kind: of the content; a suffix of the other kind is replaced.
    """
    suffix = ".mp4" if kind == "video" else ".png"
    if not is_file_name(out) or (not _has_fields(out) and Path(out).is_dir()):
        return Path(out) / (CONTENT_STYLE.format(content=content, style=style) + suffix)
    path = Path(out.replace("{content}", content).replace("{style}", style))
    is_video = path.suffix.lower() in VIDEO_SUFFIXES
    return path if is_video == (kind == "video") else path.with_suffix(suffix)


def is_file_name(out: str) -> bool:
    """Whether --out names files, perhaps by a pattern, rather than a folder; by the name alone."""
    return _has_fields(out) or (not out.endswith("/") and Path(out).suffix.lower() in _SUFFIXES)


def check_suffix(out: str, kinds: Collection[Kind | None]) -> None:
    """Refuse an --out that cannot hold results of these kinds, None being either kind.

    Raises:
        InputError: it can never be written, or not by contents that are all of one kind.
    """
    if out == STREAM:
        if "video" in kinds:
            raise InputError("videos cannot go to standard output; expected a folder or file.")
        return
    if not is_file_name(out):
        return
    suffix = Path(out).suffix.lower()
    every = (*WRITABLE_SUFFIXES, *VIDEO_SUFFIXES)
    if suffix not in every:
        raise InputError(
            f"out is {out!r}; expected a folder, or a file or pattern that ends in "
            f"{', '.join(every)}."
        )
    for kind, suffixes in RESULT_SUFFIXES.items():
        if set(kinds) == {kind} and suffix not in suffixes:
            raise InputError(f"out is {out!r}; expected a {kind} to end in {', '.join(suffixes)}.")


def unique_names(inputs: Sequence[Input]) -> list[str]:
    """Ids as parts of file names, without suffixes where that is enough to tell them apart.

    Raises:
        InputError: two inputs would share a name.
    """
    ways = (
        [_without_suffix(one.id) for one in inputs],
        [one.id for one in inputs],  # such as a.jpg beside a.png
        [Path(one.label).as_posix() for one in inputs],  # x/a.jpg beside y/a.jpg
    )
    for way in ways:
        names = [_flat(name) for name in way]
        if len(set(names)) == len(names):
            return names
    for i, name in enumerate(names):
        if name in names[:i]:
            first, second = inputs[names.index(name)].label, inputs[i].label
            raise InputError(
                f'"{first}" and "{second}" would share the result name {name}; rename one of them, '
                "or stylise it by itself into another folder."
            )
    return names


def possible_names(content_id: str, style_id: str) -> list[str]:
    """What the result of a pair may be called, without its suffix; the likeliest first.

    `style-distil stylize` gives these names, except to inputs that share an id.
    """
    return [
        pattern.format(content=content, style=style)
        for pattern in (CONTENT_STYLE, STYLEID_AUTHORS)
        for content in _short_and_long(content_id)
        for style in _short_and_long(style_id)
    ]


def name_of_file(file: str) -> str:
    """What a result is called, by its path within a folder of results."""
    return _flat(_without_suffix(file))


def _has_fields(out: str) -> bool:
    return "{content}" in out or "{style}" in out


def _short_and_long(id_: str) -> Iterator[str]:
    yield _flat(_without_suffix(id_))
    yield _flat(id_)


def _flat(name: str) -> str:
    return "_".join(part for part in PurePosixPath(name).parts if part not in ("/", ".."))


def _without_suffix(name: str) -> str:
    # Only a known suffix: what follows the last dot of "coco/2017:1.1.0:train:5" is part of the id.
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in _SUFFIXES else name
