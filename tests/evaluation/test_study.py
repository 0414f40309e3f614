import shlex
from pathlib import Path

import pytest
import tyro

from evaluation.ablations import AblationConfig
from evaluation.compare_losses import CompareConfig
from evaluation.study import command_line

DATA = Path("my data")


@pytest.mark.parametrize(
    "config",
    [
        AblationConfig("gram", DATA),
        AblationConfig("size", DATA, test=DATA, points=(0.25, 2.0), flags="--crop-size 96"),
        CompareConfig(DATA, seeds=(3, 4), init_from="mini", flags="--batch-size 4", max_pairs=8),
    ],
)
def test_a_report_shows_the_command_that_makes_it(config):
    assert tyro.cli(type(config), args=shlex.split(command_line(config))) == config


def test_the_command_leaves_out_where_things_lie():
    config = AblationConfig("styles", DATA, points=(24.0, 64), out=DATA, report=DATA)
    assert command_line(config) == "--study styles --data 'my data' --points 24 64"
