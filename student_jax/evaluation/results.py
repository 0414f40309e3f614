"""Stylised pictures of anyone's, found by the names of their contents and styles."""

from collections.abc import Sequence
from pathlib import Path

from student_jax.evaluation.config import EvaluateConfig
from student_jax.evaluation.judge import Example, Method
from student_jax.evaluation.measures.pixels import Picture
from student_jax.inference.result_names import name_of_file, possible_names
from triplets import ImageFolder, InputError, crop_and_resize, float_from_uint8, read_image


def results_method(config: EvaluateConfig, ids: Sequence[tuple[str, str]]) -> Method:
    """The pictures of --results as a method that reads the one of an example.

    Raises:
        InputError: as `find_results`; the method, of a picture that does not suit its content.
    """
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
