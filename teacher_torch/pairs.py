"""Which contents meet which styles, in the order in which they are stylised."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from triplets import ImageSet, InputError
from triplets.table import read_table

KINDS = ("content", "style")


def plan_pairs(
    spec: str, contents: ImageSet, styles: ImageSet, seed: int, tile: int = 8
) -> Int[np.ndarray, "p 2"]:
    """Pairs (content row, style row), ordered so that consecutive ones share pictures.

    Args:
        spec: "all"; "random:K" for K of all pairs; "tiles:K" for K random squares of `tile`
            contents and styles, in which a pair that was there before is left out; or a CSV file
            of ids with the columns content and style.
        contents: the contents.
        styles: the styles.
        seed: decides random pairs.
        tile: the order goes through squares of so many contents and styles, one after another.

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
        return _random_tiles(spec, n, m, np.random.default_rng(seed), tile)
    else:
        pairs = _read_pairs(Path(spec), contents, styles)
    tiles = pairs // tile
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1], tiles[:, 1], tiles[:, 0]))]


def _random_tiles(
    spec: str, n: int, m: int, rng: np.random.Generator, tile: int
) -> Int[np.ndarray, "p 2"]:
    count = spec.removeprefix("tiles:")
    if not count.isdecimal() or not 1 <= int(count) * tile**2 <= n * m:
        raise InputError(
            f'--pairs "{spec}": expected tiles:K with K from 1 to {n * m // tile**2}, since {n} '
            f"contents and {m} styles have {n * m} combinations and a tile has {tile**2}."
        )
    rows = (
        # Every picture is drawn once before any is drawn again.
        np.concatenate([rng.permutation(size) for _ in range(-(-int(count) * tile // size))])
        for size in (n, m)
    )
    pairs: dict[tuple[int, int], None] = {}
    groups = (row[: int(count) * tile].reshape(-1, tile) for row in rows)
    for contents, styles in zip(*groups, strict=True):
        pairs |= dict.fromkeys((c, s) for s in styles.tolist() for c in contents.tolist())
    return np.array(list(pairs))


def _read_pairs(path: Path, contents: ImageSet, styles: ImageSet) -> Int[np.ndarray, "p 2"]:
    if not path.is_file():
        raise InputError(f'--pairs "{path}": expected "all", "random:K", "tiles:K" or a CSV file.')
    rows = [{name: row for row, name in enumerate(images.ids)} for images in (contents, styles)]
    pairs = []
    for line, ids in read_table(path, KINDS):
        for kind, name, known in zip(KINDS, ids, rows, strict=True):
            if name not in known:
                raise InputError(
                    f'{path}, line {line}: no usable {kind} "{name}"; ids are paths relative to '
                    "the folder."
                )
        pairs.append([known[name] for name, known in zip(ids, rows, strict=True)])
    if not pairs:
        raise InputError(f"{path} names no pairs.")
    unique = np.unique(np.array(pairs), axis=0)
    if len(unique) < len(pairs):
        raise InputError(f"{path} names {len(pairs) - len(unique)} pairs twice.")
    return unique
