"""What an installation holds, and that the user's own folders do not get in its way."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from style_distil.command import PROGRAM

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this tree without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    [path] = folder.glob("*.whl")
    return path


def test_what_the_wheel_holds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        [entry_points] = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert f"{PROGRAM} = style_distil.command:main" in archive.read(entry_points).decode()
    top = {name.split("/")[0] for name in names}
    assert top == {"losses", "student_jax", "style_distil", "teacher_torch", "triplets"}
    tracked = subprocess.run(
        ["git", "ls-files", *sorted(top)], capture_output=True, text=True, cwd=ROOT
    )
    if tracked.returncode == 0:  # else this is no clone, and the wheel has what is in the folders
        there = {name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()}
        assert there <= set(names)
    assert {Path(name).suffix for name in names} >= {".safetensors", ".jpg", ".html", ".json"}


def test_an_installation_stylises_without_the_checkout(wheel, tmp_path):
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", target, wheel], check=True, capture_output=True)
    # The environment of the tests knows the checkout too; the installation has to do without it.
    (target / "sitecustomize.py").write_text(
        "import os, sys\n"
        "sys.path = [p for p in sys.path if not os.path.isfile(f'{p}/pyproject.toml')]\n"
    )

    def python(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
        )

    assert "No module named 'experiments'" in python("-c", "import experiments").stderr
    samples = target / "triplets" / "bundled" / "samples"
    photo = samples / "content" / "rocket.jpg"
    painting = samples / "style" / "van_gogh_harvest.jpg"
    pictures = ["--content", photo, "--style", painting, "--size", "64", "--out", "stylised"]
    done = python("-m", "style_distil", "stylize", *pictures)
    assert done.returncode == 0, done.stderr
    assert len(list((elsewhere / "stylised").glob("*.png"))) == 1
    study = python("-m", "style_distil", "study", "cost")
    assert study.returncode == 1 and "needs a clone of the repository" in study.stderr


def test_imports_beside_the_users_own_folders(tmp_path):
    """Folders named as our packages are, which a dataset may well be, do not hide them."""
    for name in ("losses", "triplets", "student_jax", "teacher_torch"):
        (tmp_path / name).mkdir()
    program = "from triplets import TripletDataset; import losses; losses.gram_matrix"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
