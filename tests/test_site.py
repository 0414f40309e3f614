"""The documentation site, built as `make site` does, and the notebook that it shows."""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning would have ended the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_document_is_a_page(site):
    for path in ROOT.glob("docs/**/*.md"):
        name = path.relative_to(ROOT).with_suffix("")
        page = name.parent if path.name == "README.md" else name
        assert (site / page / "index.html").is_file(), name
    assert 'id="triplets-from-anywhere"' in (site / "index.html").read_text()


def test_what_pages_load_is_there(site):
    for page in ("index.html", "docs/gallery/index.html", "docs/api/losses/index.html"):
        text = (site / page).read_text()
        loaded = re.findall(r"""<(?:img|script|link)\b[^>]*?\b(?:src|href)="([^":]+)\"""", text)
        assert {Path(name).suffix for name in loaded} >= {".css", ".js", ".png"}
        for name in loaded:
            assert (site / page).parent.joinpath(name).exists(), (page, name)


def test_nothing_is_loaded_from_elsewhere(site):
    """Links may lead anywhere; pictures, scripts, styles and fonts come with the site."""
    loaded = re.compile(
        r"""<(?:img|script|iframe|source)\b[^>]*?\bsrc=["']?(?P<src>(?:https?:)?//[^"'\s>]+)"""
        r"""|<link\b[^>]*?\bhref=["']?(?P<href>(?:https?:)?//[^"'\s>]+)"""
        r"""|(?:url\(|@import\s)\s*["']?(?P<css>(?:https?:)?//[^"')\s]+)"""
    )
    assert loaded.search('<link rel="stylesheet" href="https://fonts.example/css">')
    assert loaded.search('<img alt="" src=//elsewhere.example/a.png>')
    pages = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    assert len(pages) > 30
    for path in pages:
        assert not loaded.search(path.read_text()), path


def test_the_reference_has_signatures_and_docstrings(site):
    text = re.sub("<[^>]+>", "", (site / "docs" / "api" / "students" / "index.html").read_text())
    assert "preserve_colour" in text and "change only the luminance" in text
    losses = (site / "docs" / "api" / "losses" / "index.html").read_text()
    assert 'id="losses.gram_matrix"' in losses


def test_the_page_of_the_notebook_shows_its_pictures(site):
    pictures = stored_pictures(nbformat.read(NOTEBOOK, as_version=4))
    page = (site / "docs" / "notebook" / "index.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == len(pictures) > 3


def stored_pictures(notebook) -> list[Image.Image]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output["data"]["image/jpeg"] for output in outputs if "data" in output]
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in data]


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    # Compiling without optimisation takes a third of the time, and the pictures are small.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = stored_pictures(notebook)
    for cell in notebook.cells:
        cell.outputs = []
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()
    assert notebook.cells[-2]["execution_count"] is not None
    made = stored_pictures(notebook)
    assert [picture.size for picture in made] == [picture.size for picture in stored]
