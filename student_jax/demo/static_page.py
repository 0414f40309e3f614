"""The page of `style-distil demo` as a folder of files, which any static host can serve."""

import hashlib
import json
import shutil
from pathlib import Path

import onnx

from student_jax.demo.samples import KINDS, PAGE, samples
from student_jax.export.onnx_files import ENCODE_STYLE, STYLIZE, onnx_files
from student_jax.student import Student
from triplets import InputError
from triplets.atomic import atomic_write, make_folder, write_json
from triplets.bundled import SAMPLES

SIZES = {"vectors": 2048, "tokens": 768}
"""Largest shorter side (px) that the page offers, by what a student keeps of a style: with tokens
it attends, and the memory grows with the square of the pixels."""


def write_page(model: Student, folder: Path) -> None:
    """Write the page with this student, its samples and ONNX Runtime.

    Raises:
        InputError: ONNX Runtime for browsers is missing, or a file is in the way.
    """
    runtime = PAGE / "runtime" / "runtime.json"
    if not runtime.is_file():
        raise InputError(
            "the page needs ONNX Runtime for browsers, which npm brings: run `make page` in a "
            "clone of the repository, or let Python compute (style-distil demo --python)."
        )
    make_folder(folder)
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    for kind in KINDS:
        shutil.copytree(SAMPLES / kind, folder / "samples" / kind, dirs_exist_ok=True)
    make_folder(folder / "model")
    files = onnx_files(model, "float16", batch=1)
    described = {}
    for name in (ENCODE_STYLE, STYLIZE):
        with atomic_write(folder / "model" / name) as file:
            file.write(files[name])
        # A browser keeps a file by its address: other weights need another one.
        version = hashlib.sha256(files[name]).hexdigest()[:16]
        described[Path(name).stem] = {"url": f"model/{name}?v={version}", "bytes": len(files[name])}
    npm = json.loads(runtime.read_text())
    said = {p.key: p.value for p in onnx.load_from_string(files[STYLIZE]).metadata_props}
    mixes = json.loads(said["mixes"])
    description = {
        "engine": "browser",
        "student": said["student"],
        **{name: int(said[name]) for name in ("content_stride", "style_stride", "style_scale")},
        "memory": json.loads(said["memory"]),
        "mixes": mixes,
        "max_size": SIZES["vectors" if mixes else "tokens"],
        "samples": samples(),
        "files": described,
        "runtime": npm["version"],
        "bytes": npm["bytes"] + sum(file["bytes"] for file in described.values()),
    }
    write_json(folder / "model.json", description)
