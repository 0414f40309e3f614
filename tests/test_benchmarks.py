"""Each benchmark runs, at the smallest sizes, and prints its tables."""

import os
import re
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from triplets import ImageFolder, TripletWriter, load_images
from triplets.bundled import SAMPLES

FOLDER = Path(__file__).parents[1] / "benchmarks"
CONTENT, STYLE = (
    str(SAMPLES / name) for name in ("content/coffee.jpg", "style/van_gogh_harvest.jpg")
)

# Flags of each, and what its output has to match. OUT stands for an empty folder, DATA for a
# dataset of the samples, CLIP for a video.
RUNS = {
    "attention_distillation": (
        "--size 64 --steps 2 --tiles 1 2 --baseline-pairs 1 --repeats 1",
        r"\| tiles of 2 x 2 \| \d+\.\d\d \| \d+\.\d{3} \| 1\.00 \|",
    ),
    "buckets": (
        "--size 64 --crop-size 32 --batches 2 --steps 1 --repeats 1",
        r"(?s)\| WebP, S3, warm cache \| \d+ \| \d+\.\d\d \|.*cold cache \| \d+ \|",
    ),
    "codecs": (
        "--sizes 32 --pictures 2 --repeats 1",
        r"(?s)\| raw \| 3 \| 100% \| .*\| WebP, method 0, effort 0 \| \d+ \| \d+% \|",
    ),
    "contact_sheets": ("--data DATA --out OUT", r""),
    "executors": (
        "--processes 2 --pairs 4 8 --size 32 --steps 2",
        r"\| local \| 2 \| -?\d+\.\d\d \| -?\d+\.\d\d \|",
    ),
    "flicker": (
        "--contents coffee --styles van_gogh_harvest --frames 2 --side 64 --smoothing 0.5",
        r"(?m)^\| still \| \d+\.\d\d \| \d+\.\d\d \| \d+\.\d\d \|$",
    ),
    "flicker, filmed": (
        "--videos CLIP --styles van_gogh_harvest --frames 3 --side 64 --smoothing 0.5",
        r"(?m)^\| clip \| \d+% \| \d+\.\d\d \| \d+\.\d\d \| \d+\.\d\d \|$",
    ),
    "inference": (
        "--sizes 64 --students onnx mini --repeats 1 --folder 2 --folder-sizes 64",
        r"(?s)\| 64 \| onnx \| \d+\.\d\d \(.*\| 64 \| jax \| \d+\.\d \| \d+\.\d \|",
    ),
    "inst_training": (
        "--size 64 --styles 2 --steps 1 --repeats 1",
        r"\| 2 styles together \| \d+\.\d\d \| \d+\.\d{3} \| 1\.00 \|",
    ),
    "large_pictures": (
        "--sizes 64 --max-memory 1",
        r"\| 64 \| 1 \| .* \| \d+ \| -?\d+ \| \d+\.\d \(\d+\.\d\) \|",
    ),
    "padding": ("--height 80 --width 80", r"\| coffee(?: \| \d+\.\d\d){5} \|"),
    "page": (
        "--size 64 --threads 1 --repeats 1",
        r"\| 64 \| 1 \| \d+\.\d\d \| \d+\.\d\d \| \d+\.\d\d \|",
    ),
    "painting": (
        f"--content {SAMPLES}/content --style {SAMPLES}/style --checkpoints mini --out OUT "
        "--contents 1 --styles 2 --size 64 --measured 64 --stroke-sizes 1 2",
        r"(?m)^\| mini \|(?: \d\.\d{3} \|){7}(?: \d\.\d\d \|){3}",
    ),
    "preemption": (
        "--shards 40 --workers 2 --tasks 4 40 --runs 1",
        r"(?s)\| 40 \| 1 \| \d+\.\d\d .*shortest with \d+ tasks",
    ),
    "start": (
        "--folders 64 --pictures 1 --repeats 1 --engines onnx",
        r"\| 1 of 512 px \| modulated, onnx \| \d+\.\d\d \| \d+\.\d\d \|",
    ),
    "student": (
        "--sizes 32 --repeats 1",
        r"(?s)PyTorch eager \| .*\| 1\.00 \| 0\.0e\+00 \|.*\| ours \| \d+\.\d\d \|",
    ),
    "student, training": (
        "--train --sizes 32 --batches 1 --repeats 1",
        r"\| ours, whole attention \| \d+\.\d\d \|",
    ),
    "student, memory": ("--memory --sizes 64", r"\| 64 \| \d\.\d GiB \| \d\.\d GiB \|"),
    "teacher": (
        "--size 64 --steps 2 --grids 1 2 --baseline-pairs 1 --repeats 1",
        r"\| one by one, all decoded \| \d+\.\d \| \d+\.\d{3} \|",
    ),
    "teacher_costs": (
        "",
        r"(?s)\| `styleid` \| Stable Diffusion 1\.5 \| 50 rows, 40\.\d+ TFLOP .*"
        r"\| `style_diffusion --preset paper` \| ADM, .* \| 6 rows, 13\.\d+ TFLOP \|",
    ),
    "teacher_parameters": (
        f"--contents {CONTENT} --styles {STYLE} --out OUT --steps 2 --size 64 --cell 16",
        r"",
    ),
    "throughput": (
        "--preset mini --size 64 --dtype float32 --batches 1 --kinds forward --peak-tflops 1 "
        "--seconds 0.01",
        r"(?s)\| 1 \| \d+ \| \d+\.\d\d \| \d+% \|.*\| tail \| \d+ \|.*\| \d+\.\d% \|",
    ),
    "train": (
        "--sizes 32 --repeats 1 --objectives L1 --pipeline-batches 2",
        r"\| L1 \| \d+ \| \d+\.\d\d \|",
    ),
}
WRITTEN = {
    "painting": ["mini, strokes x 2.png", "mini.png", "strokes.jpg", "table.md"],
    "contact_sheets": ["comparison.jpg", "mini_student.jpg", "mini_teacher.jpg"],
    "teacher_parameters": ["gamma_temperature_coffee_van_gogh_harvest.jpg", "parameters.jpg"],
}
PROGRAMS = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All pairs of the samples; "stylised" is a blend of the two."""
    contents, styles = (
        load_images(ImageFolder(SAMPLES / kind), 32)[0] for kind in ("content", "style")
    )
    pairs = np.indices((len(contents), len(styles))).reshape(2, -1).T
    root = tmp_path_factory.mktemp("samples") / "triplets"
    writer = TripletWriter(root, contents=contents, styles=styles, pairs=pairs, shard_size=64)
    blends = contents.images[pairs[:, 0]] // 2 + styles.images[pairs[:, 1]] // 2
    writer.write_shard(0, blends)
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i"]
    subprocess.run([*command, "testsrc2=size=96x64", "-frames:v", "3", path], check=True)
    return path


def test_every_benchmark_is_run():
    assert {name.partition(",")[0] for name in RUNS} == PROGRAMS


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs(name, data, clip, tmp_path):
    if name == "flicker, filmed":
        pytest.importorskip(
            "cv2",
            reason="OpenCV takes 60 MB, too much for the set-up, and only this row needs it: "
            "pip install opencv-python-headless",
        )
    flags, printed = RUNS[name]
    words = {"OUT": str(tmp_path), "DATA": str(data), "CLIP": str(clip)}
    program = FOLDER / f"{name.partition(',')[0]}.py"
    command = [sys.executable, program, *(words.get(flag, flag) for flag in flags.split())]
    # As a user's, without what tests/conftest.py makes of JAX.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUM")}
    # Compiled without optimisation, which takes far longer than what is timed.
    xla = f"{environment.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    done = subprocess.run(
        command, env=environment | {"XLA_FLAGS": xla}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(printed, done.stdout), done.stdout
    assert sorted(os.listdir(tmp_path)) == WRITTEN.get(name, [])
