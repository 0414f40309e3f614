import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro

from experiments import compare_losses as module
from experiments.ablations import subset
from experiments.compare_losses import (
    CLAIMS,
    GOLD,
    TRIPLETS,
    CompareConfig,
    LossFigures,
    loss_record,
    objectives,
    tables,
    verdict,
)
from experiments.runs import TrainingRun, call, ensure_all, teacher_flags
from experiments.study import MEASURED, ExampleSet, measures_key
from student_jax.evaluation.gold_set import GoldSet
from student_jax.evaluation.overlap import seen_in_training
from student_jax.training.config import TrainConfig
from student_jax.training.train import train
from triplets import ImageSet, InputError, TripletDataset, TripletWriter

PAIRS = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


def runs_of(*, seeds=3, picture=(0, 0, 0, 0), **changes):
    """Seeds of one loss, equal but for what is said: measure=(seed 0, seed 1, seed 2).

    `picture` is added to those measures of each of the four pictures.
    """
    runs = []
    for seed in range(seeds):
        values = {m: [0.5] * 4 for m in MEASURED}
        values |= {m: [v[seed] + extra for extra in picture] for m, v in changes.items()}
        runs.append({TRIPLETS: values, GOLD: values})
    return runs


def make_figures(**losses):
    others = {name: {"teacher": dict.fromkeys(MEASURED, 1.0)} for name in (TRIPLETS, GOLD)}
    return LossFigures(losses, dict.fromkeys((TRIPLETS, GOLD), PAIRS), others)


FIGURES = make_figures(
    L1=runs_of(mse=(0.01, 0.02, 0.03), saturation=(0.5, 0.5, 0.5)),
    L2=runs_of(mse=(0.02, 0.03, 0.05), saturation=(0.4, 0.6, 0.4)),
    L3=runs_of(mse=(0.005, 0.01, 0.01), brightness=(0.4, 0.4, 0.4)),
)


ABOUT = {
    TRIPLETS: {"triplets": 7, "contents": 3, "styles": 2, "seen in training": ["a", "b"]},
    GOLD: {"triplets": 10, "contents": 5, "styles": 8, "seen in training": [], "sha256": "f" * 64},
}


def reported(figures, config, objectives=None):
    """The record and the tables of some figures, as they come from the JSON."""
    record = loss_record(config, ABOUT, figures, objectives or {})
    record = json.loads(json.dumps(record, allow_nan=False))
    return record, tables(record)


def test_verdicts_follow_from_the_figures(dump):
    record, written = reported(FIGURES, CompareConfig(dump))
    rows = {}
    for row in record["differences_from_L1"]:
        rows[row["set"], row["measure"], row["loss"]] = row
    # Of 0.01, 0.01 and 0.02: mean 0.0133, sample deviation 0.0058; all pictures are alike.
    expected = "| MSE, L2 | +0.013333 ± 0.005774 | +0.013333 to +0.013333 | above | **agrees** |"
    assert expected in written["triplets_differences"]
    assert expected in written["gold_differences"]
    assert rows[GOLD, "mse", "L3"]["verdict"] == "disagrees"
    assert "| MSE, L3 | -0.01" in written["gold_differences"]
    assert rows[GOLD, "saturation", "L2"]["verdict"] == "undecided"
    # Of what the talk says about one loss, the other is shown too.
    assert rows[GOLD, "brightness", "L3"]["verdict"] == "agrees"
    assert rows[GOLD, "brightness", "L3"]["mean"] == pytest.approx(-0.1)
    assert rows[GOLD, "brightness", "L2"]["verdict"] is None
    assert (
        "| brightness, L2 | +0.0000 ± 0.0000 | +0.0000 to +0.0000 | – | – |"
        in (written["gold_differences"])
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mse": (0.6, 0.6, 0.6)}, "agrees"),
        ({"mse": (0.4, 0.4, 0.4)}, "disagrees"),
        ({"mse": (0.6, 0.6, 0.4)}, "undecided"),  # a seed lies on the other side
        ({"mse": (0.5, 0.5, 0.5)}, "undecided"),  # no difference at all
        ({"mse": (float("nan"),) * 3}, "undecided"),
        ({"mse": (0.6, 0.6), "seeds": 2}, "undecided"),  # too few seeds
        # The mean of every seed is higher, but because of the pictures of one content.
        ({"mse": (0.51, 0.51, 0.51), "picture": (0.1, 0.1, -0.1, -0.1)}, "undecided"),
        ({"mse": (0.7, 0.7, 0.7), "picture": (0.1, 0.1, -0.1, -0.1)}, "agrees"),
    ],
)
def test_a_verdict_takes_seeds_and_pictures(changes, expected):
    seeds = changes.get("seeds", 3)
    others = {loss: runs_of(seeds=seeds) for loss in ("L1", "L3")}
    figures = make_figures(**others, L2=runs_of(**changes))
    assert verdict(CLAIMS[0], TRIPLETS, figures) == expected


