"""The contact sheet: which styles it chooses, and what is in its cells."""

import numpy as np

from student_jax.evaluation.judge import Example
from student_jax.evaluation.showcase import Showcase, most_different, style_descriptor
from triplets import grid_sheet, uint8_from_float


def test_the_most_different_are_the_corners():
    corners = [(0, 0), (9, 0), (0, 9), (9, 9)]
    points = [np.array(p, float) for p in [(4, 4), corners[0], (5, 5), *corners[1:], (4, 5)]]
    assert sorted(most_different(points, 4)) == [1, 3, 4, 5]
    assert len(most_different(points, 99)) == len(points)
    # Units do not matter.
    scaled = [p * (1, 1000) for p in points]
    assert most_different(scaled, 4) == most_different(points, 4)


def test_descriptors_see_the_direction_and_the_scale_of_strokes():
    rows = np.broadcast_to((np.arange(64) // 2 % 2)[:, None, None], (64, 64, 3)).astype(np.float32)
    columns = rows.swapaxes(0, 1)
    broad = rows[::-1].repeat(4, 0)[:64]
    across, along = style_descriptor(rows), style_descriptor(columns)
    np.testing.assert_allclose(across[:10], along[:10], atol=1e-5)  # sums in another order
    assert across[10] > 0.99 and along[10] < -0.99
    # The finest of the four bands is the first, and broad strokes have less of it.
    assert style_descriptor(broad)[6] < across[6] and style_descriptor(broad)[9] > across[9]


def flat(value):
    return np.full((16, 16, 3), value, np.float32)


def test_the_sheet_shows_every_content_with_every_chosen_style():
    showcase = Showcase()
    contents, styles = {"a": flat(0.1), "b": flat(0.2)}, {"x": flat(0.4), "y": flat(0.8)}
    for c, s in (("a", "x"), ("b", "y"), ("b", "x")):
        showcase.see(Example(contents[c], styles[s], None, (c, s)))
    sheet = showcase.sheet(lambda content, style: content + style / 2)
    first = most_different([style_descriptor(style) for style in styles.values()], 1)[0]
    order = ("xy", "yx")[first]
    expected = grid_sheet(
        uint8_from_float(np.stack(list(contents.values()))),
        uint8_from_float(np.stack([styles[s] for s in order])),
        uint8_from_float(np.stack([[c + styles[s] / 2 for c in contents.values()] for s in order])),
    )
    np.testing.assert_array_equal(sheet, expected)


def test_there_is_no_sheet_of_one_style_or_of_pictures_without_names():
    showcase = Showcase()
    showcase.see(Example(flat(0.1), flat(0.5), None, ("a", "x")))
    assert showcase.sheet(lambda content, style: content) is None
    nameless = Showcase()
    for value in (0.3, 0.6):
        nameless.see(Example(flat(0.1), flat(value)))
    assert nameless.sheet(lambda content, style: content) is None
