"""Training pictures of the mini teacher: augmented crops at, or near, native scale."""

import csv
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import Dataset

from triplets import InputError, read_image, training_files


def group_by_artist(files: list[Path], table: Path) -> list[list[Path]]:
    """Files of one artist together, by a CSV table with the columns "file" and "artist".

    Folders in the column "file" do not count. A file that the table lacks is a group of its own.

    Raises:
        InputError: the table cannot be read, or lacks a column.
    """
    try:
        with table.open(newline="", encoding="utf-8") as lines:
            artists = {Path(row["file"]).name: row["artist"] for row in csv.DictReader(lines)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f'--artists "{table}" cannot be read: {error}.') from error
    except KeyError as error:
        raise InputError(f'--artists "{table}" has no column {error}.') from error
    groups: dict[tuple, list[Path]] = {}
    for file in files:
        known = file.name in artists
        groups.setdefault((known, artists[file.name] if known else file.name), []).append(file)
    return list(groups.values())


class NativeCrops(Dataset):
    """Endless augmented squares, float [3 size size] in [-1, 1]; each a function of (seed, index).

    Photos and paintings alternate, and paintings are drawn evenly by artist. A square of `size`
    to `size / min_scale` pixels is cut where the picture has as many, so that strokes keep their
    size; of smaller pictures at least 0.8 of the shorter side. It is resized, mirrored half of
    the time, and its brightness, contrast and saturation vary mildly.

    Raises:
        InputError: a folder without pictures to train on, or a table that cannot be read.
    """

    def __init__(
        self,
        photos: Path,
        paintings: Path,
        artists: Path | None,
        *,
        size: int,
        min_scale: float,
        seed: tuple[int, ...],
    ):
        by_artist = training_files(paintings)
        self.kinds = [
            [[file] for file in training_files(photos)],
            group_by_artist(by_artist, artists) if artists else [[file] for file in by_artist],
        ]
        self.size, self.min_scale, self.seed = size, min_scale, seed

    @property
    def files(self) -> list[Path]:
        """All pictures that crops are cut from."""
        return [file for kind in self.kinds for group in kind for file in group]

    def draw(self, index: int) -> tuple[Path, np.random.Generator]:
        """The picture of a sample, and the generator of what follows."""
        rng = np.random.default_rng((*self.seed, index))
        kind = self.kinds[index % len(self.kinds)]
        group = kind[rng.integers(len(kind))]
        return group[rng.integers(len(group))], rng

    def __getitem__(self, index: int) -> Float[Tensor, "3 size size"]:
        file, rng = self.draw(index)
        pixels = read_image(file)
        shorter = min(pixels.shape[:2])
        largest = min(shorter, self.size / self.min_scale)
        side = int(rng.uniform(min(self.size, 0.8 * largest), largest))
        top = int(rng.integers(pixels.shape[0] - side + 1))
        left = int(rng.integers(pixels.shape[1] - side + 1))
        image = resized_square(pixels, top, left, side, self.size)
        if rng.random() < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(rng.uniform(0.8, 1.2))
        return _to_tensor(image)


def central_crop(file: Path, size: int, shift: float = 0.0) -> Float[Tensor, "3 size size"]:
    """The central square of `size` pixels at native scale, in [-1, 1]; smaller pictures grow.

    Args:
        file: the picture.
        size: side in pixels.
        shift: -1 for the square at the top left instead, 1 for that at the bottom right.
    """
    pixels = read_image(file)
    side = min(size, *pixels.shape[:2])
    top, left = (round((n - side) * (1 + shift) / 2) for n in pixels.shape[:2])
    return _to_tensor(resized_square(pixels, top, left, side, size))


def resized_square(
    pixels: UInt8[np.ndarray, "h w 3"], top: int, left: int, side: int, size: int
) -> Image.Image:
    """A square cut out, and resized where it has not `size` pixels a side."""
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