def test_every_claim_gets_a_verdict(dump):
    def found(figures):
        rows = reported(figures, CompareConfig(dump))[0]["differences_from_L1"]
        return [row["verdict"] for row in rows if row["set"] == TRIPLETS and row["talk"]]

    # Agree: L2's error, L3's brightness. Disagree: L3's error. The others do not differ.
    verdicts = found(FIGURES)
    assert len(verdicts) == len(CLAIMS) == 8
    counts = {name: verdicts.count(name) for name in ("agrees", "disagrees", "undecided")}
    assert counts == {"agrees": 2, "disagrees": 1, "undecided": 5}
    # A verdict takes three seeds.
    alone = make_figures(**{loss: runs_of(seeds=1) for loss in ("L1", "L2", "L3")})
    assert found(alone) == ["undecided"] * 8


def test_table_has_mean_and_spread(dump):
    lines = reported(FIGURES, CompareConfig(dump))[1]["triplets"].splitlines()
    assert [line.split(" |")[0] for line in lines[2:]] == [
        "| **L1**",
        "| **L2**",
        "| **L3**",
        "| teacher",
    ]
    assert "0.02000 ± 0.01000" in lines[2]
    assert "0.500 ± 0.000" in lines[2]


def test_one_seed_has_no_spread(dump):
    alone = make_figures(**{loss: runs_of(seeds=1) for loss in ("L1", "L2", "L3")})
    written = reported(alone, CompareConfig(dump))[1]
    assert "±" not in written["triplets"] + written["triplets_differences"]


def test_report_says_what_was_done(dump):
    config = CompareConfig(dump, steps=7, seeds=(0, 4))
    record, written = reported(FIGURES, config)
    assert "| triplets | 20 |\n| size (px) | 64, 64 |" in written["settings"]
    assert f"--data {dump} --seeds 0 4 --steps 7` |" in written["settings"]
    assert "| from | random weights |" in written["settings"]
    assert "| triplets | 7 | 3 | 2 | a, b |" in written["sets"]
    assert "| gold set ffffffff | 10 | 5 | 8 | none |" in written["sets"]
    assert "| 50 % | 50 % | 50 % |" in written["sharpness"]
    assert record["sets"] == ABOUT


def test_objectives_say_how_little_of_a_loss_a_term_is(dump, tmp_path):
    runs = {}
    for loss, gram in (("L1", None), ("L2", 2.0), ("L3", 2.0)):
        run = TrainingRun(root=tmp_path, data=Path("x"), loss=loss, seed=0, steps=10)
        run.__dict__["workdir"] = workdir = tmp_path / loss
        workdir.mkdir()
        settings = {"model": {}, "data": [], "clip_norm": 1.0}
        (workdir / "config.json").write_text(json.dumps(settings))
        pixel = {"L1": 1.0, "L2": 0.5, "L3": 0.7}[loss]
        lines = []
        for step, norm in ((1, 9.0), (10, 0.5)):
            line = {"step": step, "gradient_norm": norm, "pixel": 0.01, "loss": pixel * 0.01}
            if gram:
                line |= {"gram": gram, "loss": line["loss"] + (1 - pixel) * gram}
            lines += [json.dumps(line), json.dumps({"step": step, "validation_mse": 1.0})]
        (workdir / "metrics.jsonl").write_text("\n".join(lines))
        runs[loss] = [run]
    made_of = objectives(runs)
    text = tables(reported(FIGURES, CompareConfig(dump), made_of)[0])["objectives"]
    assert "| **L1** | 1, 0 | 0.01000 | – | 0.00 % | 0.5 | 50 % |" in text
    # 0.5 x 2 of 0.5 x 2 + 0.5 x 0.01, and 0.3 x 2 of 0.3 x 2 + 0.7 x 0.01.
    assert "| **L2** | 0.5, 0.5 | 0.01000 | 2.000 | 99.50 % | 0.5 | 50 % |" in text
    assert "| **L3** | 0.7, 0.3 | 0.01000 | 2.000 | 98.85 % | 0.5 | 50 % |" in text
    (tmp_path / "L3" / "metrics.jsonl").write_text("")
    assert objectives(runs) == {}


