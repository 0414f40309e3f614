import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tyro

from experiments import compare_losses as module
from experiments.ablations import subset
from experiments.compare_losses import (
    CLAIMS,
    GOLD,
    HELD_OUT,
    CompareConfig,
    Figures,
    objectives,
    report_text,
    summary,
    table,
    verdict,
    verdicts,
)
from experiments.runs import SCRIPTS, TrainingRun, call, ensure_all
from experiments.study import MEASURED, ExampleSet
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
        runs.append({HELD_OUT: values, GOLD: values})
    return runs


def make_figures(**losses):
    others = {name: {"teacher": dict.fromkeys(MEASURED, 1.0)} for name in (HELD_OUT, GOLD)}
    return Figures(losses, dict.fromkeys((HELD_OUT, GOLD), PAIRS), others)


FIGURES = make_figures(
    L1=runs_of(mse=(0.01, 0.02, 0.03), saturation=(0.5, 0.5, 0.5)),
    L2=runs_of(mse=(0.02, 0.03, 0.05), saturation=(0.4, 0.6, 0.4)),
    L3=runs_of(mse=(0.005, 0.01, 0.01), brightness=(0.4, 0.4, 0.4)),
)


def test_verdicts_follow_from_the_figures():
    by_measure = {
        (claim.loss, claim.measure): sentence
        for claim, sentence in zip(CLAIMS, verdicts(FIGURES)[:-1], strict=True)
    }
    # Of 0.01, 0.01 and 0.02: mean 0.0133, sample deviation 0.0058; all pictures are alike.
    expected = (
        "**agrees** on the held-out triplets (L2 − L1: +0.013333 ± 0.005774 over the seeds, "
        "+0.013333 to +0.013333 over the pictures)"
    )
    assert expected in by_measure["L2", "mse"]
    assert "**disagrees** on the gold set (L3 − L1: -0.01" in by_measure["L3", "mse"]
    assert "**undecided** on the gold set (L2" in by_measure["L2", "saturation"]
    # Of what the study says about one loss, the other is shown too.
    assert "**agrees** on the gold set (L3 − L1: -0.1" in by_measure["L3", "brightness"]
    assert "; L2 − L1: +0.0000" in by_measure["L3", "brightness"]


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
    assert verdict(CLAIMS[0], HELD_OUT, figures) == expected


def test_summary_counts_the_verdicts():
    # Agree: L2's error, L3's brightness. Disagree: L3's error. The others do not differ.
    expected = (
        "Of 8 comparisons on the held-out triplets 2 agree with the study and 1 disagree; "
        "undecided: 5."
    )
    assert expected in summary(FIGURES)
    assert "chance alone does in one of 4 cases" in summary(FIGURES)
    alone = make_figures(**{loss: runs_of(seeds=1) for loss in ("L1", "L2", "L3")})
    assert "undecided: 8. A verdict takes 3 seeds; here there are 1." in summary(alone)


def test_table_has_mean_and_spread():
    lines = table(HELD_OUT, FIGURES).splitlines()
    assert [line.split(" |")[0] for line in lines[2:]] == [
        "| **L1**",
        "| **L2**",
        "| **L3**",
        "| teacher",
    ]
    assert "0.02000 ± 0.01000" in lines[2]
    assert "0.500 ± 0.000" in lines[2]


def test_report_says_what_was_done(dump):
    described = {HELD_OUT: "some triplets; one was seen", GOLD: "ten pairs"}
    config = CompareConfig(dump, steps=7, seeds=(0, 4))
    text = report_text(config, GoldSet.load(), described, FIGURES, ["their terms"])
    assert "20 triplets of 64 x 64 px" in text
    assert f"--data {dump} --seeds 0 4 --steps 7" in text
    assert "the seeds, on some triplets; one was seen." in text
    assert "## What the losses consist of\n\ntheir terms" in text
    assert "the students keep L1 50 %, L2 50 %, L3 50 %" in text


def test_objectives_say_how_little_of_a_loss_a_term_is(tmp_path):
    runs = {}
    for loss, gram in (("L1", None), ("L2", 2.0), ("L3", 2.0)):
        run = TrainingRun(tmp_path, Path("x"), None, loss, 0, steps=10)
        run.__dict__["workdir"] = workdir = tmp_path / loss
        workdir.mkdir()
        config = {"clip_norm": 1.0, "features": "vgg16", "features_crop": 64}
        (workdir / "config.json").write_text(json.dumps(config | {"gram_reduction": "sum"}))
        pixel = {"L1": 1.0, "L2": 0.5, "L3": 0.7}[loss]
        lines = []
        for step, norm in ((1, 9.0), (10, 0.5)):
            line = {"step": step, "gradient_norm": norm, "pixel": 0.01, "loss": pixel * 0.01}
            if gram:
                line |= {"gram": gram, "loss": line["loss"] + (1 - pixel) * gram}
            lines += [json.dumps(line), json.dumps({"step": step, "validation_mse": 1.0})]
        (workdir / "metrics.jsonl").write_text("\n".join(lines))
        runs[loss] = [run]
    text = "\n".join(objectives(runs))
    assert "| **L1** | 0.01000 | – | 0.00 % | 0.5 | 50 % |" in text
    # 0.5 x 2 of 0.5 x 2 + 0.5 x 0.01, and 0.3 x 2 of 0.3 x 2 + 0.7 x 0.01.
    assert "| **L2** | 0.01000 | 2.000 | 99.50 % | 0.5 | 50 % |" in text
    assert "| **L3** | 0.01000 | 2.000 | 98.85 % | 0.5 | 50 % |" in text
    assert "almost one objective" in text
    assert "vgg16 on crops of 64 px" in text
    (tmp_path / "L3" / "metrics.jsonl").write_text("")
    assert objectives(runs) == ["The trainings were too short to log a step."]


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
        return TrainingRun(tmp_path, data, dump, "L1", 0, steps=5).workdir

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
    described = ExampleSet([(other, [0, 1, 2])]).described(dataset, train)
    assert described == (
        "3 triplets of 2 contents and 2 styles, of which the training had copy1.png"
    )
    assert ExampleSet([(other, [1])]).described(dataset, train).endswith("the training had none")


