import shlex
from pathlib import Path

import pytest
import tyro

from experiments.ablations import AblationConfig
from experiments.compare_losses import CompareConfig
from experiments.cost import CostConfig
from experiments.study import command_line, kept
from experiments.teachers import TeachersConfig
from triplets import InputError

DATA = Path("my data")


@pytest.mark.parametrize(
    "config",
    [
        AblationConfig("gram", DATA),
        AblationConfig("size", DATA, test=DATA, points=(0.25, 2.0), flags="--crop-size 96"),
        CostConfig(sizes=(64, 128), device="cpu", fresh=True),
        TeachersConfig(
            contents=2,
            teachers=("zecon", "quick: inst --steps 10"),
            flags="--tile 2",
            train_flags="--batch-size 4",
        ),
        CompareConfig(DATA, seeds=(3, 4), init_from="mini", flags="--batch-size 4", max_pairs=8),
    ],
)
def test_a_report_shows_the_command_that_makes_it(config):
    program, study, name, *args = shlex.split(command_line("NAME", config))
    assert (program, study, name) == ("style-distil", "study", "NAME")
    assert tyro.cli(type(config), args=args) == config


def test_the_command_leaves_out_where_things_lie():
    config = AblationConfig("styles", DATA, points=(24.0, 64.0), out=DATA, report=DATA)
    flags = "--vary styles --data 'my data' --points 24 64"
    assert command_line("ablations", config) == f"style-distil study ablations {flags}"


def test_figures_are_taken_once(tmp_path):
    path = tmp_path / "figures.json"
    for mse in (0.5, 0.7):
        assert kept(path, lambda mse=mse: {"mse": mse}) == {"mse": 0.5}
    path.write_text('{"mse": 0.')
    with pytest.raises(InputError, match=r"figures.json': .*; delete the file, to measure again"):
        kept(path, lambda: {"mse": 0.5})
