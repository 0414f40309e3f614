import numpy as np
import pytest
from small_dump import dump, make_writer, stylise

from triplets import ImageSet, InputError, TripletDataset, TripletWriter, read_image
from triplets.preview import PreviewConfig, describe, evenly_spaced, preview, triplet_sheet
from triplets.sheet import GAP


def test_figures_and_sheet_of_an_unfinished_dump(tmp_path, capsys):
    writer = make_writer(tmp_path / "data")
    writer.write_shard(0, stylise(writer.shard_pairs(0)))
    preview(PreviewConfig(tmp_path / "data", triplets=4))
    out = capsys.readouterr().out
    assert "5 of 12 planned triplets, 6 x 8 px, of 3 contents and 4 styles" in out
    assert "triplets per content: 0 to 4" in out
    sheet = read_image(tmp_path / "data" / "preview.png")
    assert sheet.shape[1] == 6 * (8 + GAP) + GAP  # two triplets in a row
    captions = len(sheet) - (2 * (6 + GAP) + GAP)
    assert sheet[:captions].min() < 128
    dataset = TripletDataset(tmp_path / "data")
    for row in range(4):
        top = captions + GAP + row // 2 * (6 + GAP)
        for column, picture in enumerate(dataset[row][:3]):
            left = GAP + (row % 2 * 3 + column) * (8 + GAP)
            np.testing.assert_array_equal(sheet[top : top + 6, left : left + 8], picture)


def test_figures_of_flat_colours(tmp_path):
    def flat(*colour):
        return ImageSet(np.full((1, 4, 4, 3), colour, np.uint8), [str(colour)], [(4, 4)])

    content, style = flat(100, 0, 0), flat(100, 40, 30)
    writer = TripletWriter(
        tmp_path / "data", contents=content, styles=style, pairs=np.zeros((1, 2), int)
    )
    writer.write_shard(0, flat(100, 40, 33).images)
    text = describe(TripletDataset(writer.root))
    assert "mean colour to the style's: contents 50.0, stylised pictures 3.0" in text
    assert "change from content to stylised: 24.3 grey levels per pixel" in text  # (40 + 33) / 3
    assert "stylised   100.0 ( 0.0)   40.0 ( 0.0)   33.0 ( 0.0)" in text
    assert "1 stylised pictures are blank, such as triplet 0's" in text


def test_large_pictures_are_reduced(tmp_path):
    dataset = TripletDataset(dump(tmp_path / "data").root)
    sheet = triplet_sheet(dataset, 1, cell=4)
    assert sheet.shape[1] == 3 * (4 + GAP) + GAP
    for column, picture in enumerate(dataset[0][:3]):  # 6 x 8 px, which become 3 x 4
        left = GAP + column * (4 + GAP)
        cell = sheet[-GAP - 3 : -GAP, left : left + 4]
        assert cell.mean() == pytest.approx(picture.mean(), abs=6)
    assert (sheet[-GAP:] == 255).all()


def test_evenly_spaced_places():
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(3, 8).tolist() == [0, 1, 2]


def test_counts_below_one(tmp_path):
    with pytest.raises(InputError, match="--cell 0: expected at least 1"):
        PreviewConfig(tmp_path, cell=0)
