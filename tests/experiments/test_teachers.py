import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import teachers
from experiments.teachers import (
    CONTROLS,
    DISTILLED,
    SHOWN,
    Entry,
    TeachersConfig,
    Teaching,
    check_sizes,
    choose_pictures,
    compare_teachers,
    draw_figure,
    dump_flags,
    measure_times,
    tables,
    teachers_record,
)
from student_jax.evaluation.judge import Example
from triplets import (
    ImageSet,
    InputError,
    NativeCrops,
    TripletDataset,
    TripletWriter,
    float_from_uint8,
    load_images,
    open_source,
    read_image,
    write_image,
)

PIECE = {"rows": 12, "seconds": 3.25, "peak_bytes": 1_500_000_000}
TIMES = {"size": 64, "content": PIECE, "style": PIECE | {"rows": 384}, "pair": PIECE}


@pytest.fixture
def backwards(dump, tmp_path):
    """The dataset's pairs in reverse order, by another "teacher": negatives of the first one."""
    dataset = TripletDataset(dump)
    contents, styles = (
        ImageSet(np.array(images), ids, [(64, 64)] * len(ids))
        for images, ids in (
            (dataset.contents, dataset.content_ids),
            (dataset.styles, dataset.style_ids),
        )
    )
    writer = TripletWriter(
        tmp_path / "backwards",
        contents=contents,
        styles=styles,
        pairs=dataset.pairs[::-1].copy(),
        shard_size=20,
        settings={"method": "negatives"},
    )
    writer.write_shard(0, np.stack([255 - dataset[row].stylised for row in range(20)][::-1]))
    return TripletDataset(writer.root)


@pytest.fixture
def teachings(dump, backwards):
    named = TripletDataset(dump)
    named.manifest["settings"] = {}
    return [
        Teaching(Entry.parse("inst --steps 10"), named, TIMES),
        Teaching(Entry.parse("other way: zecon"), backwards, TIMES),
    ]


def test_teachers_are_named_with_their_flags():
    assert Entry.parse("inst") == ("inst", ("--teacher", "inst"))
    quick = Entry.parse('quick: inst --prompt "a * by night" --model runs/sd')
    assert quick.label == "quick"
    assert quick.flags == ("--teacher", "inst", "--prompt", "a * by night", "--model", "runs/sd")
    for text in ("", "--steps 3", "label: ", ": inst"):
        with pytest.raises(ValueError, match="expected a name"):
            Entry.parse(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"teachers": ("inst", "inst --steps 10")},
        {"teachers": ()},
        {"contents": 0},
        {"rows": 0},
        {"distil_steps": 1},
        {"validation_fraction": 1.0},
    ],
)
def test_settings_that_make_no_sense(changes):
    with pytest.raises(ValueError, match="expected"):
        TeachersConfig(**changes)


def test_all_pairs_of_pictures_that_are_evenly_spread(tmp_path):
    rng = np.random.default_rng(0)
    for kind, count in (("content", 3), ("style", 5)):
        (tmp_path / kind).mkdir()
        for i in range(count):
            write_image(
                tmp_path / kind / f"{i}, {kind}.png", rng.integers(0, 256, (32, 32, 3), "u1")
            )
    folders = {kind: str(tmp_path / kind) for kind in ("content", "style")}
    config = TeachersConfig(**folders, contents=2, styles=3, out=tmp_path / "out")
    flags = choose_pictures(config)
    assert flags[:5] == ["--content", folders["content"], "--style", folders["style"], "--pairs"]
    header, *lines = Path(flags[-1]).read_text().splitlines()
    pairs = itertools.product(("0, content", "2, content"), ("0, style", "2, style", "4, style"))
    assert header == "content,style"
    assert lines == [f'"{content}.png","{style}.png"' for content, style in pairs]
    assert choose_pictures(config) == flags
    # The ids of crops are those that a dump gives them.
    crops = NativeCrops(20)
    squares, _ = load_images(open_source(folders["style"]), 16, crops=crops)
    *cut, flag, side = choose_pictures(replace(config, style_crop=20))
    assert (flag, side) == ("--style-crop", "20")
    _, *lines = csv.reader(Path(cut[-1]).read_text().splitlines())
    assert {style for _, style in lines} == {squares.ids[i] for i in (0, 2, 4)}
    # Another picture under the same name is another study.
    write_image(tmp_path / "style" / "4, style.png", rng.integers(0, 256, (32, 32, 3), "u1"))
    assert choose_pictures(config)[-1] != flags[-1]


def test_a_teachers_own_flags_come_last():
    config = TeachersConfig(size=64, model="runs/sd", flags="--tile 2")
    flags = dump_flags(config, Entry.parse("zecon --model runs/adm"), ["--pairs", "p.csv"])
    expected = "--pairs p.csv --model runs/sd --size 64 --tile 2 --teacher zecon --model runs/adm"
    assert flags == expected.split()


