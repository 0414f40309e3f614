"""How a picture is handled within a given memory: whole, in tiles, or in windows of attention.

Pure arithmetic on sizes. What a program takes is asked of the caller (`ProgramBytes`).
"""

from typing import NamedTuple, Protocol, runtime_checkable

from student_jax.inference.sides import MIN_TOKENS, bucket
from triplets import InputError

TILE_SIDES = (2048, 1024, 512)
"""Sides of tiles in pixels, tried from the largest."""

FLOAT_BYTES = 4

RUNTIME_BYTES = 80 * 2**20
"""Taken beside what the compiler plans for a program, measured by benchmarks/large_pictures.py."""


class Plan(NamedTuple):
    """How a picture is to be handled within the memory."""

    size: tuple[int, int]
    """Height and width of the picture in pixels."""
    tile: tuple[int, int] | None
    """Height and width of the tiles; None: the picture is handled whole."""
    window: tuple[int, int] | None
    """Height and width, in tokens, within which tokens attend to each other; None: all of them."""
    bytes: int
    """Memory that the largest program takes, and what is held beside it."""
    batch: int = 1
    """How many pictures are handled together."""

    def __str__(self) -> str:
        how = "whole" if self.tile is None else f"in tiles of {self.tile[1]} x {self.tile[0]} px"
        attention = "exact attention"
        if self.window:
            attention = f"attention within windows of {self.window[1]} x {self.window[0]} tokens"
        return (
            f"{self.size[1]} x {self.size[0]} px: {how}, {attention}, {self.bytes / 2**20:.0f} MiB"
        )


@runtime_checkable
class ProgramBytes(Protocol):
    """Bytes that the programs of a student take while they run, each with all of its arguments and
    results. Sizes are heights and widths."""

    def whole(self, batch: int, size: tuple[int, int], padded: tuple[int, int]) -> int:
        """Of the program for whole pictures of `size`, padded to `padded` pixels."""
        ...

    def tile(self, tile: tuple[int, int]) -> int:
        """Of the larger of both programs for a tile, in tokens: to tokens, and back to pixels."""
        ...

    def transform(self, grid: tuple[int, int], window: tuple[int, int]) -> int:
        """Of the program for a window of tokens, or of what it has to know of the whole grid."""
        ...

    def per_token(self) -> int:
        """Held for each token of a picture in tiles, between the programs."""
        ...


def token_grid(height: int, width: int, stride: int) -> tuple[int, int]:
    """Height and width in tokens of a picture in tiles."""
    return max(MIN_TOKENS, -(-height // stride)), max(MIN_TOKENS, -(-width // stride))


def padded_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Height and width to which a whole picture is padded."""
    return bucket(height, stride), bucket(width, stride)


def make_plan(
    height: int,
    width: int,
    batch: int,
    *,
    stride: int,
    halo: int | None,
    max_memory: int,
    needs: ProgramBytes,
) -> Plan:
    """The first way that fits into the memory: the whole batch, one picture, tiles of falling size
    with exact attention, the same with windows of attention.

    Args:
        height, width: of the pictures in pixels.
        batch: how many there are.
        stride: pixels that a token spans.
        halo: of the student's `TileRule` in tokens; None: it has none.
        max_memory: in bytes.

    Raises:
        InputError: not even the smallest tiles fit, or the student has no tiles.
    """
    padded = padded_size(height, width, stride)
    # Beside the program the pictures are held as they are, and padded.
    pixels = height * width + padded[0] * padded[1]
    whole = needs.whole(batch, (height, width), padded) + RUNTIME_BYTES
    whole += batch * 3 * FLOAT_BYTES * pixels
    if whole <= max_memory:
        return Plan((height, width), None, None, whole, batch)
    if batch > 1:
        return make_plan(
            height, width, 1, stride=stride, halo=halo, max_memory=max_memory, needs=needs
        )
    memory = f"{width} x {height} px do not fit into {max_memory / 2**20:.0f} MiB"
    if halo is None:
        raise InputError(
            f"{memory}, and this student cannot work in tiles; give more memory "
            f"({whole / 2**20:.0f} MiB), or make the picture smaller."
        )
    grid = h, w = token_grid(height, width, stride)
    # The picture as it is, padded, and stylised; and what is known of each token.
    held = h * w * (3 * 3 * FLOAT_BYTES * stride**2 + needs.per_token()) + RUNTIME_BYTES
    for side in TILE_SIDES:
        tile = (min(h, side // stride), min(w, side // stride))
        # A tile that is cut off needs a core between its halos.
        if any(part <= 2 * halo and part < all_ for part, all_ in zip(tile, grid, strict=True)):
            continue
        program = needs.tile(tile)
        # Memory of one program is not always free again when the next one starts: twice.
        tiles = held + 2 * program
        if tiles > max_memory:
            continue
        for window in (grid, tile):
            needed = max(tiles, held + program + needs.transform(grid, window))
            if needed <= max_memory:
                return Plan(
                    (height, width),
                    (tile[0] * stride, tile[1] * stride),
                    None if window == grid else window,
                    needed,
                )
    raise InputError(f"{memory}; give more memory, or make the picture smaller.")
