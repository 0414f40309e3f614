"""Plans by hand: nothing is compiled here."""

import pytest

from student_jax.inference.plan import RUNTIME_BYTES, make_plan, padded_size, token_grid
from triplets import InputError

MIB = 2**20


class Needs:
    """A student whose programs take 1,000 bytes per pixel, half of it in tiles, and attention."""

    def __init__(self):
        self.asked = []

    def whole(self, batch, size, padded):
        self.asked.append(("whole", batch, size, padded))
        return batch * padded[0] * padded[1] * 1000

    def tile(self, tile):
        self.asked.append(("tile", tile))
        return tile[0] * tile[1] * 16**2 * 500

    def transform(self, grid, window):
        self.asked.append(("transform", grid, window))
        return (window[0] * window[1]) ** 2

    def per_token(self):
        return 2000


def plan(height, width, megabytes, batch=1, halo=8):
    needs = Needs()
    made = make_plan(
        height,
        width,
        batch,
        stride=16,
        halo=halo,
        max_memory=megabytes * MIB,
        needs=needs,
    )
    return made, needs.asked


def test_what_fits_is_handled_whole():
    made, asked = plan(500, 600, 1000)
    assert made.tile is None and made.window is None and made.batch == 1
    assert asked == [("whole", 1, (500, 600), (512, 640))]
    # The program, the picture as it is and padded, and the runtime.
    assert made.bytes == 512 * 640 * 1000 + 12 * (500 * 600 + 512 * 640) + RUNTIME_BYTES
    assert str(made) == f"600 x 500 px: whole, exact attention, {made.bytes / MIB:.0f} MiB"


def test_batches_that_do_not_fit_are_planned_one_by_one():
    assert plan(512, 512, 1000, batch=2)[0].batch == 2
    made, asked = plan(512, 512, 500, batch=2)
    assert made.batch == 1 and made.tile is None
    assert [call[1] for call in asked] == [2, 1]


def test_tiles_fall_until_they_fit_and_attention_stays_exact_while_it_can():
    made, asked = plan(2000, 3000, 1500)
    assert made.tile == (1024, 1024) and made.window is None
    assert [call[1] for call in asked if call[0] == "tile"] == [(125, 128), (64, 64)]
    # 125 x 188 tokens: pictures and what is held of each, the larger sum of programs.
    held = 125 * 188 * (9 * 4 * 16**2 + 2000) + RUNTIME_BYTES
    tiles = 2 * 64 * 64 * 16**2 * 500
    attention = 64 * 64 * 16**2 * 500 + (125 * 188) ** 2
    assert made.bytes == held + max(tiles, attention)
    assert "in tiles of 1024 x 1024 px, exact attention" in str(made)


def test_windows_of_attention_come_last():
    made, _ = plan(6000, 6000, 3000)
    assert made.tile == (1024, 1024) and made.window == (64, 64)
    assert "attention within windows of 64 x 64 tokens" in str(made)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"2000 x 1000 px do not fit into 100 MiB; give more"):
        plan(1000, 2000, 100)
    with pytest.raises(InputError, match=r"this student cannot work in tiles; give more memory \("):
        plan(1000, 2000, 1000, halo=None)


def test_a_tile_needs_a_core():
    # 512 px are 32 tokens: less than two halos of 16 and something between them.
    with pytest.raises(InputError, match="do not fit"):
        plan(2000, 3000, 1000, halo=16)
    assert plan(2000, 3000, 1000, halo=15)[0].tile == (512, 512)


def test_grids_and_padded_sizes():
    assert token_grid(1, 100, 16) == (4, 7)
    assert padded_size(1, 300, 16) == (64, 320)
