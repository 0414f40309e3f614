"""The dump of a tiny random teacher: right pairs, exact continuation, honest refusals."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from teacher_torch import StyleID
from teacher_torch.dump import DumpConfig, dump, plan_pairs, to_model_range, to_uint8
from triplets import ImageSet, InputError, TripletDataset

PROGRAM = """
import json, sys
from pathlib import Path
from teacher_torch.dump import DumpConfig, dump
fields = json.loads(sys.argv[1])
dump(DumpConfig(**fields | {"out": Path(fields["out"])}))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 9 contents and 10 styles, so that the grid of pairs has uneven tiles."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind, count in (("content", 9), ("style", 10)):
        (root / kind).mkdir()
        for i in range(count):
            small = rng.integers(0, 256, (5, 7, 3), np.uint8)
            Image.fromarray(small).resize((70, 50)).save(root / kind / f"{kind}{i}.png")
    return root


@pytest.fixture
def config(pictures, model_folder, tmp_path):
    return DumpConfig(
        str(pictures / "content"),
        str(pictures / "style"),
        tmp_path / "out",
        teacher=str(model_folder),
        steps=3,
    )


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def image_set(count):
    return ImageSet(
        np.zeros((count, 8, 8, 3), np.uint8), [f"{i}.png" for i in range(count)], [(8, 8)] * count
    )


def test_triplets_are_what_the_teacher_makes(config, components):
    dump(config)
    dataset = TripletDataset(config.out)
    assert dataset.verify() == []
    assert len(dataset) == 90 and len({tuple(pair) for pair in dataset.pairs}) == 90
    styleid = StyleID(*components, config.styleid())
    triplet = dataset[37]
    content, style = (styleid.invert(to_model_range(image[None])) for image in triplet[:2])
    expected = to_uint8(styleid.stylise(content, style))[0].astype(int)
    # Joint and single sampling round differently by far less than one grey level.
    assert np.abs(expected - triplet.stylised).max() <= 1
    assert dataset.manifest["settings"]["styleid"]["num_steps"] == 3
    assert len(dataset.manifest["settings"]["weights_sha256"]) == 64


def test_killed_dump_continues_to_the_same_bytes(config, tmp_path):
    dump(config)
    other = replace(config, out=tmp_path / "killed")
    fields = json.dumps({**vars(other), "out": str(other.out)})
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, fields])
    deadline = time.monotonic() + 120
    while not (other.out / "pairs-00000").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert (other.out / "pairs-00000").exists()
    dump(other)
    assert files(other.out) == files(config.out)


def test_dump_with_other_settings_is_refused(config):
    dump(config)
    with pytest.raises(InputError, match=r"settings\.styleid\.gamma is 0\.75 there, now 0\.3"):
        dump(replace(config, gamma=0.3))


def test_unusable_pictures_are_named_and_left_out(config, pictures, tmp_path, capsys):
    folder = tmp_path / "content"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "good.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    dump(replace(config, content=str(folder)))
    assert len(TripletDataset(config.out)) == 10
    captured = capsys.readouterr()
    assert "skipped broken.jpg: " in captured.err and "skipped tiny.png: " in captured.err
    assert "2 pictures were skipped" in captured.out


def test_all_pairs_are_planned_tile_by_tile():
    pairs = plan_pairs("all", image_set(9), image_set(17), 0)
    assert len(np.unique(pairs, axis=0)) == 9 * 17
    first = pairs[:64]
    assert set(first[:, 0]) == set(first[:, 1]) == set(range(8))


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
    path.write_text("style,content\n3.png,0.png\n1.png,2.png\n")
    pairs = plan_pairs(str(path), image_set(4), image_set(4), 0)
    assert {tuple(pair) for pair in pairs.tolist()} == {(0, 3), (2, 1)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("content,style\n0.png,9.png\n", 'line 2: no usable style "9.png"'),
        ("a,b\n1,2\n", "columns content and style"),
        ("content,style\n", "names no pairs"),
        ("content,style\n0.png,1.png\n0.png,1.png\n", "names 1 pairs twice"),
    ],
)
def test_file_of_pairs_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        plan_pairs(str(path), image_set(4), image_set(4), 0)


@pytest.mark.parametrize(
    "spec", ["random:0", "random:17", "random:x", "tiles:1", "tiles:x", "some"]
)
def test_unknown_choice_of_pairs(spec):
    with pytest.raises(InputError, match="--pairs"):
        plan_pairs(spec, image_set(4), image_set(4), 0)


def test_command_prints_one_sentence_for_a_missing_folder(config):
    command = [sys.executable, "scripts/dump_teacher.py", "--style", config.style]
    command += [
        "--content",
        "no/such/folder",
        "--out",
        str(config.out),
        "--teacher",
        config.teacher,
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "error: 'no/such/folder' does not exist; expected pictures or a folder of them"
    )
    assert not config.out.exists()


def test_conversion_of_pixels():
    images = np.array([[[[0, 127, 255]]]], np.uint8)
    tensor = to_model_range(images)
    assert tensor.shape == (1, 3, 1, 1)
    assert tensor.flatten().tolist() == pytest.approx([-1.0, 127 / 127.5 - 1, 1.0])
    np.testing.assert_array_equal(to_uint8(tensor), images)
    assert to_uint8(torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1)).flatten().tolist() == [
        0,
        128,
        255,
    ]
