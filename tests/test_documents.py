"""What the documents tell users to do."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from triplets import TripletDataset, write_image

ROOT = Path(__file__).parents[1]
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "docs/**/", *(f"{package}/**/" for package in PACKAGES))
    for path in ROOT.glob(f"{folder}*.md")
)
WRITING = re.compile(r"--(?:out|workdir|data) ([A-Za-z][\w./-]*)|pathlib\.Path\(\"([\w./-]+)\"\)")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_data_lie_in_a_folder_with_the_name_of_a_package(document):
    """There they would be refused or mixed with the code, and elsewhere hide it from Python."""
    named = {a or b for a, b in WRITING.findall((ROOT / document).read_text())}
    assert not {Path(name).parts[0] for name in named} & PACKAGES


def test_the_readme_names_folders_to_check():
    assert "triplets" in PACKAGES
    assert len(WRITING.findall((ROOT / "README.md").read_text())) > 5


# The Python code of the documents. Each block runs alone, in a folder with these pictures, and with
# these variables where it leaves them to the reader. A block that cannot run offline is preceded by
# a comment that says what it needs: <!-- needs: gpu -->

PICTURES = ("photo.jpg", "painting.jpg", "a.jpg", "b.jpg")
HEIGHT, WIDTH = 40, 48


class Block(NamedTuple):
    """A block of Python code in a document."""

    document: str
    line: int
    """Where its first line of code is, from 1."""
    code: str
    needs: str | None
    """What keeps it from running here."""

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    pattern = r"(?:<!-- needs: (?P<needs>[^>]+) -->\n+)?^```python\n(?P<code>.*?)^```$"
    return [
        Block(document, text.count("\n", 0, match.start("code")) + 1, match["code"], match["needs"])
        for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
    ]


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def variables() -> dict:
    """What blocks use without saying where it comes from."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, HEIGHT, WIDTH, 3), np.uint8)
    contents, styles = pictures
    index = np.argwhere(np.ones((3, 3), bool)).astype(np.int32)
    return {
        "contents": contents,
        "styles": styles,
        "stylised": contents[index[:, 0]] // 2 + styles[index[:, 1]] // 2,
        "index": index,
        "content_names": ["1.jpg", "2.jpg", "3.jpg"],
        "style_names": ["4.jpg", "5.jpg", "6.jpg"],
        "photos": ["photo.jpg", contents[0]],
        "mask": np.ones((HEIGHT, WIDTH), bool),
    }


def put_triplets(dump: Path) -> None:
    Path("runs").mkdir()
    Path("runs/triplets").symlink_to(dump)


def put_student(dump: Path) -> None:
    """The workdir of a training run, of one step."""
    flags = "--steps 1 --warmup-steps 0 --batch-size 1 --crop-size 32 --validation-pairs 1"
    command = [sys.executable, ROOT / "scripts" / "train_flax.py", "mini", "--data", dump]
    command += ["--workdir", "runs/student", *flags.split(), "--validation-fraction", "0.2"]
    # Compiled without optimisation, which takes far longer than the step.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, check=True)


def put_tfds(dump: Path) -> None:
    from triplets.tfds_export import ExportConfig, export_tfds

    export_tfds(ExportConfig(dump, Path("tensorflow_datasets")))


# What a block reads, if it names it, and how to get it.
FOLDERS = {
    "runs/triplets": put_triplets,
    "runs/student": put_student,
    'data_dir="tensorflow_datasets"': put_tfds,
}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.needs is None], ids=str)
def test_python_code_runs(block, dump, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    for name in PICTURES:
        write_image(name, rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    writes = ".mkdir(" in block.code
    for name, put in FOLDERS.items():
        if name in block.code and not writes:
            put(dump)
    names = variables()
    lines = "\n" * (block.line - 1) + block.code  # so that errors name the document's line
    exec(compile(lines, ROOT / block.document, "exec"), names)
    check(names, dump if not writes else None)


def check(names: dict, dump: Path | None) -> None:
    """What a block has done is what it says."""
    if "image" in names:
        assert names["image"].size == (WIDTH, HEIGHT)
    elif "stylist" in names:
        assert names["stylised"].shape == (HEIGHT, WIDTH, 3)
        assert names["stylised"].dtype == np.float32
        assert 0 <= names["stylised"].min() < names["stylised"].max() <= 1
    if "triplet" in names:
        last = [*TripletDataset(dump)][-1]
        for given, expected in zip(names["triplet"], last[:3], strict=True):
            np.testing.assert_array_equal(given, expected)
    if dump is None:
        dataset = TripletDataset("runs/triplets")
        assert dataset.verify() == []
        for row, triplet in enumerate(dataset):
            np.testing.assert_array_equal(triplet.stylised, names["stylised"][row])
            assert triplet.style_id == names["style_names"][names["index"][row][1]]


def test_python_code_is_found_and_most_of_it_runs():
    documents = {"README.md", "docs/triplets.md", "docs/using.md"}
    assert documents <= {block.document for block in BLOCKS}
    text = (ROOT / "README.md").read_text()
    assert len(blocks("README.md")) == text.count("```python") >= 2
    assert sum(block.needs is None for block in BLOCKS) > len(BLOCKS) / 2


def test_what_a_block_needs_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("test_documents.ROOT", tmp_path)
    (tmp_path / "a.md").write_text(
        "text\n\n<!-- needs: gpu -->\n```python\n1\n2\n```\n```sh\nls\n```\n\n```python\n3\n```\n"
    )
    assert [block[1:] for block in blocks("a.md")] == [(5, "1\n2\n", "gpu"), (13, "3\n", None)]