def test_runs_share_all_but_loss_and_seed(dump, tmp_path):
    config = CompareConfig(dump, out=tmp_path, steps=100, init_from="mini", flags="--batch-size 4")
    first, second = config.run("L1", 0), config.run("L3", 2)
    difference = [
        pair for pair in zip(first.settings, second.settings, strict=True) if pair[0] != pair[1]
    ]
    assert difference == [("L1", "L3"), ("0", "2")]
    assert first.settings[-4:] == ("--init-from", "mini", "--batch-size", "4")
    assert first.workdir.parent == tmp_path and first.workdir != second.workdir


def test_runs_are_found_by_pictures_not_by_names(dump, tmp_path):
    def workdir(data):
        return TrainingRun(
            root=tmp_path, data=data, validation=dump, loss="L1", seed=0, steps=5
        ).workdir

    shutil.copytree(dump, tmp_path / "copy")
    assert workdir(dump) == workdir(tmp_path / "copy")
    shard = tmp_path / "copy" / "pairs-00000" / "shard.json"
    # Without recorded checksums the pictures themselves count.
    shard.write_text(json.dumps({"rows": 20}))
    assert workdir(dump) == workdir(tmp_path / "copy")
    stylised = shard.parent / "stylised.npy"
    np.save(stylised, 255 - np.load(stylised))
    assert workdir(dump) != workdir(tmp_path / "copy")


def test_pictures_of_the_training_are_named(dump, tmp_path):
    """Under another name, size and quality; pictures of triplets that are not used do not count."""
    dataset = TripletDataset(dump)
    train = np.flatnonzero((dataset.pairs[:, 0] < 3) & (dataset.pairs[:, 1] < 2))
    rng = np.random.default_rng(1)
    noise = rng.integers(-2, 3, dataset.contents.shape)
    contents = (dataset.contents.astype(int) + noise).clip(0, 255).astype(np.uint8)
    ids = [f"copy{i}.png" for i in range(5)]
    writer = TripletWriter(
        tmp_path / "other",
        contents=ImageSet(contents, ids, [(64, 64)] * 5),
        styles=ImageSet(np.array(dataset.styles), dataset.style_ids, [(64, 64)] * 4),
        pairs=np.array([[1, 2], [4, 3], [1, 3]]),
    )
    writer.write_shard(0, np.array(contents[:3]))
    other = TripletDataset(tmp_path / "other")
    assert seen_in_training(dataset, train, other, np.arange(3)) == ["copy1.png"]
    about = ExampleSet([(other, [0, 1, 2])]).about(dataset, train)
    assert about == {
        "triplets": 3,
        "contents": 2,
        "styles": 2,
        "seen in training": ["copy1.png"],
    }
    assert ExampleSet([(other, [1])]).about(dataset, train)["seen in training"] == []


def test_measures_of_other_pictures_are_not_kept(dump, tmp_path):
    dataset = TripletDataset(dump)
    key = ExampleSet([(dataset, [0, 1])]).key
    assert key == ExampleSet([(TripletDataset(dump), range(2))]).key
    assert key != ExampleSet([(dataset, [1, 0])]).key
    shutil.copytree(dump, tmp_path / "copy")
    assert key == ExampleSet([(TripletDataset(tmp_path / "copy"), [0, 1])]).key
    examples = ExampleSet([(dataset, [0, 1])])
    assert measures_key(examples, ("mse",)) != measures_key(examples, ("mse", "psnr"))


