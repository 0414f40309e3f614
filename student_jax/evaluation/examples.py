"""What to measure on: triplets, the gold set, or all pairs of two folders."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from student_jax.evaluation.config import EvaluateConfig
from student_jax.evaluation.gold_set import GoldSet
from student_jax.evaluation.judge import Example
from student_jax.training.checkpoint import load_config
from student_jax.training.data import Triplets, open_triplets, split_triplets
from triplets import (
    Cache,
    ImageSet,
    InputError,
    crop_and_resize,
    float_from_uint8,
    load_images,
    open_source,
    read_image,
)


@dataclass(frozen=True)
class ChosenExamples:
    """What to measure on."""

    description: str
    examples: Iterator[Example]
    ids: Sequence[tuple[str, str]]
    """Of the content and the style of each."""
    skipped: Sequence[str] = ()
    """Pictures that cannot be used, each with the reason."""


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
        dataset = open_triplets(config.data, Cache.of(config.cache_dir, config.cache_gib))
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
    cache = Cache.of(config.cache_dir, config.cache_gib)
    validated_on = validation_triplets(Path(config.checkpoint), config.max_pairs, cache)
    return _triplet_set("validation triplets", validated_on)


def _triplet_set(
    description: str, chosen: Sequence[tuple[Triplets, Sequence[int]]]
) -> ChosenExamples:
    return ChosenExamples(description, triplet_examples(chosen), triplet_ids(chosen))


def _usable(kind: str, spec: str, size: int) -> tuple[ImageSet, list[str]]:
    """The pictures of a source that can be used, and the others with the reason of each."""
    images, skipped = load_images(open_source(spec), size)
    return images, [f"skipped {kind} {name}: {reason}" for name, reason in skipped]


def validation_triplets(
    workdir: Path, max_pairs: int, cache: Cache | None = None
) -> list[tuple[Triplets, Sequence[int]]]:
    """The datasets that a training run validated on, and the indices of those triplets.

    Raises:
        InputError: no run or no dataset there.
    """
    if not (workdir / "config.json").is_file() or not (workdir / "checkpoints").is_dir():
        raise InputError(
            f'"{workdir}" is not the workdir of a training run, which would say what it '
            "validated on: give --data, --gold, or --content and --style."
        )
    run = load_config(workdir)
    if run["validation"]:
        dataset = open_triplets(run["validation"], cache)
        return [(dataset, spread(np.arange(len(dataset)), max_pairs))]
    names = run["data"] if isinstance(run["data"], list) else [run["data"]]
    datasets = [open_triplets(name, cache) for name in names]
    each = -(-max_pairs // len(datasets))
    return [
        (dataset, spread(split_triplets(dataset, run["validation_fraction"]).validation, each))
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
