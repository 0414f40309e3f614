"""A student, a teacher's dump or a folder of results by anyone, measured beside three baselines."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from student_jax.compilation import enable_compilation_cache
from student_jax.evaluation.baselines import BASELINES
from student_jax.evaluation.gold_set import GoldSet
from student_jax.evaluation.judge import (
    Example,
    Judge,
    Judgement,
    Method,
    Picture,
    on_pictures,
    smallest_side,
)
from student_jax.evaluation.report import html_page, json_text, markdown_table, notes, write_text
from student_jax.inference.result_names import name_of_file, possible_names
from student_jax.inference.stylist import Stylist
from student_jax.training.checkpoint import load_config
from student_jax.training.data import Triplets, open_triplets, split_triplets
from student_jax.weights.folder import open_student
from triplets import (
    ImageFolder,
    ImageSet,
    InputError,
    contact_sheet,
    crop_and_resize,
    float_from_uint8,
    load_images,
    open_source,
    read_image,
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
    """Which checkpoint of a training run; "best" has the smallest squared error, but of a run with
    another loss than L1 it is the latest: that error would choose the smoothest pictures."""
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
    """Shorter side in pixels to which larger styles are reduced before the student sees them."""
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
        if self.size < self.smallest_side:
            raise ValueError(
                f"size is {self.size}; the measures need {self.smallest_side} px or more"
            )

    @property
    def smallest_side(self) -> int:
        """Side in pixels below which the chosen measures cannot be taken."""
        return smallest_side(self.fid_weights)


@dataclass(frozen=True)
class ChosenExamples:
    """What to measure on."""

    description: str
    examples: Iterator[Example]
    ids: Sequence[tuple[str, str]]
    """Of the content and the style of each."""
    skipped: Sequence[str] = ()
    """Pictures that cannot be used, each with the reason."""


@dataclass(frozen=True)
class MeasuredStudent:
    """What a report says of a student."""

    origin: str
    """Its training, or the name that was given."""
    checkpoint: str
    step: Literal["best", "latest"] | int | None
    """As it was asked for; None for a student that is not a training run's."""
    style_size: int
    """Shorter side in pixels to which larger styles were reduced for it."""

    @classmethod
    def of(cls, config: EvaluateConfig) -> "MeasuredStudent":
        """The student of --checkpoint."""
        origin, step = config.checkpoint, None
        if (Path(config.checkpoint) / "checkpoints").is_dir():
            run, step = load_config(Path(config.checkpoint)), config.step
            start = f'further from "{run["init_from"]}"' if run["init_from"] else "from scratch"
            origin = f"trained {start}, loss {run['loss']}, up to {run['steps']} steps"
        return cls(origin, config.checkpoint, step, config.style_size)

    def __str__(self) -> str:
        step = "" if self.step is None else f", --step {self.step}"
        return f"{self.origin}{step}, styles reduced to {self.style_size} px where they are larger"


def evaluate(config: EvaluateConfig) -> Judgement:
    """Print the table and write the report; see `EvaluateConfig`.

    Raises:
        InputError: a run, a dataset, weights or pictures that cannot be used.
    """
    enable_compilation_cache()
    chosen = choose_examples(config)
    for line in chosen.skipped:
        print(line, file=sys.stderr)
    methods: dict[str, Method] = {}
    student = None
    if config.checkpoint is not None:
        student = MeasuredStudent.of(config)
        model = open_student(config.checkpoint, config.step)
        methods["student"] = on_pictures(Stylist(model, style_size=config.style_size))
    if config.results is not None:
        methods["results"] = _results_method(config, chosen.ids)
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

    with tqdm(total=len(chosen.ids), unit="example", desc="evaluating") as bar:
        judgement = judge.of_methods(methods, chosen.examples, seen=draw)
    write_report(config.out, judgement, chosen, student, captions, rows)
    return judgement


def write_report(
    out: Path,
    judgement: Judgement,
    chosen: ChosenExamples,
    student: MeasuredStudent | None,
    captions: Sequence[str],
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
) -> None:
    """Print the table and write comparison.png, table.md, measures.json and report.html."""
    description = chosen.description
    if student is not None:
        description += f"; student: {student}"
    table = markdown_table(judgement, f"on {judgement.count} {description}")
    remarks = [*chosen.skipped, *notes(judgement)]
    print(table)
    for name, reason in judgement.missing.items():
        print(f"not measured: {name}, because {reason}.")
    write_text(out / "table.md", "\n".join([table, "", *(f"- {line}" for line in remarks)]))
    about = {
        "on": description,
        "student": None if student is None else asdict(student),
        "skipped": list(chosen.skipped),
    }
    write_text(out / "measures.json", json_text(judgement, **about))
    page = html_page(
        judgement,
        title="Evaluation",
        summary=f"Means over {judgement.count} {description}.",
        remarks=remarks,
        captions=captions,
        rows=rows,
    )
    write_text(out / "report.html", page)
    write_image(out / "comparison.png", contact_sheet(rows, captions))


