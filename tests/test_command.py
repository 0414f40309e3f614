"""The command line: which commands there are, what each imports, and how they fail."""

import errno
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from style_distil import command
from style_distil.command import COMMANDS, Command, Group, main, run
from triplets import InputError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    number: int = 1

    def __post_init__(self):
        if self.number < 1:
            raise ValueError(f"number is {self.number}; expected at least 1")


def outcome(work):
    """What the process would end with."""
    with pytest.raises(SystemExit) as end:
        run(work)
    return end.value.code


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("the input cannot be used."), "the input cannot be used."),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "there"), "there: Permission denied"),
        (OSError("the network is down"), "the network is down"),
    ],
)
def test_what_cannot_be_used(error, sentence):
    # Python prints a text that a process exits with to stderr, and the status is 1.
    assert outcome(raising(error)) == f"error: {sentence}"


def test_what_makes_no_sense(capsys):
    assert outcome(lambda: tyro.cli(Config, args=["--number", "0"])) == 2
    assert "number is 0; expected at least 1" in capsys.readouterr().err


def test_interruption():
    assert outcome(raising(KeyboardInterrupt())) == 130


def leaves(group=COMMANDS, words=()):
    for name, node in group.commands.items():
        if isinstance(node, Group):
            yield from leaves(node, (*words, name))
        else:
            yield " ".join((*words, name)), node


@pytest.mark.parametrize("name", dict(leaves()))
def test_every_command_is_where_the_table_says(name):
    node = dict(leaves())[name]
    module = importlib.import_module(node.module)
    assert callable(getattr(module, node.function))
    assert isinstance(getattr(module, node.settings), type)
    assert all(hasattr(getattr(module, node.settings), name) for name in node.presets)
    if node.settings_for is not None:
        kind = getattr(module, node.settings_for)([])
        assert issubclass(kind, getattr(module, node.settings))


HEAVY = ("torch", "jax", "tensorflow", "numpy", "student_jax", "teacher_torch", "experiments")


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], HEAVY),
        (["triplets", "--help"], HEAVY),
        (["study", "--help"], HEAVY),
        (["nonsense"], HEAVY),
        (["triplets", "verify", "--help"], ("torch", "jax", "tensorflow")),
        (["dump", "--help"], ("jax", "flax", "student_jax", "tensorflow")),
        (["stylize", "--help"], ("torch", "teacher_torch", "tensorflow")),
        (["train", "mini", "--help"], ("torch", "teacher_torch", "tensorflow")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_imports_no_more_than_it_needs(words, absent):
    program = f"""
import sys
from style_distil.command import main
try:
    main({words!r})
except SystemExit as end:
    print(end.code, [name for name in {absent!r} if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    status = 2 if words == ["nonsense"] else 0
    assert result.stdout.splitlines()[-1] == f"{status} []"


def sentence_about(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    [sentence] = capsys.readouterr().err.splitlines()
    return sentence


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("verify data", "triplets verify"),
        ("dump verify data", "triplets verify"),
        ("dump export-tfds data", "triplets export-tfds"),
        ("export_weights.py", "weights export"),
        ("measure_teacher", "evaluate"),
        ("ablations", "study ablations"),
        ("triplets verfy data", "triplets verify"),
        ("trian mini", "train"),
    ],
)
def test_a_name_that_is_not_there(capsys, words, meant):
    assert sentence_about(capsys, *words.split()).endswith(f'did you mean "style-distil {meant}"?')


def test_a_name_like_no_other(capsys):
    assert sentence_about(capsys, "xyzzy") == (
        'error: there is no command "style-distil xyzzy"; see "style-distil --help".'
    )


def test_every_old_name_leads_to_a_command():
    assert set(command.RENAMED.values()) <= set(dict(leaves()))


@pytest.mark.parametrize(
    ("script", "name"),
    [("dump_teacher", "dump"), ("train_flax", "train"), ("stylize", "stylize")],
)
def test_promised_scripts_are_doors(script, name):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{script}.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.startswith(f"usage: style-distil {name} ")


def test_the_old_way_to_verify_names_the_new_one():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "dump_teacher.py", "verify", "data"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert 'did you mean "style-distil triplets verify"?' in done.stderr


@dataclass(frozen=True)
class Other:
    other: str = ""


def test_arguments_reach_the_function(monkeypatch):
    seen = []
    module = type(sys)("a_module")
    module.Config, module.work = Config, seen.append
    module.choose = lambda arguments: Other if "--other" in arguments else Config
    monkeypatch.setattr(command, "_load", lambda node, prog: module)
    plain = Command("Does work.", "a_module", "work", "Config")
    hooked = Command("Does work.", "a_module", "work", "Config", settings_for="choose")
    monkeypatch.setattr(command, "COMMANDS", Group("All.", {"plain": plain, "hooked": hooked}))
    main(["plain", "--number", "3"])
    main(["hooked", "--number", "4"])
    main(["hooked", "--other", "thing"])
    assert seen == [Config(3), Config(4), Other("thing")]


def message(*words):
    """What a command ends with."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


def test_what_is_not_installed_is_named_with_its_extra():
    program = "import sys; sys.modules['torch'] = None; from style_distil.command import main; "
    done = subprocess.run(
        [sys.executable, "-c", program + "main(['dump', '--help'])"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        'error: style-distil dump needs torch: pip install "style-distil[teacher]".'
    ]


def test_a_study_needs_a_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "SOURCE_TREE", tmp_path)
    assert message("study", "cost", "--help") == (
        "error: style-distil study cost needs a clone of the repository, where experiments/ is."
    )


def test_completion_knows_the_whole_tree():
    done = subprocess.run(
        [sys.executable, "-m", "style_distil", "--tyro-print-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    for word in ("export-tfds", "ablations", "--preserve-colour", "--init-from", "--content"):
        assert word in done.stdout


def test_a_renamed_flag_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "mini", "--held-out-fraction=0.2"])
    assert end.value.code == 2
    assert "--held-out-fraction of style-distil train is called --validation-fraction now." in (
        capsys.readouterr().err
    )
