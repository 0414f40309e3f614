"""How commands fail: one sentence, and a status that says whose fault it is."""

import errno
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from triplets import InputError

SCRIPT = Path(__file__).parents[1] / "scripts" / "command.py"


@dataclass(frozen=True)
class Config:
    number: int = 1

    def __post_init__(self):
        if self.number < 1:
            raise ValueError(f"number is {self.number}; expected at least 1")


def outcome(monkeypatch, error, *arguments):
    """What the process would end with."""
    spec = importlib.util.spec_from_file_location("command", SCRIPT)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)

    def main(config):
        raise error

    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as end:
        command.run(main, Config, "A program.")
    return end.value.code


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("the input cannot be used."), "the input cannot be used."),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "there"), "there: Permission denied"),
        (OSError("the network is down"), "the network is down"),
    ],
)
def test_what_cannot_be_used(monkeypatch, error, sentence):
    # Python prints a text that a process exits with to stderr, and the status is 1.
    assert outcome(monkeypatch, error) == f"error: {sentence}"


def test_what_makes_no_sense(monkeypatch, capsys):
    assert outcome(monkeypatch, None, "--number", "0") == 2
    assert "number is 0; expected at least 1" in capsys.readouterr().err


def test_interruption(monkeypatch):
    assert outcome(monkeypatch, KeyboardInterrupt()) == 130
