import json

import numpy as np
import pytest

from student_jax.evaluate import EvaluateConfig, colour_transfer, evaluate
from student_jax.train import train
from triplets import read_image


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


def test_evaluation_on_what_was_held_out(train_config, tmp_path, capsys):
    train(train_config)
    measures = evaluate(EvaluateConfig(train_config.workdir, tmp_path / "out"))
    assert list(measures) == ["student", "colour statistics transferred", "content copied"]
    records = [json.loads(x) for x in (train_config.workdir / "metrics.jsonl").open()]
    best = min(r["validation_mse"] for r in records if "validation_mse" in r)
    # The validation predicts in batches, the evaluation one by one.
    assert measures["student"] == pytest.approx(best, rel=1e-4)
    assert "on 1 held-out triplets" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "measures.json").read_text()) == measures
    assert read_image(tmp_path / "out" / "comparison.png").shape[2] == 3
