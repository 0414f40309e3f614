"""Stylising picture files: each content with each style."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from tqdm import tqdm

from student_jax.compilation import enable_compilation_cache
from student_jax.pretrained import open_student
from student_jax.stylise import Stylist
from triplets import (
    ImageError,
    ImageSource,
    InputError,
    float_from_uint8,
    open_source,
    resize_shorter_side,
    uint8_from_float,
    write_image,
)


@dataclass(frozen=True)
class StyliseConfig:
    """Stylise each content with each style."""

    content: str
    """Picture, or folder of pictures."""
    style: str
    """Picture, or folder of pictures."""
    out: Path
    """Folder for the results, CONTENT--STYLE.png."""
    checkpoint: str = "mini"
    """"mini" (the bundled student), the workdir of a training run, or an exported folder."""
    step: Literal["best", "latest"] | int = "best"
    """Which checkpoint of a training run."""
    strength: float = 1.0
    """0 keeps the content, 1 is the student's full effect."""
    style_size: int = 256
    """Shorter side in pixels at which styles are shown to the student: what it was trained with."""
    overwrite: bool = False
    """Replace results that exist already instead of keeping them."""


def stylise_files(config: StyliseConfig) -> None:
    """Write a picture for each pair; unusable pictures are named and left out.

    Raises:
        InputError: nothing usable was given.
    """
    enable_compilation_cache()
    stylist = Stylist(open_student(config.checkpoint, config.step))
    contents, styles = open_source(config.content), open_source(config.style)
    skipped = len(contents.skipped) + len(styles.skipped)
    for name, reason in (*contents.skipped, *styles.skipped):
        print(f"skipped {name}: {reason}", file=sys.stderr)

    def load(source: ImageSource, index: int, size: int | None) -> np.ndarray | None:
        nonlocal skipped
        try:
            pixels = source.load(index, at_least=size).pixels
        except ImageError as error:
            skipped += 1
            tqdm.write(f"skipped {source.ids[index]}: {error}", file=sys.stderr)
            return None
        return float_from_uint8(pixels if size is None else resize_shorter_side(pixels, size))

    content_names, style_names = _output_names(contents.ids), _output_names(styles.ids)
    loaded = ((name, load(styles, i, config.style_size)) for i, name in enumerate(style_names))
    usable_styles = [(name, style) for name, style in loaded if style is not None]
    if not usable_styles:
        raise InputError(f'no usable style in "{config.style}".')
    config.out.mkdir(parents=True, exist_ok=True)
    written = kept = 0
    start = time.monotonic()
    total = len(contents) * len(usable_styles)
    with tqdm(total=total, unit="picture", desc="stylising") as bar:
        for i, content_name in enumerate(content_names):
            content = load(contents, i, None)
            for style_name, style in usable_styles:
                path = config.out / f"{content_name}--{style_name}.png"
                if content is not None:
                    if path.exists() and not config.overwrite:
                        kept += 1
                    else:
                        stylised = stylist(content, style, config.strength)
                        write_image(path, uint8_from_float(stylised))
                        written += 1
                bar.update()
    seconds = time.monotonic() - start
    print(
        f"{written} pictures written to {config.out} in {seconds:.1f} s; {kept} were there already "
        f"and kept, {skipped} inputs were skipped."
    )
    if not written + kept:
        raise InputError(f'no usable content in "{config.content}".')


def _output_names(ids: Sequence[str]) -> list[str]:
    """Ids (relative paths) as parts of file names: folders joined by "_", suffixes dropped.

    Raises:
        InputError: two pictures would share a name.
    """
    names = ["_".join(PurePosixPath(i).with_suffix("").parts) for i in ids]
    if len(set(names)) < len(names):  # such as a.jpg beside a.png
        names = ["_".join(PurePosixPath(i).parts) for i in ids]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(
                f'"{ids[names.index(name)]}" and "{ids[i]}" would share a result name.'
            )
    return names
