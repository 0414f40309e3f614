"""Pages of the studies: prose by hand, tables from a study's JSON.

A page NAME.md stands beside its NAME.json. What the program writes of it is marked:

    <!-- table: settings -->
    ...
    <!-- end -->

Everything else is written by hand. A study fills the marked places of the page in its report
folder, or begins a page there; `python -m experiments.pages` fills those of docs/experiments from
the JSON beside them, after a table has got another form.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from student_jax.evaluation.report import markdown_rows, write_text
from triplets import InputError

Tables = Callable[[dict], dict[str, str]]
"""The tables of a study by name, from what its JSON holds."""

DOCS = Path(__file__).parents[1] / "docs" / "experiments"

_MARKED = re.compile(r"(?<=<!-- table: )(\S+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def marked_tables(page: str) -> dict[str, str]:
    """The tables that stand in a page, by name."""
    return {
        found[1]: found[0].partition(found[2])[2].strip("\n") for found in _MARKED.finditer(page)
    }


def fill(page: str, tables: Mapping[str, str]) -> str:
    """The page with these tables in its marked places.

    Raises:
        InputError: a place for a table that there is not.
    """
    if unknown := marked_tables(page).keys() - tables.keys():
        raise InputError(
            f"the page has places for the tables {', '.join(sorted(unknown))}; expected some of "
            f"{', '.join(tables)}."
        )
    return _MARKED.sub(lambda found: f"{found[1]}{found[2]}\n{tables[found[1]]}\n\n", page)


def prose(page: str) -> str:
    """What is written by hand in a page, without code, links and picture names."""
    text = _MARKED.sub("", page)
    text = re.sub(r"```.*?```|`[^`]*`|<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def write_report(
    folder: Path, name: str, title: str, record: dict, tables: Tables, *, picture: str | None = None
) -> None:
    """Write NAME.json, fill or begin NAME.md in the folder, and print the page.

    Args:
        folder: of the report.
        name: of both files, without suffix.
        title: first line of a page that is begun.
        record: all figures and what they are about, as JSON.
        tables: makes the page's tables of the record.
        picture: file in the folder that a new page shows.

    Raises:
        InputError: the page that is there has a place for a table that there is not.
    """
    text = json.dumps(record, indent=2, allow_nan=False)
    write_text(folder / f"{name}.json", text)
    filled = tables(json.loads(text))
    path = folder / f"{name}.md"
    if path.is_file():
        page = path.read_text()
    else:
        places = [f"<!-- table: {table} -->\n<!-- end -->" for table in filled]
        figure = [f"![{title}]({picture})"] if picture else []
        page = "\n\n".join([f"# {title}", *figure, *places])
    page = fill(page, filled)
    write_text(path, page)
    print(page)


def settings_table(record: Mapping[str, object]) -> str:
    """What a study was done with."""
    rows = []
    for name, value in record.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows.append([name, f"`{text}`" if name == "command" else text])
    return markdown_rows(["", ""], rows)


def studies() -> dict[str, Tables]:
    """The tables of every page in docs/experiments, by its name."""
    # Imported here: the studies import this module.
    from experiments import ablations, compare_losses, cost, teachers

    pages = {
        "losses": compare_losses.tables,
        "cost": cost.tables,
        "teachers": teachers.tables,
    }
    return pages | dict.fromkeys(ablations.ABLATIONS, ablations.tables)


def main() -> None:
    """Fill the pages of docs/experiments."""
    for name, tables in studies().items():
        path = DOCS / f"{name}.md"
        record = json.loads((DOCS / f"{name}.json").read_text())
        write_text(path, fill(path.read_text(), tables(record)))


if __name__ == "__main__":
    main()
