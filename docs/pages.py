"""What the documentation site is made of; MkDocs calls these functions (`hooks` in mkdocs.yml)."""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "docs", "integrations", "student_jax", "teacher_torch", "triplets")
BESIDE = {".csv", ".jpg", ".png", ".sh", ".txt", ".yaml"}
"""What pages show or link to, and lies beside them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every document, under its path in the repository, so that links lead where they do there."""
    documents = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")}
    beside = {path for page in documents for path in page.parent.iterdir()}
    beside |= set((ROOT / "docs").rglob("*"))
    documents |= {path for path in beside if path.suffix in BESIDE}
    documents |= {*ROOT.glob("*.md"), ROOT / "LICENSE"}
    site = Files([file for file in files if file.src_dir != config.docs_dir])  # the theme's
    for path in sorted(documents):
        name = path.relative_to(ROOT).as_posix()
        site.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "docs").glob("*.ipynb")):
        name = path.relative_to(ROOT).with_suffix(".md").as_posix()
        site.append(File.generated(config, name, content=notebook_page(path)))
    return site


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, its code, and the pictures that it stores."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/jpeg"):
                parts.append(f"![What the code above shows](data:image/jpeg;base64,{picture})")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_) -> str:
    """Without pictures from elsewhere, which are badges; links to a notebook lead to its page."""
    markdown = re.sub(r"!\[[^\]]*\]\(https?:[^)]*\)\s*", "", markdown)
    return markdown.replace(".ipynb)", ".md)")