def test_measures_of_other_pictures_are_not_kept(dump, tmp_path, monkeypatch):
    dataset = TripletDataset(dump)
    key = ExampleSet([(dataset, [0, 1])]).key
    assert key == ExampleSet([(TripletDataset(dump), range(2))]).key
    assert key != ExampleSet([(dataset, [1, 0])]).key
    shutil.copytree(dump, tmp_path / "copy")
    assert key == ExampleSet([(TripletDataset(tmp_path / "copy"), [0, 1])]).key
    monkeypatch.setattr("experiments.study.MEASURED", ("mse",))
    assert key != ExampleSet([(dataset, [0, 1])]).key


def test_finished_runs_are_kept(dump, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("experiments.runs.call", lambda *flags: calls.append(flags))
    run = TrainingRun(tmp_path, dump, None, "L1", 0, steps=5)
    run.ensure()
    (run.workdir / "checkpoints" / "5").mkdir(parents=True)
    ensure_all([run, run])
    assert len(calls) == 1
    assert {"--resume", "--steps", "5", "--workdir"} <= set(calls[0])
    assert "run 2 of 2, kept" in capsys.readouterr().out
    assert not TrainingRun(tmp_path, dump, None, "L1", 0, steps=6).finished


def test_sigterm_reaches_the_command(tmp_path, monkeypatch):
    # Like a training, it ends in order.
    (tmp_path / "waits.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr("experiments.runs.SCRIPTS", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        call("waits.py")


def test_a_missing_test_set_is_told_before_any_training(dump, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.runs.call", None)
    config = CompareConfig(dump, test=tmp_path / "missing", out=tmp_path / "runs", gold=dump)
    with pytest.raises(InputError, match="missing"):
        module.compare_losses(config)


def test_a_failing_command_is_named(tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr("experiments.runs.SCRIPTS", tmp_path)
    with pytest.raises(InputError, match=r"fails\.py ended with status 3"):
        call("fails.py")


def test_data_that_do_not_name_their_teacher(dump, tmp_path):
    with pytest.raises(InputError, match="does not say which teacher made it"):
        module.stylise_gold_set(CompareConfig(dump, out=tmp_path), GoldSet.load())


def test_scripts_are_where_they_are_called():
    assert (SCRIPTS / "train_flax.py").is_file() and (SCRIPTS / "dump_teacher.py").is_file()


@pytest.mark.slow  # three trainings, and programs that compile
def test_the_experiment_and_its_continuation(dump, tmp_path, monkeypatch, capfd):
    calls = []

    def call_here(script, preset, *flags):
        """In this process, which has everything imported."""
        calls.append((script, preset))
        default = TrainConfig.mini(("",), Path())
        # All with L1, whose program compiles fastest and is then kept for the other two.
        args = ["L1" if flag in ("L2", "L3") else flag for flag in flags]
        train(tyro.cli(TrainConfig, args=args, default=default))

    monkeypatch.setattr("experiments.runs.call", call_here)
    tiny = (
        "--model.content-widths 8 8 --model.style-widths 8 8 --model.hidden-dim 16 "
        "--model.num-heads 2 --model.mlp-dim 16 --model.num-encoder-layers 1 "
        "--model.num-decoder-layers 1 --model.tail-dim 16 --batch-size 2 --crop-size 32 "
        "--held-out-fraction 0.2 --validation-pairs 1"
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
    assert calls == [("train_flax.py", "mini")] * 3
    text = (tmp_path / "losses.md").read_text()
    assert "## Against the study" in text
    figures = json.loads((tmp_path / "losses.json").read_text())
    assert len(figures["losses"]["L2"]) == 1
    assert (tmp_path / "losses_gold.jpg").is_file()
    monkeypatch.setattr("experiments.study.Judge.of_pair", None)  # all of it is kept
    module.compare_losses(config)
    assert len(calls) == 3
    assert "run 3 of 3, kept" in capfd.readouterr().out
    assert (tmp_path / "losses.md").read_text() == text
