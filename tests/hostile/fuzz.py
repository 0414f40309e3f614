#!/usr/bin/env python
"""Coverage-guided fuzzing of what reads files: manifests, arrays, weights and pictures.

    pip install atheris
    OMP_NUM_THREADS=1 tests/hostile/fuzz.py runs/fuzz/picture -max_total_time=3600

Atheris (libFuzzer) changes files so that they reach other lines of our code and of Pillow's Python
code. An entrance that does not refuse a file by an `InputError` ends the search; the file is then
in the working directory, and belongs into `corpus/ENTRANCE`, whose files `test_corpus.py` tries
each time. Further arguments are libFuzzer's: `-merge=1 tests/hostile/corpus/picture
runs/fuzz/picture` adds to the corpus what reaches other lines.
"""

import contextlib
import io
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mutations import damaged_json

if __name__ == "__main__":
    import atheris

    watched = atheris.instrument_imports(include=["triplets", "student_jax", "PIL"])
else:
    watched = contextlib.nullcontext()
with watched:
    from student_jax.weights.published import read_weights
    from triplets import ImageSet, InputError, TripletDataset, TripletWriter
    from triplets.format import load_array
    from triplets.images import decode_image

CORPUS = Path(__file__).parent / "corpus"


def read_manifest(path: Path) -> None:
    """A dataset by its manifest.json."""
    for triplet in TripletDataset(path.parent):
        triplet.stylised.tobytes()


def read_npy(path: Path) -> None:
    """An array of a shard, one picture of it too."""
    array = load_array(path, (None, None, None, 3), "uint8")
    if len(array):
        array[-1].tobytes()


def read_safetensors(path: Path) -> None:
    """Published weights."""
    for array in read_weights(path).values():
        array.tobytes()


def read_picture(path: Path) -> None:
    """A picture of any format, as a folder's or an upload."""
    decode_image(io.BytesIO(path.read_bytes()), name="x", at_least=16)


ENTRANCES: dict[str, Callable[[Path], None]] = {
    "manifest": read_manifest,
    "npy": read_npy,
    "safetensors": read_safetensors,
    "picture": read_picture,
}


def attempt(entrance: str, encoded: bytes, path: Path) -> None:
    """Read a file through an entrance; anything but success and an `InputError` is raised."""
    path.write_bytes(encoded)
    with warnings.catch_warnings(action="ignore"):
        try:
            ENTRANCES[entrance](path)
        except InputError as error:
            assert "\n" not in str(error), str(error)


def place(entrance: str, folder: Path) -> Path:
    """Where an entrance's files are to be written; a manifest's dataset is there already."""
    if entrance != "manifest":
        return folder / "x.safetensors"
    images = np.zeros((5, 8, 8, 3), np.uint8)
    writer = TripletWriter(
        folder / "triplets",
        contents=ImageSet(images[:2], ["a.jpg", "b.jpg"], [(8, 8)] * 2),
        styles=ImageSet(images[2:], ["c.jpg", "d.jpg", "e.jpg"], [(8, 8)] * 3),
        pairs=np.indices((2, 3)).reshape(2, -1).T,
        settings={"seed": 7},
        shard_size=4,
    )
    for shard in writer.missing_shards():
        writer.write_shard(shard, images[: len(writer.shard_pairs(shard))])
    return folder / "triplets/manifest.json"


def mutated(encoded: bytes, largest: int, seed: int) -> bytes:
    """Another file: JSON, alone or before arrays, with other values, or other bytes anywhere."""
    rng = random.Random(seed)
    header, rest = encoded, b""
    if int.from_bytes(encoded[:8], "little") <= len(encoded) - 8:  # of safetensors
        end = 8 + int.from_bytes(encoded[:8], "little")
        header, rest = encoded[8:end], encoded[end:]
    try:
        other = damaged_json(header, rng)
    except ValueError:
        return atheris.Mutate(encoded, largest)
    length = len(other).to_bytes(8, "little") if len(header) < len(encoded) else b""
    changed = length + other + rest
    return (
        changed
        if rng.random() < 0.5 and len(changed) <= largest
        else atheris.Mutate(encoded, largest)
    )


def main() -> None:
    """Fuzz the entrance that the first folder is named after."""
    options = sys.argv[1:]
    folders = [Path(option) for option in options if not option.startswith("-")]
    entrance = folders[0].name
    folders[0].mkdir(parents=True, exist_ok=True)
    # A file in memory: each input is written.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = place(entrance, Path(folder))
        limits = ["-timeout=30", "-rss_limit_mb=2048", "-max_len=65536"]
        merging = any(option.startswith("-merge") for option in options)
        seeds = [] if merging else [str(CORPUS / entrance)]
        atheris.Setup(
            [sys.argv[0], *limits, *options, *seeds],
            lambda encoded: attempt(entrance, encoded, path),
            **({"custom_mutator": mutated} if entrance in ("manifest", "safetensors") else {}),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