def test_finished_runs_are_kept(dump, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("experiments.runs.call", lambda *flags: calls.append(flags))
    run = TrainingRun(root=tmp_path, data=dump, loss="L1", seed=0, steps=5)
    run.ensure()
    (run.workdir / "checkpoints" / "5").mkdir(parents=True)
    ensure_all([run, run])
    assert len(calls) == 1
    assert calls[0][:2] == ("train", "mini")
    assert {"--resume", "--steps", "5", "--workdir"} <= set(calls[0])
    assert "run 2 of 2, kept" in capsys.readouterr().out
    assert not replace(run, steps=6).finished


def test_sigterm_reaches_the_command(tmp_path, monkeypatch):
    # Like a training, it ends in order.
    (tmp_path / "waits.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr("experiments.runs.COMMAND", (sys.executable, str(tmp_path / "waits.py")))
    with pytest.raises(KeyboardInterrupt):
        call("train")


def test_a_missing_test_set_is_told_before_any_training(dump, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.runs.call", None)
    config = CompareConfig(dump, test=tmp_path / "missing", out=tmp_path / "runs", gold=dump)
    with pytest.raises(InputError, match="missing"):
        module.compare_losses(config)


def test_a_failing_command_is_named(tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr("experiments.runs.COMMAND", (sys.executable, str(tmp_path / "fails.py")))
    with pytest.raises(InputError, match='"style-distil dump" ended with status 3'):
        call("dump", "--flag")


def test_data_that_do_not_name_their_teacher(dump, tmp_path):
    with pytest.raises(InputError, match="does not say which teacher made it"):
        module.stylise_gold_set(CompareConfig(dump, out=tmp_path), GoldSet.load())


SETTINGS = {
    "num_steps": 10,
    "gamma": 0.5,
    "injection_layers": [6, 7],
    "convention": "paper",
    "adain_init": True,
    "inject_attention": False,
}


def test_a_teacher_is_asked_for_by_its_manifest():
    settings = {"styleid": SETTINGS, "dtype": "bfloat16", "seed": 3}
    flags = {
        "--teacher": ["styleid"],
        "--model": ["mini"],
        "--steps": ["10"],
        "--gamma": ["0.5"],
        "--injection-layers": ["6", "7"],
        "--convention": ["paper"],
        "--adain-init": [],
        "--no-inject-attention": [],
        "--dtype": ["bfloat16"],
        "--seed": ["3"],
    }
    expected = [word for flag, words in flags.items() for word in (flag, *words)]
    new = {"settings": {"teacher": "styleid"} | settings, "provenance": {"model": "mini"}}
    assert teacher_flags(new) == expected
    # Datasets of version 0.1.0 called the weights the teacher.
    old = {"settings": settings, "provenance": {"teacher": "mini"}}
    assert teacher_flags(old) == expected
    assert teacher_flags(old, "elsewhere")[3] == "elsewhere"


@pytest.mark.slow  # three trainings, and programs that compile
def test_the_experiment_and_its_continuation(dump, tmp_path, monkeypatch, capfd):
    calls = []

    def call_here(command, preset, *flags):
        """In this process, which has everything imported."""
        calls.append((command, preset))
        default = TrainConfig.mini(("",), Path())
        # All with L1, whose program compiles fastest and is then kept for the other two.
        args = ["L1" if flag in ("L2", "L3") else flag for flag in flags]
        train(tyro.cli(TrainConfig, args=args, default=default))

    monkeypatch.setattr("experiments.runs.call", call_here)
    tiny = (
        "--model.content-widths 8 8 --model.style-widths 8 8 --model.hidden-dim 16 "
        "--model.num-heads 2 --model.mlp-dim 16 --model.num-encoder-layers 1 "
        "--model.num-decoder-layers 1 --model.tail-dim 16 --batch-size 2 --crop-size 32 "
        "--validation-fraction 0.2 --validation-pairs 1"
    )
    gold = subset(TripletDataset(dump), (0, 7), tmp_path / "gold").root
    config = CompareConfig(
        dump,
        out=tmp_path / "runs",
        report=tmp_path,
        seeds=(0,),
        steps=2,
        flags=tiny,
        gold=gold,
        max_pairs=1,
    )
    module.compare_losses(config)
    assert calls == [("train", "mini")] * 3
    text = (tmp_path / "losses.md").read_text()
    assert "<!-- table: gold_differences -->" in text
    figures = json.loads((tmp_path / "losses.json").read_text())
    assert len(figures["losses"]["L2"]) == 1
    assert (tmp_path / "losses_gold.jpg").is_file()
    monkeypatch.setattr("experiments.study.Judge.of_pair", None)  # all of it is kept
    module.compare_losses(config)
    assert len(calls) == 3
    assert "run 3 of 3, kept" in capfd.readouterr().out
    assert (tmp_path / "losses.md").read_text() == text
