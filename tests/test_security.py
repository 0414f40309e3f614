"""SECURITY.md gives the limits that the code has."""

import importlib
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "SECURITY.md").read_text()
ROWS = re.findall(
    r"^\| ([^|]+) \| ([\d,]+)( MiB| GiB)? \| `([\w.]+)\.(\w+)` \|$", TEXT, re.MULTILINE
)
UNITS = {"": 1, " MiB": 2**20, " GiB": 2**30}


def test_the_limits_are_found():
    section = TEXT.partition("## Limits")[2].partition("##")[0]
    assert len(ROWS) == section.count("\n|") - 2 >= 9


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_limit_is_that_of_the_code(row):
    _, number, unit, module, constant = row
    value = getattr(importlib.import_module(module), constant)
    assert int(number.replace(",", "")) * UNITS[unit] == value
