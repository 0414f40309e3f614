import json
from pathlib import Path

import numpy as np
import pytest

from student_jax.evaluation.baselines import BASELINES, colour_transfer
from student_jax.evaluation.config import EvaluateConfig
from student_jax.evaluation.evaluate import evaluate
from student_jax.evaluation.examples import choose_examples, validation_triplets
from student_jax.evaluation.gold_set import GoldSet
from student_jax.evaluation.judge import MEASURES
from student_jax.evaluation.results import find_results
from student_jax.inference.inputs import Input
from student_jax.inference.result_names import unique_names
from student_jax.training.data import split_triplets
from triplets import (
    ImageSet,
    InputError,
    TripletDataset,
    TripletWriter,
    float_from_uint8,
    read_image,
    write_image,
)

CONTROLS = list(BASELINES)


@pytest.fixture
def opened(monkeypatch):
    """Which students were opened: they blend the pictures, in place of networks to compile."""
    students = []

    def stylist(model, *, style_scale):
        students.append((*model, style_scale))
        return lambda content, style: 0.5 * content + 0.5 * style

    monkeypatch.setattr(
        "student_jax.evaluation.evaluate.open_student", lambda name, step: (name, step)
    )
    monkeypatch.setattr("student_jax.evaluation.evaluate.Stylist", stylist)
    return students


def write_grey(path, side=16, grey=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((side, side, 3), grey, np.uint8))


def test_colour_transfer_takes_mean_and_covariance():
    rng = np.random.default_rng(0)
    content = (0.5 + 0.05 * rng.standard_normal((40, 40, 3))).astype(np.float32)
    mixing = np.array([[0.06, 0.02, 0.0], [0.0, 0.05, 0.01], [0.01, 0.0, 0.04]])
    style = (0.4 + rng.standard_normal((30, 50, 3)) @ mixing).astype(np.float32)
    moved = colour_transfer(content, style).reshape(-1, 3)
    # Nothing is clipped here, so both moments agree up to float32 and the 1e-8 regulariser.
    np.testing.assert_allclose(moved.mean(0), style.reshape(-1, 3).mean(0), atol=1e-4)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(style.reshape(-1, 3).T), atol=1e-5)


def test_colour_transfer_of_grey_pictures_is_finite():
    grey = np.full((8, 8, 3), 0.5, np.float32)
    style = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    assert np.isfinite(colour_transfer(grey, style)).all()
    np.testing.assert_allclose(colour_transfer(style, style), style, atol=1e-4)


def test_student_beside_teacher_and_controls(dump, opened, tmp_path, capsys):
    out = tmp_path / "out"
    judgement = evaluate(EvaluateConfig(out, checkpoint="mini", data=str(dump), max_pairs=1))
    measures = judgement.measures
    assert list(measures) == ["teacher", "student", *CONTROLS]
    triplet = TripletDataset(dump)[0]
    content, style, teacher = (float_from_uint8(image) for image in triplet[:3])
    expected = np.mean(((content + style) / 2 - teacher) ** 2)
    assert measures["student"]["mse"] == pytest.approx(expected, rel=1e-5)
    assert measures["teacher"]["mse"] == 0
    assert measures["content copied"]["content_lpips"] == pytest.approx(0, abs=1e-10)
    assert measures["style copied"]["style_gram"] == 0

    printed = capsys.readouterr().out
    assert "on 1 triplets" in printed
    # What could not be measured is named, with where to get what is missing.
    assert "not measured: art_fid" in printed
    assert "huggingface.co/matthias-wright/art_inception" in printed
    stored = json.loads((out / "measures.json").read_text())
    assert stored["measures"]["student"] == measures["student"]
    assert stored["student"]["checkpoint"] == "mini" and stored["student"]["step"] is None
    assert opened == [("mini", "best", None)]
    assert stored["measures"]["teacher"]["psnr"] is None  # infinite
    assert set(stored["missing"]) == {"cfsd", "fid", "art_fid", "sameness"}
    table = (out / "table.md").read_text()
    assert all(method in table for method in measures)
    # One row of content, style, teacher, student.
    height, width, _ = read_image(out / "comparison.png").shape
    assert width > 3 * height
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http" not in page.replace("https://huggingface.co", "")


