"""CSV files that name pictures."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from triplets.errors import InputError


class Row(NamedTuple):
    """Some columns of one row."""

    line: int
    """Its number in the file, from 1."""
    values: list[str | None]
    """In the order that was asked for; None if the row is too short."""


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a CSV file, below a header with at least these columns.

    Raises:
        InputError: another header, or not a CSV file.
    """
    expected = f"a CSV file in UTF-8 with the columns {', '.join(columns)}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # with the mark of spreadsheets
            reader = csv.DictReader(file)
            if not set(columns) <= set(reader.fieldnames or ()):
                raise InputError(f"{path} has other columns; expected {expected}.")
            return [Row(reader.line_num, [row[name] for name in columns]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a table; expected {expected}.") from error
