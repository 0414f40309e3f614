import json
import sys

import numpy as np
import pytest

from teacher_torch import StyleIDConfig, timing
from teacher_torch.dump import DumpConfig
from teacher_torch.teacher import PIECES
from triplets import InputError, write_image


@pytest.fixture
def config(model_folder, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("content", "style"):
        (tmp_path / kind).mkdir()
        write_image(tmp_path / kind / "a.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    content, style = (str(tmp_path / kind) for kind in ("content", "style"))
    method = StyleIDConfig(num_steps=2)
    return DumpConfig(content, style, tmp_path / "out", model=str(model_folder), method=method)


def test_a_picture_and_a_pair_are_measured(config):
    times = timing.measure_times(config)
    assert (times["size"], times["device"], times["dtype"]) == (64, "cpu", "float32")
    # Two steps of the inversion; content, style and pair in one of sampling.
    assert [times[piece]["rows"] for piece in PIECES] == [2, 2, 3]
    for piece in PIECES:
        assert times[piece]["seconds"] > 0
        peak = times[piece]["peak_bytes"]
        assert (peak is not None and peak > 0) == (sys.platform == "linux")
    assert not config.out.exists()


def test_it_prints_json_for_the_flags_of_a_dump(config, capsys):
    flags = ["--content", config.content, "--style", config.style, "--out", str(config.out)]
    timing.main([*flags, "--model", config.model, "--steps", "3"])
    assert json.loads(capsys.readouterr().out)["content"]["rows"] == 3
    with pytest.raises(InputError, match="--size 65"):
        timing.main([*flags, "--model", config.model, "--size", "65"])
