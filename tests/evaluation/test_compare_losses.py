import json
from pathlib import Path

import pytest
import tyro

from evaluation import compare_losses as module
from evaluation.ablations import subset
from evaluation.compare_losses import (
    CLAIMS,
    GOLD,
    HELD_OUT,
    CompareConfig,
    report_text,
    summary,
    table,
    verdicts,
)
from evaluation.gold_set import GoldSet
from evaluation.runs import SCRIPTS, TrainingRun, call, ensure_all
from evaluation.study import MEASURED
from student_jax.config import TrainConfig
from student_jax.train import train
from triplets import InputError, TripletDataset


def figures(**changes):
    """Three seeds of one loss, equal but for what is said: measure=(seed 0, seed 1, seed 2)."""
    runs = []
    for seed in range(3):
        values = dict.fromkeys(MEASURED, 0.5) | {m: v[seed] for m, v in changes.items()}
        runs.append({HELD_OUT: values, GOLD: values})
    return runs


BY_SEED = {
    "L1": figures(mse=(0.01, 0.02, 0.03), saturation=(0.5, 0.5, 0.5)),
    "L2": figures(mse=(0.02, 0.03, 0.05), saturation=(0.4, 0.6, 0.4)),
    "L3": figures(mse=(0.005, 0.01, 0.01), brightness=(0.4, 0.4, 0.4)),
}
OTHERS = {name: {"teacher": dict.fromkeys(MEASURED, 1.0)} for name in (HELD_OUT, GOLD)}


def test_verdicts_follow_from_the_figures():
    by_measure = {
        (claim.loss, claim.measure): sentence
        for claim, sentence in zip(CLAIMS, verdicts(BY_SEED)[:-1], strict=True)
    }
    assert "**agrees** on the held-out triplets (3 of 3 seeds" in by_measure["L2", "mse"]
    # Of 0.01, 0.01 and 0.02: mean 0.0133, sample deviation 0.0058.
    assert "L2 lies 0.013333 ± 0.005774 above L1" in by_measure["L2", "mse"]
    assert "**disagrees** on the gold set (0 of 3 seeds" in by_measure["L3", "mse"]
    assert "below L1" in by_measure["L3", "mse"]
    assert "**undecided** on the gold set (2 of 3 seeds" in by_measure["L2", "saturation"]
    assert "**agrees**" in by_measure["L3", "brightness"]


def test_summary_counts_the_verdicts():
    # Agree: L2's error, L3's brightness. Undecided: L2's saturation. Ties are no agreement.
    expected = (
        "Of 8 comparisons on the held-out triplets, agreeing: 2, disagreeing: 5, undecided: 1."
    )
    assert expected in summary(BY_SEED)


def test_table_has_mean_and_spread():
    lines = table(HELD_OUT, BY_SEED, OTHERS).splitlines()
    assert [line.split(" |")[0] for line in lines[2:]] == [
        "| **L1**",
        "| **L2**",
        "| **L3**",
        "| teacher",
    ]
    assert "0.02000 ± 0.01000" in lines[2]
    assert "0.500 ± 0.000" in lines[2]


def test_report_says_what_was_done(dump):
    text = report_text(
        CompareConfig(dump, steps=7, seeds=(0, 4)), GoldSet.load(), ["a.jpg"], BY_SEED, OTHERS
    )
    assert "20 triplets of 64 x 64 px" in text
    assert f"--data {dump} --seeds 0 4 --steps 7" in text
    assert "The training data hold some of these pictures: a.jpg." in text
    assert "the students keep L1 50 %, L2 50 %, L3 50 %" in text


def test_runs_share_all_but_loss_and_seed(dump, tmp_path):
    config = CompareConfig(dump, out=tmp_path, steps=100, init_from="mini", flags="--batch-size 4")
    first, second = config.run("L1", 0), config.run("L3", 2)
    difference = [
        pair for pair in zip(first.settings, second.settings, strict=True) if pair[0] != pair[1]
    ]
    assert difference == [("L1", "L3"), ("0", "2")]
    assert first.settings[-4:] == ("--init-from", "mini", "--batch-size", "4")
    assert first.workdir.parent == tmp_path and first.workdir != second.workdir


def test_finished_runs_are_kept(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("evaluation.runs.call", lambda *flags: calls.append(flags))
    run = TrainingRun(tmp_path, Path("x"), None, "L1", 0, steps=5)
    run.ensure()
    (run.workdir / "checkpoints" / "5").mkdir(parents=True)
    ensure_all([run, run])
    assert len(calls) == 1
    assert {"--resume", "--steps", "5", "--workdir"} <= set(calls[0])
    assert "run 2 of 2, kept" in capsys.readouterr().out
    assert not TrainingRun(tmp_path, Path("x"), None, "L1", 0, steps=6).finished


def test_sigterm_reaches_the_command(tmp_path, monkeypatch):
    # Like a training, it ends in order.
    (tmp_path / "waits.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr("evaluation.runs.SCRIPTS", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        call("waits.py")


def test_a_failing_command_is_named(tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr("evaluation.runs.SCRIPTS", tmp_path)
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

    monkeypatch.setattr("evaluation.runs.call", call_here)
    tiny = (
        "--model.content-widths 8 8 --model.style-widths 8 8 --model.hidden-dim 16 "
        "--model.num-heads 2 --model.mlp-dim 16 --model.num-encoder-layers 1 "
        "--model.num-decoder-layers 1 --model.tail-dim 16 --batch-size 2 --crop-size 32 "
        "--held-out-fraction 0.2 --validation-pairs 1"
    )
    gold = subset(TripletDataset(dump), (0, 7), tmp_path / "gold").root
    config = CompareConfig(
        *(dump, None, tmp_path / "runs", tmp_path),
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
    monkeypatch.setattr("evaluation.study.Judge.of_pair", None)  # all of it is kept
    module.compare_losses(config)
    assert len(calls) == 3
    assert "run 3 of 3, kept" in capfd.readouterr().out
    assert (tmp_path / "losses.md").read_text() == text
