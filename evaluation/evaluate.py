"""A student, a teacher's dump or a folder of results by anyone, measured beside three baselines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from evaluation.baselines import BASELINES
from evaluation.gold_set import GoldSet
from evaluation.measures import Example, Judge, Judgement, Method, Picture, on_pictures
from evaluation.report import html_page, json_text, markdown_table, notes, write_text
from student_jax.checkpoint import load_config
from student_jax.compilation import enable_compilation_cache
from student_jax.data import Triplets, open_triplets, split_triplets
from student_jax.pretrained import open_student
from student_jax.stylise import Stylist
from triplets import (
    ImageFolder,
    InputError,
    contact_sheet,
    crop_and_resize,
    float_from_uint8,
    load_images,
    open_source,
    read_image,
    resize_shorter_side,
    uint8_from_float,
    write_image,
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a student (--checkpoint) or anyone's pictures (--results) beside three baselines.

    On what: the triplets that the student's training held out (the default), a triplet dataset
    (--data), the gold set (--gold), or all pairs of two folders (--content, --style). With --data
    alone the dump itself is measured.
    """

    out: Path
    """Folder for report.html, table.md, measures.json and comparison.png."""
    checkpoint: str | None = None
    """Workdir of a training run, an exported student, or "mini"."""
    step: Literal["best", "latest"] | int = "best"
    """Which checkpoint of a training run."""
    results: Path | None = None
    """Folder of stylised pictures named CONTENT--STYLE, as scripts/stylize.py writes them, or
    CONTENT_stylized_STYLE, as StyleID's authors do."""
    data: str | None = None
    """Triplets, a folder or tfds:NAME:SPLIT: also the fidelity to their teacher is measured."""
    gold: bool = False
    """Use the gold set: fixed pairs of the sample pictures."""
    own_gold: Path | None = None
    """Folder with content/ and style/: pairs to add to the gold set."""
    content: str | None = None
    """Contents of StyleID's protocol: a folder or tfds:NAME:SPLIT."""
    style: str | None = None
    """Styles of StyleID's protocol, each for every content."""
    size: int = 512
    """Side in pixels to which contents, styles and results are cropped and resized; triplets stay
    as they are."""
    style_size: int = 256
    """Side in pixels at which styles of --gold and --style are shown to the student."""
    max_pairs: int = 64
    """Held-out triplets or triplets of --data at most, evenly spread."""
    structure: bool = True
    """Measure CFSD, which takes most of the time on a CPU."""
    vgg19_weights: Path | None = None
    """For CFSD as published: safetensors file with torchvision's names."""
    fid_weights: Path | None = None
    """For FID and ArtFID: the art Inception as scripts/convert_art_inception.py writes it."""
    rows: int = 6
    """Examples in the comparison picture and in the report."""

    def __post_init__(self):
        for name in ("size", "style_size", "max_pairs", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")


@dataclass(frozen=True)
class ExampleSet:
    """What to measure on."""

    description: str
    examples: Iterator[Example]
    count: int
    style_size: int | None = None
    """Side at which the student sees styles; None for as they are."""


def evaluate(config: EvaluateConfig) -> Judgement:
    """Print the table and write the report; see `EvaluateConfig`.

    Raises:
        InputError: a run, a dataset, weights or pictures that cannot be used.
    """
    enable_compilation_cache()
    chosen = choose_examples(config)
    methods: dict[str, Method] = {}
    if config.checkpoint is not None:
        stylist = Stylist(open_student(config.checkpoint, config.step))
        methods["student"] = _student_method(stylist, chosen.style_size)
    if config.results is not None:
        methods["results"] = _results_method(config.results, config.data, config.size)
    methods |= {name: on_pictures(function) for name, function in BASELINES.items()}
    judge = Judge(
        vgg19_weights=config.vgg19_weights,
        fid_weights=config.fid_weights,
        structure=config.structure,
    )
    rows, captions = [], []

    def draw(example: Example, results: dict[str, Picture]) -> None:
        shown = {"content": example.content, "style": example.style}
        if example.teacher is not None:
            shown["teacher"] = example.teacher
        shown |= {name: image for name, image in results.items() if name not in BASELINES}
        captions[:] = shown
        if len(rows) < config.rows:
            rows.append([uint8_from_float(image) for image in shown.values()])
        bar.update()

    with tqdm(total=chosen.count, unit="example", desc="evaluating") as bar:
        judgement = judge.of_methods(methods, chosen.examples, seen=draw)
    description = chosen.description
    if config.checkpoint is not None:
        description += f"; student: {describe_student(config.checkpoint)}"
    write_report(config.out, judgement, description, captions, rows)
    return judgement


def describe_student(name: str) -> str:
    """Where a student comes from: a training run's start, or the name that was given."""
    if not (Path(name) / "checkpoints").is_dir():
        return name
    run = load_config(Path(name))
    start = "from scratch" if run["init_from"] is None else f'further from "{run["init_from"]}"'
    return f"trained {start}, loss {run['loss']}, up to {run['steps']} steps"


def write_report(
    out: Path,
    judgement: Judgement,
    description: str,
    captions: Sequence[str],
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
) -> None:
    """Print the table and write comparison.png, table.md, measures.json and report.html."""
    table = markdown_table(judgement, f"on {judgement.count} {description}")
    remarks = "\n".join(f"- {note}" for note in notes(judgement))
    print(table)
    for name, reason in judgement.missing.items():
        print(f"not measured: {name}, because {reason}.")
    write_text(out / "table.md", f"{table}\n\n{remarks}")
    write_text(out / "measures.json", json_text(judgement, on=description))
    page = html_page(
        judgement,
        title="Evaluation",
        summary=f"Means over {judgement.count} {description}.",
        captions=captions,
        rows=rows,
    )
    write_text(out / "report.html", page)
    write_image(out / "comparison.png", contact_sheet(rows, captions))


def choose_examples(config: EvaluateConfig) -> ExampleSet:
    """What the command line asks to measure on.

    Raises:
        InputError: nothing to measure or nothing to measure on, or more than one thing.
    """
    if (config.content is None) != (config.style is None):
        raise InputError("--content and --style go together.")
    given = {
        "--data": config.data is not None,
        "--gold": config.gold or config.own_gold is not None,
        "--content and --style": config.content is not None,
    }
    if sum(given.values()) > 1:
        both = ", ".join(name for name, is_given in given.items() if is_given)
        raise InputError(f"{both} are given; expected one set of pictures to measure on.")
    if config.checkpoint is None and config.results is None and config.data is None:
        raise InputError("nothing to measure: give --checkpoint, --results or --data.")
    if config.data is not None:
        dataset = open_triplets(config.data)
        indices = spread(np.arange(len(dataset)), config.max_pairs)
        return ExampleSet("triplets", triplet_examples([(dataset, indices)]), len(indices))
    if given["--gold"]:
        gold = GoldSet.load(config.own_gold)
        description = f"pairs of the gold set {gold.sha256[:8]} at {config.size} px"
        examples = _gold_examples(gold, config.size)
        return ExampleSet(description, examples, len(gold.pairs), config.style_size)
    if config.content is not None:
        (contents, _), (styles, _) = (
            load_images(open_source(spec), config.size) for spec in (config.content, config.style)
        )
        description = f"pairs, {len(contents)} contents x {len(styles)} styles at {config.size} px"
        count = len(contents) * len(styles)
        examples = (
            _example(contents.images[i], styles.images[j], None, contents.ids[i], styles.ids[j])
            for i in range(len(contents))
            for j in range(len(styles))
        )
        return ExampleSet(description, examples, count, config.style_size)
    if config.checkpoint is None:
        raise InputError(
            "nothing to measure the results on: give --data, --gold, or --content and --style."
        )
    held_out = held_out_triplets(Path(config.checkpoint), config.max_pairs)
    count = sum(len(indices) for _, indices in held_out)
    return ExampleSet("held-out triplets", triplet_examples(held_out), count)


def held_out_triplets(workdir: Path, max_pairs: int) -> list[tuple[Triplets, Sequence[int]]]:
    """The datasets that a training run validated on, and which of their triplets it held out.

    Raises:
        InputError: no run or no dataset there.
    """
    if not (workdir / "config.json").is_file() or not (workdir / "checkpoints").is_dir():
        raise InputError(
            f'"{workdir}" is not the workdir of a training run, so nothing is known to be held '
            "out: give --data, --gold, or --content and --style."
        )
    run = load_config(workdir)
    if run["validation"]:
        dataset = open_triplets(run["validation"])
        return [(dataset, spread(np.arange(len(dataset)), max_pairs))]
    names = run["data"] if isinstance(run["data"], list) else [run["data"]]
    datasets = [open_triplets(name) for name in names]
    each = -(-max_pairs // len(datasets))
    return [
        (dataset, spread(split_triplets(dataset, run["held_out_fraction"]).held_out, each))
        for dataset in datasets
    ]


def spread(indices: np.ndarray, count: int) -> Sequence[int]:
    """At most `count` of the indices, evenly spread."""
    if len(indices) > count:
        indices = indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]
    return [int(index) for index in indices]


def triplet_examples(
    chosen: Sequence[tuple[Triplets, Sequence[int]]],
) -> Iterator[Example]:
    """Triplets of some datasets, one at a time."""
    for dataset, indices in chosen:
        for index in indices:
            yield _example(*dataset[index])


def _gold_examples(gold: GoldSet, size: int) -> Iterator[Example]:
    for content, style in gold.pairs:
        pictures = (crop_and_resize(read_image(file), size) for file in (content, style))
        yield _example(*pictures, None, content.name, style.name)


def _example(content, style, teacher, content_id: str, style_id: str) -> Example:
    stylised = None if teacher is None else float_from_uint8(teacher)
    name = f"{_stem(content_id)}--{_stem(style_id)}"
    return Example(float_from_uint8(content), float_from_uint8(style), stylised, name)


def _stem(picture_id: str) -> str:
    return "_".join(PurePosixPath(picture_id).with_suffix("").parts)


def _student_method(
    stylist: Callable[[Picture, Picture], Picture], style_size: int | None
) -> Method:
    def stylise(example: Example) -> Picture:
        style = example.style
        if style_size is not None and style_size < min(style.shape[:2]):
            small = resize_shorter_side(uint8_from_float(style), style_size)
            style = float_from_uint8(small)
        return stylist(example.content, style)

    return stylise


def _results_method(folder: Path, data: str | None, size: int) -> Method:
    files = {_stem(name).replace("_stylized_", "--"): name for name in ImageFolder(folder).ids}

    def read(example: Example) -> Picture:
        if example.name not in files:
            raise InputError(
                f'{folder} has no result "{example.name}"; expected one for every pair, named '
                "CONTENT--STYLE."
            )
        pixels = read_image(folder / files[example.name])
        if data is None:
            pixels = crop_and_resize(pixels, size)
        if pixels.shape != example.content.shape:
            raise InputError(
                f'the result "{files[example.name]}" has {pixels.shape[1]} x {pixels.shape[0]} px, '
                f"its content {example.content.shape[1]} x {example.content.shape[0]}."
            )
        return float_from_uint8(pixels)

    return read
