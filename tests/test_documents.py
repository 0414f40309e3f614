"""What the documents tell users to do."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/mini/README.md")]
)
WRITING = re.compile(r"--(?:out|workdir|data) ([A-Za-z][\w./-]*)|pathlib\.Path\(\"([\w./-]+)\"\)")


PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_data_lie_in_a_folder_with_the_name_of_a_package(document):
    """There they would be refused or mixed with the code, and elsewhere hide it from Python."""
    named = {a or b for a, b in WRITING.findall((ROOT / document).read_text())}
    assert not {Path(name).parts[0] for name in named} & PACKAGES


def test_the_readme_names_folders_to_check():
    assert "triplets" in PACKAGES
    assert len(WRITING.findall((ROOT / "README.md").read_text())) > 5