def choose_examples(config: EvaluateConfig) -> ChosenExamples:
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
        return _triplet_set("triplets", [(dataset, indices)])
    if given["--gold"]:
        gold = GoldSet.load(config.own_gold)
        description = f"pairs of the gold set {gold.sha256[:8]} at {config.size} px"
        return ChosenExamples(description, _gold_examples(gold, config.size), gold.ids)
    if config.content is not None:
        contents, skipped_contents = _usable("content", config.content, config.size)
        styles, skipped_styles = _usable("style", config.style, config.size)
        description = f"pairs, {len(contents)} contents x {len(styles)} styles at {config.size} px"
        rows = list(itertools.product(range(len(contents)), range(len(styles))))
        examples = (
            _example(contents.images[i], styles.images[j], None, contents.ids[i], styles.ids[j])
            for i, j in rows
        )
        ids = [(contents.ids[i], styles.ids[j]) for i, j in rows]
        return ChosenExamples(description, examples, ids, skipped_contents + skipped_styles)
    if config.checkpoint is None:
        raise InputError(
            "nothing to measure the results on: give --data, --gold, or --content and --style."
        )
    held_out = held_out_triplets(Path(config.checkpoint), config.max_pairs)
    return _triplet_set("held-out triplets", held_out)


def _triplet_set(
    description: str, chosen: Sequence[tuple[Triplets, Sequence[int]]]
) -> ChosenExamples:
    return ChosenExamples(description, triplet_examples(chosen), triplet_ids(chosen))


def _usable(kind: str, spec: str, size: int) -> tuple[ImageSet, list[str]]:
    """The pictures of a source that can be used, and the others with the reason of each."""
    images, skipped = load_images(open_source(spec), size)
    return images, [f"skipped {kind} {name}: {reason}" for name, reason in skipped]


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


def triplet_ids(chosen: Sequence[tuple[Triplets, Sequence[int]]]) -> list[tuple[str, str]]:
    """Content and style of each, without reading a picture."""
    return [
        (dataset.content_ids[content], dataset.style_ids[style])
        for dataset, indices in chosen
        for content, style in dataset.pairs[list(indices)]
    ]


def _gold_examples(gold: GoldSet, size: int) -> Iterator[Example]:
    for pair, ids in zip(gold.pairs, gold.ids, strict=True):
        pictures = (crop_and_resize(read_image(file), size) for file in pair)
        yield _example(*pictures, None, *ids)


def _example(content, style, teacher, content_id: str, style_id: str) -> Example:
    stylised = None if teacher is None else float_from_uint8(teacher)
    ids = (content_id, style_id)
    return Example(float_from_uint8(content), float_from_uint8(style), stylised, ids)


def _results_method(config: EvaluateConfig, ids: Sequence[tuple[str, str]]) -> Method:
    files = find_results(config.results, ids)

    def read(example: Example) -> Picture:
        name = files[example.ids]
        pixels = read_image(config.results / name)
        height, width = pixels.shape[:2]
        if min(height, width) < config.smallest_side:
            raise InputError(
                f'the result "{name}" has {width} x {height} px; the measures need '
                f"{config.smallest_side} px or more."
            )
        if example.teacher is None:  # triplets stay as they are
            pixels = crop_and_resize(pixels, config.size)
        if pixels.shape != example.content.shape:
            raise InputError(
                f'the result "{name}" has {width} x {height} px, its content '
                f"{example.content.shape[1]} x {example.content.shape[0]}."
            )
        return float_from_uint8(pixels)

    return read


def find_results(folder: Path, ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The file of each content and style, by their ids.

    Raises:
        InputError: a pair has no result, or several, or shares its result with another pair.
    """
    files: dict[str, str] = {}
    for file in ImageFolder(folder).ids:
        name = name_of_file(file)
        if name in files:
            raise InputError(
                f'"{files[name]}" and "{file}" in {folder} share a name; expected one result for '
                "every pair."
            )
        files[name] = file
    found: dict[tuple[str, str], str] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for pair in ids:
        names = possible_names(*pair)
        matches = sorted({files[name] for name in names if name in files})
        if not matches:
            raise InputError(
                f'{folder} has no result "{names[0]}"; expected one for every pair, named '
                "CONTENT--STYLE."
            )
        if len(matches) > 1:
            raise InputError(f'"{matches[0]}" and "{matches[1]}" in {folder} are of one pair.')
        [file] = matches
        if file in pairs:
            either = " or ".join(
                f"{content} with {style}" for content, style in (pairs[file], pair)
            )
            raise InputError(f'the result "{file}" could be that of {either}; rename the pictures.')
        found[pair], pairs[file] = file, pair
    return found
