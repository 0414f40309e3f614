"""Which contents meet which styles, in the order in which they are stylised."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from teacher_torch.teacher import ROLES
from triplets import ImageSet, InputError
from triplets.table import read_table


def plan_pairs(
    spec: str, contents: ImageSet, styles: ImageSet, seed: int, tile: tuple[int, int] = (8, 8)
) -> Int[np.ndarray, "p 2"]:
    """Pairs (content row, style row), ordered so that consecutive ones share pictures.

    Args:
        spec: "all"; "random:K" for K of all pairs; "tiles:K" for K random tiles, in which a pair
            that was there before is left out; or a CSV file of ids with the columns content and
            style.
        contents: the contents.
        styles: the styles.
        seed: decides random pairs.
        tile: contents and styles of a tile; the order goes through one tile after another. Of
            which a tile holds fewer, the tiles change more slowly: with (256, 1) all tiles of a
            style follow each other, so that it is needed only once.

    Raises:
        InputError: an unknown spec, or a CSV file that does not name pictures of both sets.
    """
    n, m = len(contents), len(styles)
    if spec == "all":
        pairs = np.indices((n, m)).reshape(2, -1).T
    elif spec.startswith("random:"):
        count = spec.removeprefix("random:")
        if not count.isdecimal() or not 1 <= int(count) <= n * m:
            raise InputError(
                f'--pairs "{spec}": expected random:K with K from 1 to {n * m}, the number of '
                f"combinations of {n} contents and {m} styles."
            )
        chosen = np.random.default_rng(seed).choice(n * m, int(count), replace=False)
        pairs = np.stack(np.divmod(chosen, m), axis=1)
    elif spec.startswith("tiles:"):
        return _random_tiles(spec, (n, m), np.random.default_rng(seed), tile)
    else:
        pairs = _read_pairs(Path(spec), contents, styles)
    tiles = pairs // tile
    slow, fast = (0, 1) if tile[0] <= tile[1] else (1, 0)
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1], tiles[:, fast], tiles[:, slow]))]


def _random_tiles(
    spec: str, sizes: tuple[int, int], rng: np.random.Generator, tile: tuple[int, int]
) -> Int[np.ndarray, "p 2"]:
    """With tiles of 2 x 3, tile k pairs the k-th two of a row of contents with the k-th three of a
    row of styles. A row holds every picture once in random order, then every picture once again,
    and so on, so that all are used alike."""
    count, combinations, area = spec.removeprefix("tiles:"), np.prod(sizes), np.prod(tile)
    if not count.isdecimal() or not 1 <= int(count) * area <= combinations:
        raise InputError(
            f'--pairs "{spec}": expected tiles:K with K from 1 to {combinations // area}, since '
            f"{sizes[0]} contents and {sizes[1]} styles have {combinations} combinations and a "
            f"tile has {area}."
        )
    groups = []
    for size, side in zip(sizes, tile, strict=True):
        length = int(count) * side
        row = np.concatenate([rng.permutation(size) for _ in range(-(-length // size))])
        groups.append(row[:length].reshape(-1, side).tolist())
    pairs: dict[tuple[int, int], None] = {}
    for contents, styles in zip(*groups, strict=True):
        pairs |= dict.fromkeys((content, style) for style in styles for content in contents)
    return np.array(list(pairs))


def _read_pairs(path: Path, contents: ImageSet, styles: ImageSet) -> Int[np.ndarray, "p 2"]:
    if not path.is_file():
        raise InputError(f'--pairs "{path}": expected "all", "random:K", "tiles:K" or a CSV file.')
    rows = [{name: row for row, name in enumerate(images.ids)} for images in (contents, styles)]
    pairs = []
    for line, ids in read_table(path, ROLES):
        for role, name, known in zip(ROLES, ids, rows, strict=True):
            if name not in known:
                raise InputError(
                    f'{path}, line {line}: no usable {role} "{name}"; ids are paths relative to '
                    "the folder."
                )
        pairs.append([known[name] for name, known in zip(ids, rows, strict=True)])
    if not pairs:
        raise InputError(f"{path} names no pairs.")
    unique = np.unique(np.array(pairs), axis=0)
    if len(unique) < len(pairs):
        raise InputError(f"{path} names {len(pairs) - len(unique)} pairs twice.")
    return unique