def test_pictures_of_two_sizes_are_refused():
    times = {Entry.parse("styleid"): {"size": 512}, Entry.parse("zecon"): {"size": 256}}
    with pytest.raises(InputError, match=r"\(styleid 512 px, zecon 256 px\): give --size\."):
        check_sizes(times)
    check_sizes({entry: {"size": 256} for entry in times})


def test_pictures_are_found_by_their_ids(dump, backwards):
    first = TripletDataset(dump)
    found = teachers._pictures_of(backwards)
    for triplet in first:
        ids = (triplet.content_id, triplet.style_id)
        pictures = (float_from_uint8(image) for image in triplet[:2])
        picture = found(Example(*pictures, ids=ids))
        np.testing.assert_allclose(picture, 1 - triplet.stylised / np.float32(255), atol=1e-6)


def test_figure_has_a_column_per_teacher(teachings, tmp_path):
    draw_figure(TeachersConfig(rows=2, report=tmp_path), teachings)
    figure = read_image(tmp_path / "teachers.jpg")
    side = figure.shape[1] // 4
    middle = [figure[-20 - 32, side * column + side // 2].astype(int) for column in range(4)]
    # The last row's stylised picture, and its negative.
    assert np.abs(middle[2] + middle[3] - 255).max() < 20


def test_tables_follow_from_the_figures(teachings):
    measures = {name: dict.fromkeys(SHOWN, 0.25) for name in ("inst", "other way", *CONTROLS)}
    student = dict.fromkeys(DISTILLED, 0.5)
    students = {"inst": {"student": student, "teacher": dict.fromkeys(DISTILLED, 0.125)}}
    config = TeachersConfig(distil_steps=7)
    record = json.loads(json.dumps(teachers_record(config, teachings, measures, students)))
    written = tables(record)
    assert "| pictures | 20 pairs of 5 contents and 4 styles |" in written["settings"]
    assert "| inst | inst | `--teacher inst --steps 10` |" in written["teachers"]
    assert "| other way | negatives | `--teacher zecon` |" in written["teachers"]
    assert "| inst | 384 | 3.2 | 1.50 | 12 | 3.2 | 1.50 |" in written["costs"]
    assert "| content copied | 0.250 |" in written["measures"]
    assert "| 7 steps on |" in written["students"]
    # MSE of the student; its sharpness with the teacher's.
    assert "| inst | 0.50000 | 0.500 |" in written["students"]
    assert "| 0.5000 (0.1250) |" in written["students"]
    record = teachers_record(config, teachings, measures, {})
    assert tables(record)["students"] == "No students were trained."


def test_times_are_taken_once(tmp_path, monkeypatch):
    calls = []

    def run(words, **_):
        calls.append(words[2:5])
        return SimpleNamespace(returncode=0, stdout=f"loading\n{json.dumps(TIMES)}\n")

    monkeypatch.setattr("experiments.runs.subprocess.run", run)
    config = TeachersConfig(out=tmp_path)
    for _ in range(2):
        assert measure_times(config, ["--teacher", "inst"]) == TIMES
    assert calls == [["teacher_torch.timing", "--teacher", "inst"]]
    monkeypatch.setattr(
        "experiments.runs.subprocess.run", lambda *_, **__: SimpleNamespace(returncode=1)
    )
    with pytest.raises(InputError, match=r"timing --teacher no .* ended with status 1"):
        measure_times(config, ["--teacher", "no"])


@pytest.mark.slow  # five processes that import torch or compile a student
def test_the_whole_study_and_again(tmp_path, monkeypatch, capfd):
    config = TeachersConfig(
        contents=2,
        styles=2,
        size=64,
        teachers=("styleid --steps 2", "one step: attention_distillation --steps 1"),
        distil_steps=2,
        train_flags="--batch-size 1 --crop-size 32",
        out=tmp_path / "out",
        report=tmp_path / "report",
    )
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    compare_teachers(config)
    assert {path.name for path in config.report.iterdir()} == {
        f"teachers.{suffix}" for suffix in ("md", "json", "jpg")
    }
    record = json.loads((config.report / "teachers.json").read_text())
    assert list(record["students"]["measures"]) == ["styleid", "one step"]
    times = record["teachers"][0]["times"]
    assert times["size"] == 64 and times["style"]["rows"] == 2
    # Everything is kept: only the report is written again.
    capfd.readouterr()
    compare_teachers(replace(config, report=tmp_path / "again"))
    assert "$ style-distil" not in capfd.readouterr().out
    again = json.loads((tmp_path / "again" / "teachers.json").read_text())
    assert again == record
