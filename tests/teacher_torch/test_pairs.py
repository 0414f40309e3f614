import numpy as np
import pytest

from teacher_torch.pairs import plan_pairs
from triplets import ImageSet, InputError


def image_set(count):
    return ImageSet(
        np.zeros((count, 8, 8, 3), np.uint8), [f"{i}.png" for i in range(count)], [(8, 8)] * count
    )


def test_all_pairs_are_planned_tile_by_tile():
    pairs = plan_pairs("all", image_set(9), image_set(17), 0)
    assert len(np.unique(pairs, axis=0)) == 9 * 17
    first = pairs[:64]
    assert set(first[:, 0]) == set(first[:, 1]) == set(range(8))


def test_size_of_the_tiles():
    pairs = plan_pairs("all", image_set(4), image_set(4), 0, tile=(2, 2))
    assert pairs[:4].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_the_side_with_fewer_pictures_changes_slowly():
    """What is trained per style is needed in consecutive shards alone."""
    by_style = plan_pairs("all", image_set(5), image_set(3), 0, tile=(2, 1))
    assert by_style[:5].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]]
    assert by_style[:, 1].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    by_content = plan_pairs("all", image_set(3), image_set(5), 0, tile=(1, 2))
    assert by_content[:, 0].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert len(np.unique(by_style, axis=0)) == len(np.unique(by_content, axis=0)) == 15
    large = plan_pairs("all", image_set(300), image_set(2), 0, tile=(256, 1))
    assert large[:300].tolist() == [[content, 0] for content in range(300)]


def test_random_tiles_that_are_no_squares():
    pairs = plan_pairs("tiles:3", image_set(12), image_set(9), 0, tile=(4, 1))
    for tile in pairs.reshape(3, 4, 2):
        assert len(set(tile[:, 0])) == 4 and len(set(tile[:, 1])) == 1
    assert sorted(pairs[:, 0]) == list(range(12)) and len(set(pairs[:, 1])) == 3
    with pytest.raises(InputError, match="K from 1 to 27, since 12 contents and 9 styles"):
        plan_pairs("tiles:28", image_set(12), image_set(9), 0, tile=(4, 1))


def test_random_pairs_depend_on_the_seed():
    plan = [plan_pairs("random:30", image_set(9), image_set(17), seed) for seed in (0, 0, 1)]
    assert len(np.unique(plan[0], axis=0)) == 30
    np.testing.assert_array_equal(plan[0], plan[1])
    assert not np.array_equal(plan[0], plan[2])


def test_random_tiles_use_every_picture_alike():
    contents, styles = image_set(40), image_set(24)
    pairs = plan_pairs("tiles:5", contents, styles, 0)
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 5 * 64
    for tile in pairs.reshape(5, 64, 2):
        assert len(set(tile[:, 0])) == len(set(tile[:, 1])) == 8
    assert np.bincount(pairs[:, 0]).tolist() == [8] * 40
    assert set(np.bincount(pairs[:, 1])) == {8, 16}
    np.testing.assert_array_equal(pairs, plan_pairs("tiles:5", contents, styles, 0))
    assert not np.array_equal(pairs, plan_pairs("tiles:5", contents, styles, 1))


def test_random_tiles_never_repeat_a_pair():
    pairs = plan_pairs("tiles:2", image_set(12), image_set(12), 0)
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_pairs_from_a_file(tmp_path):
    path = tmp_path / "pairs.csv"
    # As spreadsheets write it, with a mark at the beginning.
    path.write_text("style,content\n3.png,0.png\n1.png,2.png\n", encoding="utf-8-sig")
    pairs = plan_pairs(str(path), image_set(4), image_set(4), 0)
    assert {tuple(pair) for pair in pairs.tolist()} == {(0, 3), (2, 1)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("content,style\n0.png,9.png\n", 'line 2: no usable style "9.png"'),
        ("a,b\n1,2\n", "columns content, style"),
        ("\xff\xd8\xff\xe0", "is not a table; expected a CSV file"),
        ("content,style\n", "names no pairs"),
        ("content,style\n0.png,1.png\n0.png,1.png\n", "names 1 pairs twice"),
    ],
)
def test_file_of_pairs_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        plan_pairs(str(path), image_set(4), image_set(4), 0)


@pytest.mark.parametrize(
    "spec", ["random:0", "random:17", "random:x", "tiles:1", "tiles:x", "some"]
)
def test_unknown_choice_of_pairs(spec):
    with pytest.raises(InputError, match="--pairs"):
        plan_pairs(spec, image_set(4), image_set(4), 0)
