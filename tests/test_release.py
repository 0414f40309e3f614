"""What goes into a release; `make release` itself is run by hand, since it needs the network."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def release():
    path = ROOT / "scripts" / "release.py"
    spec = importlib.util.spec_from_file_location("release", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notes_are_the_section_of_the_version(release):
    text = "# Changelog\n\n## [0.2.0] - 2026-01-02\n\n- New.\n\n## [0.1.0]\n\n- Old.\n"
    assert release.notes(text, "0.2.0") == "- New.\n"
    with pytest.raises(SystemExit, match=r"begins with '\[0.2.0\] - 2026-01-02'.*names 0.3.0"):
        release.notes(text, "0.3.0")


def test_the_changelog_and_the_lock_are_those_of_this_version(release):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert release.notes((ROOT / "CHANGELOG.md").read_text(), project["version"])


def test_the_locked_versions_are_the_tested_ones():
    """Every line of the lock names a version of the constraints, and has hashes."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {line.partition("==")[0].lower().replace("_", "-"): line for line in lines if line}
    locked = [x for x in (ROOT / "requirements.lock").read_text().split("\n") if x[:1].isalnum()]
    assert len(locked) > 50
    for line in locked:
        name, _, version = line.removesuffix(" \\").partition("==")
        known = tested[name.lower()].partition("==")[2]
        assert version.partition("+")[0] == known, line
        assert line.endswith("\\")  # hashes follow
