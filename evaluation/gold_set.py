"""The gold set: a fixed list of sample pairs, frozen by hash, and pairs of the user's own."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assets import SAMPLES
from triplets import ImageFolder, InputError
from triplets.atomic import atomic_write

GOLD_SET = Path(__file__).parent / "gold_set.json"


@dataclass(frozen=True)
class GoldSet:
    """Pairs of picture files to look at in every release."""

    pairs: Sequence[tuple[Path, Path]]
    """Content and style."""
    sha256: str
    """Of all files and their pairing: figures compare only where it is the same."""

    @classmethod
    def load(cls, own: Path | None = None) -> "GoldSet":
        """The ten sample pairs, and each picture of own/content with the next of own/style.

        Raises:
            InputError: a sample picture is not the one that the list was made with, or `own` does
                not hold pictures in content/ and style/.
        """
        frozen = json.loads(GOLD_SET.read_text())
        for name, sha256 in frozen["sha256"].items():
            if _sha256(SAMPLES / name) != sha256:
                raise InputError(
                    f"{SAMPLES / name} is not the picture that the gold set was frozen with; "
                    "restore it, since figures would not compare."
                )
        pairs = [(SAMPLES / content, SAMPLES / style) for content, style in frozen["pairs"]]
        if own is not None:
            contents, styles = (_files(own / kind) for kind in ("content", "style"))
            count = max(len(contents), len(styles))
            pairs += [(contents[i % len(contents)], styles[i % len(styles)]) for i in range(count)]
        hashes = [[_sha256(file) for file in pair] for pair in pairs]
        return cls(pairs, hashlib.sha256(json.dumps(hashes).encode()).hexdigest())

    def write(self, folder: Path) -> None:
        """Copy the pictures to folder/content and folder/style, and the list to folder/pairs.csv.

        scripts/dump_teacher.py takes these as --content, --style and --pairs.
        """
        lines = ["content,style"]
        for pair in self.pairs:
            names = []
            for kind, file in zip(("content", "style"), pair, strict=True):
                names.append(_copied_name(file))
                (folder / kind).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / kind / names[-1])
            lines.append(",".join(names))
        with atomic_write(folder / "pairs.csv") as file:
            file.write("\n".join(lines).encode() + b"\n")


def _copied_name(file: Path) -> str:
    # A picture of the user's may have the name of a sample, and commas end a cell.
    own = "" if file.is_relative_to(SAMPLES) else "own_"
    return own + file.name.replace(",", "_").replace('"', "_")


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in ImageFolder(folder).ids]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
