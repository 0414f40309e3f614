import numpy as np

from triplets import contact_sheet, grid_sheet
from triplets.sheet import GAP


def flat(value):
    return np.full((10, 20, 3), value, np.uint8)


def test_pictures_stand_in_their_cells():
    sheet = contact_sheet([[flat(10), flat(20)], [flat(30)]])
    assert sheet.shape == (2 * (10 + GAP) + GAP, 2 * (20 + GAP) + GAP, 3)
    for i, j, value in ((0, 0, 10), (0, 1, 20), (1, 0, 30), (1, 1, 255)):
        top, left = GAP + i * (10 + GAP), GAP + j * (20 + GAP)
        assert (sheet[top : top + 10, left : left + 20] == value).all()


def test_captions_take_a_strip_above():
    plain, captioned = (contact_sheet([[flat(0)]], captions) for captions in ((), ("content",)))
    strip = len(captioned) - len(plain)
    assert strip > 0
    np.testing.assert_array_equal(captioned[strip + GAP :], plain[GAP:])
    assert captioned[:strip].min() < 128  # something is written there


def test_grid_has_contents_on_top_and_styles_at_the_left():
    contents, styles = np.stack([flat(1), flat(2)]), np.stack([flat(3)])
    sheet = grid_sheet(contents, styles, np.stack([flat(4), flat(5)])[None])
    cells = [[int(sheet[GAP + i * 14, GAP + j * 24, 0]) for j in range(3)] for i in range(2)]
    assert cells == [[255, 1, 2], [3, 4, 5]]
