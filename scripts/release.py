"""Build a release that a stranger can trust, into dist/; `make release` runs this.

1. sdist and wheel of the last commit, twice from fresh exports: both must be the same bytes.
2. twine and check-wheel-contents must have nothing to say.
3. An empty environment gets the tested versions by their hashes and the wheel; `make quickstart`
   runs there, out of the wheel.
4. Beside the archives: the software bill of materials of that environment (CycloneDX), the notes of
   this version from the CHANGELOG, and SHA256SUMS.

Needs the network for step 3, and the extra [release]. Publishes nothing.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"


def run(*command: object, **options: object) -> str:
    """A program's output; ends this one when it fails."""
    print("$", *command, flush=True)
    options = {"cwd": ROOT, "check": True, "text": True, "stdout": subprocess.PIPE} | options
    try:
        return subprocess.run([*map(str, command)], **options).stdout or ""
    except subprocess.CalledProcessError as error:
        print(error.stdout or "", end="")
        raise SystemExit(f"{command[0]} failed with status {error.returncode}.") from error


def notes(changelog: str, version: str) -> str:
    """The section of a version, which must be the first one.

    Raises:
        SystemExit: the first section is another one.
    """
    first, *_ = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    heading, _, text = first.partition("\n")
    if heading.split("]")[0] != f"[{version}":
        raise SystemExit(
            f"The CHANGELOG begins with {heading!r}, and pyproject.toml names {version}; expected "
            f'"[{version}] - DATE" there.'
        )
    return text.strip() + "\n"


def export(folder: Path) -> None:
    """The last commit, without anything that git does not hold."""
    archive = folder.with_suffix(".tar")
    run("git", "archive", "--output", archive, "HEAD")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    archive.unlink()


def build(scratch: Path) -> list[Path]:
    """sdist and wheel in dist/, equal in two builds."""
    epoch = run("git", "log", "-1", "--format=%ct").strip()
    digests = []
    for number in (1, 2):
        source, out = scratch / f"source{number}", scratch / f"dist{number}"
        export(source)
        run(
            *(sys.executable, "-m", "build", "--outdir", out, source),
            env=os.environ | {"SOURCE_DATE_EPOCH": epoch},
        )
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()})
    if digests[0] != digests[1]:
        raise SystemExit(f"Two builds differ: {digests[0]} and {digests[1]}.")
    shutil.rmtree(DIST, ignore_errors=True)
    shutil.copytree(out, DIST)
    return sorted(DIST.iterdir())


def try_wheel(wheel: Path, scratch: Path) -> Path:
    """The quickstart in an empty environment; returns the environment."""
    environment = scratch / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet")
    run(*pip, "--require-hashes", "--requirement", ROOT / "requirements.lock")
    run(*pip, "--no-deps", wheel)
    away = scratch / "away"
    away.mkdir()
    samples = run(
        *(python, "-c", "import triplets.bundled as b; print(b.__path__[0])"), cwd=away
    ).strip()
    if Path(samples).is_relative_to(ROOT):
        raise SystemExit(f"The environment imports the clone, {samples}, and not the wheel.")
    (environment / "installed").touch()
    run(
        *("make", "--file", ROOT / "Makefile", "quickstart", f"VENV={environment}"),
        *("--old-file", environment / "installed", f"SAMPLES={samples}/samples"),
        cwd=away,
    )
    pictures = list((away / "outputs" / "quickstart" / "stylised").iterdir())
    if not pictures:
        raise SystemExit("The quickstart left no pictures.")
    return environment


def main() -> None:
    """All steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-quickstart", action="store_true", help="leave out step 3")
    skip = parser.parse_args().skip_quickstart
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = notes((ROOT / "CHANGELOG.md").read_text(), version)
    if run("git", "status", "--porcelain"):
        raise SystemExit("There are changes that are not committed; a release is of a commit.")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        archives = build(scratch)
        run(sys.executable, "-m", "twine", "check", "--strict", *archives)
        [wheel] = (path for path in archives if path.suffix == ".whl")
        run("check-wheel-contents", wheel)
        if not skip:
            environment = try_wheel(wheel, scratch)
            bill = DIST / f"style-distil-{version}.cdx.json"
            run(
                *("cyclonedx-py", "environment", environment / "bin" / "python"),
                *("--output-reproducible", "--output-file", bill),
            )
    (DIST / "NOTES.md").write_text(text)
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(DIST.iterdir())
    ]
    (DIST / "SHA256SUMS").write_text("".join(sums))
    print(f"Version {version} is in {DIST}:", *(line.split()[1] for line in sums), sep="\n  ")


if __name__ == "__main__":
    main()