def test_what_a_training_validated_on(dump, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is not the workdir of a training run"):
        validation_triplets(tmp_path, 64)
    (tmp_path / "checkpoints").mkdir()
    for data in (str(dump), [str(dump)]):
        run = {"model": {}, "data": data, "validation": None, "validation_fraction": 0.2}
        (tmp_path / "config.json").write_text(json.dumps(run))
        [(dataset, indices)] = validation_triplets(tmp_path, 64)
        assert indices == list(split_triplets(dataset, 0.2).validation)
    (tmp_path / "config.json").write_text(json.dumps(run | {"validation": str(dump)}))
    [(dataset, indices)] = validation_triplets(tmp_path, 3)
    assert indices == [0, 10, 19]  # of 20, evenly spread
    run |= {"validation": None, "data": ["tfds:some_triplets:train"]}
    (tmp_path / "config.json").write_text(json.dumps(run))
    opened = []
    monkeypatch.setattr(
        "student_jax.training.data.TFDSTriplets.open",
        lambda spec: opened.append(spec) or TripletDataset(dump),
    )
    [(_, indices)] = validation_triplets(tmp_path, 64)
    assert opened == ["tfds:some_triplets:train"] and len(indices)


def test_a_training_run_and_results_on_what_it_validated_on(dump, opened, tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "out"
    (workdir / "checkpoints").mkdir(parents=True)
    run = {"model": {}, "data": str(dump), "validation": None, "validation_fraction": 0.2}
    run |= {"init_from": None, "loss": "L2", "steps": 900}
    (workdir / "config.json").write_text(json.dumps(run))
    for triplet in TripletDataset(dump):
        name = f"{triplet.content_id[:-4]}--{triplet.style_id[:-4]}.png"
        (tmp_path / "theirs").mkdir(exist_ok=True)
        write_image(tmp_path / "theirs" / name, triplet.stylised)
    config = EvaluateConfig(
        out,
        checkpoint=str(workdir),
        step=700,
        results=tmp_path / "theirs",
        style_scale=48,
        structure=False,
    )
    measures = evaluate(config).measures
    assert measures["results"] == measures["teacher"] != measures["student"]
    # Which checkpoint it was and what it saw is used, and said on the page and in the JSON.
    assert opened == [(str(workdir), 700, 48)]
    said = "trained from scratch, loss L2, up to 900 steps, --step 700, --style-scale 48"
    assert said in (out / "report.html").read_text()
    student = json.loads((out / "measures.json").read_text())["student"]
    assert student == {
        "origin": "trained from scratch, loss L2, up to 900 steps",
        "checkpoint": str(workdir),
        "step": 700,
        "style_scale": 48,
    }


def test_a_dump_itself(dump, tmp_path):
    judgement = evaluate(EvaluateConfig(tmp_path, data=str(dump), max_pairs=2, structure=False))
    assert judgement.count == 2
    assert list(judgement.measures) == ["teacher", *CONTROLS]
    assert judgement.missing["cfsd"] == "switched off with --no-structure"


def test_results_of_anyone_against_a_teacher(dump, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for triplet in TripletDataset(dump):
        name = f"{triplet.content_id[:-4]}_stylized_{triplet.style_id[:-4]}.png"
        write_image(folder / name, triplet.stylised)
    config = EvaluateConfig(
        tmp_path / "out", results=folder, data=str(dump), max_pairs=3, structure=False
    )
    measures = evaluate(config).measures
    assert measures["results"] == measures["teacher"]
    write_grey(folder / "photo0_stylized_painting0.png", side=63)
    with pytest.raises(InputError, match="has 63 x 63 px; the measures need 64 px or more"):
        evaluate(config)
    write_grey(folder / "photo0_stylized_painting0.png", side=65)
    with pytest.raises(InputError, match="has 65 x 65 px, its content 64 x 64"):
        evaluate(config)
    (folder / "photo0_stylized_painting0.png").unlink()
    with pytest.raises(InputError, match='no result "photo0--painting0"'):
        evaluate(config)


def found(folder, ids, names):
    """What `find_results` finds among files of these names, which are listed but not read."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return find_results(folder, ids)


@pytest.mark.parametrize(
    ("contents", "result"),
    [
        (["a.jpg", "x/b.JPEG", "x/St. Remy.png"], "x_St. Remy--s.v2.png"),
        (["a.jpg", "b.jpg", "a.png"], "a.png--s.v2.png"),
        ([f"coco/2017:1.1.0:train:{i}" for i in range(12)], "coco_2017:1.1.0:train:11--s.v2.png"),
    ],
)
def test_results_are_found_under_the_names_that_stylize_gives(contents, result, tmp_path):
    contents_of = unique_names([Input(name, name) for name in contents])
    [style] = unique_names([Input("s.v2.tif", "s.v2.tif")])
    expected = {
        (name, "s.v2.tif"): f"{stem}--{style}.png"
        for name, stem in zip(contents, contents_of, strict=True)
    }
    assert found(tmp_path, list(expected), expected.values()) == expected
    assert expected[contents[-1], "s.v2.tif"] == result


@pytest.mark.parametrize(
    ("ids", "files", "message"),
    [
        ([("a.jpg", "s.jpg")], ["a--s.png", "a--s.jpg"], "share a name"),
        ([("a.jpg", "s.jpg")], ["a--s.png", "a_stylized_s.png"], "are of one pair"),
        (
            [("a.jpg", "s.jpg"), ("a.png", "s.jpg")],
            ["a--s.png"],
            r"could be that of a\.jpg with s\.jpg or a\.png with s\.jpg",
        ),
        ([("x/a.jpg", "s.jpg"), ("x_a.jpg", "s.jpg")], ["x_a--s.png"], "could be that of"),
        ([("a--b.jpg", "c.jpg"), ("a.jpg", "b--c.jpg")], ["a--b--c.png"], "could be that of"),
        ([("a.jpg", "s.jpg")] * 2, ["a--s.png"], "could be that of"),
        ([("coco:1.0:1", "s.jpg")], ["coco:1--s.png"], 'no result "coco:1.0:1--s"'),
    ],
)
def test_results_that_could_be_of_several_pairs(ids, files, message, tmp_path):
    with pytest.raises(InputError, match=message):
        found(tmp_path, ids, files)


def test_sizes_too_small_to_measure(tmp_path):
    EvaluateConfig(tmp_path, size=64)
    with pytest.raises(ValueError, match="size is 63; the measures need 64 px or more"):
        EvaluateConfig(tmp_path, size=63)
    EvaluateConfig(tmp_path, size=75, fid_weights="w")
    with pytest.raises(ValueError, match="size is 74; the measures need 75 px or more"):
        EvaluateConfig(tmp_path, size=74, fid_weights="w")
    picture = np.zeros((1, 32, 48, 3), np.uint8)
    writer = TripletWriter(
        tmp_path / "small",
        contents=ImageSet(picture, ["a.jpg"], [(32, 48)]),
        styles=ImageSet(picture, ["s.jpg"], [(32, 48)]),
        pairs=np.zeros((1, 2), int),
        shard_size=1,
    )
    writer.write_shard(0, picture)
    with pytest.raises(InputError, match="pictures of 48 x 32 px are too small to measure"):
        evaluate(EvaluateConfig(tmp_path / "out", data=str(tmp_path / "small")))


def test_protocol_on_two_folders(dump, opened, tmp_path, capsys):
    dataset = TripletDataset(dump)
    for kind in ("contents", "styles"):
        (tmp_path / kind).mkdir()
        for i, picture in enumerate(getattr(dataset, kind)[:2]):
            write_image(tmp_path / kind / f"{i}.png", np.asarray(picture))
    (tmp_path / "contents" / "broken.jpg").write_text("no picture")
    write_grey(tmp_path / "styles" / "tiny.png", side=4)
    judgement = evaluate(
        EvaluateConfig(
            tmp_path / "out",
            checkpoint="mini",
            content=str(tmp_path / "contents"),
            style=str(tmp_path / "styles"),
            size=64,
            structure=False,
        )
    )
    assert judgement.count == 4
    assert list(judgement.measures) == ["student", *CONTROLS]
    assert "mse" not in judgement.measures["student"]
    # Inputs are skipped by name and reason only, wherever one may look.
    printed, report = capsys.readouterr(), (tmp_path / "out" / "report.html").read_text()
    assert "2 contents x 2 styles" in printed.out and "2 contents x 2 styles" in report
    stored = json.loads((tmp_path / "out" / "measures.json").read_text())["skipped"]
    for text in (printed.err, report, (tmp_path / "out" / "table.md").read_text(), *[str(stored)]):
        assert "skipped content broken.jpg: " in text and "no JPEG" in text
        assert "skipped style tiny.png: " in text and "its shorter side needs 16" in text
    assert len(stored) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "nothing to measure: give --checkpoint"),
        ({"checkpoint": "x", "content": "a"}, "--content and --style go together"),
        ({"checkpoint": "x", "data": "d", "gold": True}, "--data, --gold are given"),
        ({"results": Path("r")}, "nothing to measure the results on"),
        ({"checkpoint": "mini"}, "is not the workdir of a training run"),
    ],
)
def test_command_lines_that_say_too_little_or_too_much(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        choose_examples(EvaluateConfig(tmp_path, **flags))


def test_every_measure_says_how_to_take_and_to_read_it():
    for measure in MEASURES.values():
        assert measure.better in ("lower", "higher", "as the teacher")
        assert measure.meaning
        assert (measure.take is None) != (measure.take_set is None)


def test_gold_set_is_frozen():
    gold = GoldSet.load()
    assert len(gold.pairs) == 10
    assert len({content for content, _ in gold.pairs}) == 5
    assert len({style for _, style in gold.pairs}) == 7
    # Figures of releases compare only while this stays as it is.
    assert gold.sha256[:16] == "6fbb4f3abeb5a5b1"


def test_gold_set_with_own_pictures(tmp_path):
    sample = GoldSet.load().pairs[0]
    for kind, file in zip(("content", "style"), sample, strict=True):
        (tmp_path / "own" / kind).mkdir(parents=True)
        (tmp_path / "own" / kind / file.name).write_bytes(file.read_bytes())
    write_image(tmp_path / "own" / "content" / "zebra, grey.png", np.zeros((20, 20, 3), np.uint8))
    gold = GoldSet.load(tmp_path / "own")
    assert len(gold.pairs) == 12
    assert gold.sha256 != GoldSet.load().sha256
    gold.write(tmp_path / "copy")
    lines = (tmp_path / "copy" / "pairs.csv").read_text().splitlines()
    assert lines[0] == "content,style" and len(lines) == 13
    assert lines[-1] == "own_zebra_ grey.png,own_van_gogh_cafe_terrace_at_night.jpg"
    for line in lines[1:]:
        for kind, name in zip(("content", "style"), line.split(","), strict=True):
            assert float_from_uint8(read_image(tmp_path / "copy" / kind / name)).ndim == 3


def test_own_pictures_of_one_name_stay_apart(tmp_path):
    own = tmp_path / "own"
    contents = ("a/x.png", "a_x.png", "astronaut.jpg", "b/X.png", "b/x.png", "x,y.png", "x_y.png")
    for i, name in enumerate(contents):
        write_grey(own / "content" / name, grey=i)
    write_grey(own / "style" / "sub" / "s.png")
    gold = GoldSet.load(own)
    assert gold.ids[0] == ("astronaut.jpg", "van_gogh_cafe_terrace_at_night.jpg")
    assert gold.ids[10:] == [(name, "sub/s.png") for name in contents]
    gold.write(tmp_path / "copy")
    rows = [line.split(",") for line in (tmp_path / "copy" / "pairs.csv").read_text().splitlines()]
    assert [row[0] for row in rows[1:11]] == [content for content, _ in gold.ids[:10]]
    copied = [row[0] for row in rows[11:]]
    assert {row[1] for row in rows[11:]} == {"own_sub_s.png"}
    assert copied[2] == "own_astronaut.jpg"
    assert len({name.casefold() for name in copied}) == len(contents)
    for i, name in enumerate(copied):
        assert name.endswith(".png" if i != 2 else ".jpg") and "own_" in name
        if i != 2:  # JPEG does not keep a grey to the level
            assert (read_image(tmp_path / "copy" / "content" / name) == i).all()


def test_own_pictures_that_cannot_be_used_are_not_skipped(tmp_path):
    write_grey(tmp_path / "elsewhere.png")
    for kind in ("content", "style"):
        write_grey(tmp_path / "own" / kind / "x.png")
    (tmp_path / "own" / "style" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match=r"link\.png is a link that leaves the folder"):
        GoldSet.load(tmp_path / "own")


def test_gold_set_notices_a_changed_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("student_jax.evaluation.gold_set.SAMPLES", tmp_path)
    for kind in ("content", "style"):
        (tmp_path / kind).mkdir()
    (tmp_path / "content" / "astronaut.jpg").write_bytes(b"another picture")
    with pytest.raises(InputError, match="not the picture that the gold set was frozen with"):
        GoldSet.load()
