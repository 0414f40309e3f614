"""The gold set: a fixed list of sample pairs, frozen by hash, and pairs of the user's own."""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triplets import ImageFolder, InputError
from triplets.atomic import atomic_write
from triplets.bundled import SAMPLES

GOLD_SET = Path(__file__).parent / "gold_set.json"


@dataclass(frozen=True)
class GoldSet:
    """Pairs of picture files to look at in every release."""

    pairs: Sequence[tuple[Path, Path]]
    """Content and style."""
    sha256: str
    """Of all files and their pairing: figures compare only where it is the same."""
    own: Path | None = None
    """Folder of the user's pictures, in content/ and style/."""

    @classmethod
    def load(cls, own: Path | None = None) -> "GoldSet":
        """The ten sample pairs, and each picture of own/content with the next of own/style.

        Raises:
            InputError: a sample picture is not the one that the list was made with, or `own` does
                not hold pictures in content/ and style/, or some that cannot be used.
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
        return cls(pairs, hashlib.sha256(json.dumps(hashes).encode()).hexdigest(), own)

    @property
    def ids(self) -> list[tuple[str, str]]:
        """Of the content and the style of each pair: paths below content/ and style/."""
        return [
            (self._id("content", content), self._id("style", style))
            for content, style in self.pairs
        ]

    def write(self, folder: Path) -> None:
        """Copy the pictures to folder/content and folder/style, and the list to folder/pairs.csv.

        "style-distil dump" takes these as --content, --style and --pairs.
        """
        columns = []
        for kind, files in zip(("content", "style"), zip(*self.pairs, strict=True), strict=True):
            names = self._copied_names(kind, files)
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for file, name in names.items():
                shutil.copyfile(file, folder / kind / name)
            columns.append([names[file] for file in files])
        lines = ["content,style", *map(",".join, zip(*columns, strict=True))]
        with atomic_write(folder / "pairs.csv") as file:
            file.write("\n".join(lines).encode() + b"\n")

    def _id(self, kind: str, file: Path) -> str:
        root = SAMPLES if _is_sample(kind, file) else self.own
        return file.relative_to(root / kind).as_posix()

    def _copied_names(self, kind: str, files: Sequence[Path]) -> dict[Path, str]:
        """Another name for each picture; samples keep theirs."""
        names = {}
        for file in files:
            # A picture of the user's may have the name of a sample, and commas end a cell.
            own = "" if _is_sample(kind, file) else "own_"
            names[file] = own + re.sub(r'[/,"]', "_", self._id(kind, file))
        # Some file systems do not tell capitals from small letters.
        count = Counter(name.casefold() for name in names.values())
        return {
            file: name if count[name.casefold()] == 1 else f"{_sha256(file)[:8]}_{name}"
            for file, name in names.items()
        }


def _is_sample(kind: str, file: Path) -> bool:
    return file.is_relative_to(SAMPLES / kind)


def _files(folder: Path) -> list[Path]:
    pictures = ImageFolder(folder)
    for name, reason in pictures.skipped:
        # Without it, the set would be another one than the user's.
        raise InputError(f"{folder / name} {reason}; expected the picture itself, or nothing.")
    return [folder / name for name in pictures.ids]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
