"""Pages of the studies: what the program writes of them, and that all figures are from the JSON."""

import json
import re

import pytest

from experiments.pages import DOCS, fill, marked_tables, prose, studies, write_report
from triplets import InputError

STUDIES = studies()
# Not the 1 of L1 or relu1_1, nor the version in "Stable Diffusion 1.5".
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\w)")


def numbers(text):
    return {number.replace(",", "") for number in NUMBER.findall(text)}


@pytest.mark.parametrize("name", STUDIES)
def test_tables_of_a_page_are_those_of_its_figures(name):
    page = (DOCS / f"{name}.md").read_text()
    record = json.loads((DOCS / f"{name}.json").read_text())
    assert marked_tables(page) == STUDIES[name](record)


@pytest.mark.parametrize("name", STUDIES)
def test_numbers_in_the_text_of_a_page_are_those_of_its_tables(name):
    page = (DOCS / f"{name}.md").read_text()
    from_figures = "\n".join(marked_tables(page).values())
    assert numbers(prose(page)) - numbers(from_figures) == set()


def test_numbers_are_found_in_text():
    text = "L1 and VGG16: 1,536 triplets, -28.7 % (0.5 to 1). It is `9` [there](x8.md), 3 of 3."
    assert numbers(prose(text)) == {"1536", "28.7", "0.5", "1", "3"}


def test_every_page_has_its_figures():
    pages = {path.stem for path in DOCS.glob("*.md")} - {"README"}
    assert pages == STUDIES.keys() == {path.stem for path in DOCS.glob("*.json")}


PAGE = """# Title

By hand, before.

<!-- table: one -->
old
<!-- end -->

Between.

<!-- table: two -->
<!-- end -->
After.
"""


def test_only_marked_places_are_filled():
    filled = fill(PAGE, {"one": "| 1 |", "two": "| 2 |", "unused": "| 3 |"})
    assert marked_tables(filled) == {"one": "| 1 |", "two": "| 2 |"}
    assert prose(filled).split() == prose(PAGE).split() != []
    assert "old" not in filled and "| 3 |" not in filled
    assert fill(filled, {"one": "| 1 |", "two": "| 2 |"}) == filled
    with pytest.raises(InputError, match=r"the tables two; expected some of one\."):
        fill(PAGE, {"one": "| 1 |"})


def test_a_report_begins_a_page_and_then_leaves_its_text_alone(tmp_path, capsys):
    def tables(record):
        return {"figures": f"| {record['mse']} |"}

    write_report(tmp_path, "study", "How?", {"mse": 1}, tables, picture="study.png")
    path = tmp_path / "study.md"
    begun = path.read_text()
    assert begun.startswith("# How?\n\n![How?](study.png)\n\n<!-- table: figures -->\n\n| 1 |")
    path.write_text(begun.replace("# How?", "# How?\n\nLike this."))
    write_report(tmp_path, "study", "How?", {"mse": 2}, tables)
    assert "Like this." in path.read_text() and "| 2 |" in path.read_text()
    assert "| 1 |" not in path.read_text()
    assert json.loads((tmp_path / "study.json").read_text()) == {"mse": 2}
    assert "| 2 |" in capsys.readouterr().out
