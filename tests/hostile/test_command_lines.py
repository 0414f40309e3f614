"""Command lines that make no sense, or ask for more than there is."""

import contextlib
import itertools
import os

import numpy as np
import pytest
from attacks import Refused
from processes import Forks

from triplets import write_image

pytestmark = pytest.mark.slow

LIMIT_S = 300
"""For one that imports, on a busy machine."""

DIGITS = "9" * 5000

LINES = """
dump --pairs random:DIGITS
dump --pairs tiles:DIGITS
dump --pairs random:-1
dump --pairs random:1000000000000000000
dump --pairs PICTURES
dump --pairs TEXT
dump --size 100000000
dump --size DIGITS
dump --size 0
dump --memory-budget inf
dump --memory-budget nan
dump --memory-budget -1
dump --memory-budget 1e-300
dump --tile 0
dump --tile 9999999999999999999999
dump --seed -1
dump --seed DIGITS
dump --steps 0
dump --style-crop 1000000000
dump --crops-per-style 1000000000
dump --rank 5 --world-size 2
dump --device tpu
dump --device cuda:99
dump --model TEXT
dump --model PICTURES
dump --model /etc/passwd
dump --content FIFO
dump --content EMPTY
dump --content NOWHERE
dump --out TEXT
dump --out TEXT/below
dump --out /proc/nowhere
dump --out s3://
dump --executor slurm --tasks 0
dump --tasks 9999999999999999999999 --executor local
stylize --max-memory inf
stylize --max-memory nan
stylize --max-memory 1e-300
stylize --size 0
stylize --size 100000000 --overwrite
stylize --style-scale DIGITS
stylize --stroke-size nan
stylize --stroke-size 1e308
stylize --strength nan
stylize --smoothing inf
stylize --style PICTURES/0.png:nan PICTURES/1.png:1
stylize --style PICTURES/0.png:1e308 PICTURES/1.png:1e308
stylize --style FIFO
stylize --content FIFO
stylize --content TEXT
stylize --content DIGITS
stylize --content /dev/zero
stylize --content PICTURES/[
stylize --mask /dev/null
stylize --out RESULTS/{contents}.png
stylize --out RESULTS.xyz
stylize --out TEXT/below
stylize --checkpoint TEXT
stylize --checkpoint PICTURES
stylize --checkpoint /dev/zero
stylize --checkpoint hf://
stylize --checkpoint ../../..
train mini --steps 0
train mini --batch-size 0
train mini --batch-size 1000000000000
train mini --crop-size 1000000000
train mini --crop-size -1
train mini --learning-rate nan
train mini --validation-fraction nan
train mini --validation-fraction 2
train mini --ema-decay inf
train mini --accumulate 0
train mini --fsdp 0
train mini --fsdp 1000000
train mini --model.hidden-dim 1000000000
train mini --model.num-heads 0
train mini --model.content-widths
train mini --model.dropout nan
train mini --data NOWHERE
train mini --data PICTURES
train mini --data tfds:
train mini --data http://127.0.0.1:9/x
train mini --workdir TEXT
train mini --seed DIGITS
train mini --cache-gib inf
train mini --num-processes 3 --process-id 7 --coordinator nowhere
train nonsense
triplets verify NOWHERE
triplets verify PICTURES
triplets verify TEXT
triplets verify FIFO
triplets verify /
triplets verify ftp://nowhere/x
triplets preview PICTURES
triplets preview DUMP --triplets 1000000000 --out RESULTS/sheet.png
triplets preview DUMP --cell 1000000000 --out RESULTS/sheet.png
triplets preview DUMP --sample DIGITS --out RESULTS/sheet.png
triplets preview DUMP --out TEXT/sheet.png
triplets split --pictures NOWHERE --out RESULTS/split
triplets split --pictures FIFO --out RESULTS/split
triplets convert NOWHERE --out RESULTS/copy
triplets convert DUMP --out DUMP
triplets convert DUMP --out DUMP/within
triplets import --csv FIFO --out RESULTS/imported
triplets import --csv TEXT --out RESULTS/imported
triplets import --csv PICTURES --out RESULTS/imported --size DIGITS
evaluate --checkpoint TEXT --out RESULTS
evaluate --checkpoint mini --data NOWHERE --out RESULTS
export --out TEXT
export --out RESULTS --checkpoint NOWHERE
weights import --kind sttr --source TEXT --out RESULTS
weights import --kind nonsense --source TEXT --out RESULTS
demo --port 70000
demo --port DIGITS
demo --host 256.1.1.1
demo --max-size 0 --python
nonsense
--nonsense
"""


@pytest.fixture
def places(tmp_path):
    """What the words in capitals stand for."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        write_image(tmp_path / "pictures" / f"{i}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    (tmp_path / "text").write_text("text")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    names = ("pictures", "text", "empty", "fifo", "nowhere", "results")
    return {name.upper(): str(tmp_path / name) for name in names} | {"DIGITS": DIGITS}


NEEDED = {
    "dump": {
        "--content": "PICTURES",
        "--style": "PICTURES",
        "--out": "RESULTS/dump",
        "--size": "64",
        "--steps": "2",
    },
    "stylize": {
        "--content": "PICTURES/0.png",
        "--style": "PICTURES/1.png",
        "--out": "RESULTS/stylised/",
        "--checkpoint": "mini",
    },
    "train": {"--data": "DUMP", "--workdir": "RESULTS/run", "--steps": "1"},
}
"""What a line is completed by, unless it says so itself."""


MODULES = {
    "dump": "teacher_torch.dump",
    "stylize": "student_jax.inference.command",
    "train": "student_jax.training.train",
}
"""What takes long to import."""


def test_command_lines(attack, places, dump, tmp_path):
    lines = itertools.cycle(LINES.strip().splitlines())
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with contextlib.ExitStack() as stack:
        parents = {}

        def run(words):
            module = MODULES.get(words[0], "style_distil.command")
            if module not in parents:
                forks = Forks(attack, module, tmp_path / "log.txt", env=environment, cwd=tmp_path)
                parents[module] = stack.enter_context(forks)
            return parents[module].run(words)

        def attempt(rng):
            words = next(lines).split()
            for flag, value in NEEDED.get(words[0], {}).items():
                if flag not in words:
                    words += [flag, value]
            for name, value in (places | {"DUMP": str(dump)}).items():
                words = [word.replace(name, value) for word in words]
            status, said = run(words)
            assert "Traceback" not in said, f"{words}: {said[-2000:]}"
            # The parser and settings that make no sense end with 2, and what cannot be used with 1.
            if status == 2 or (status == 1 and said.splitlines()[-1].startswith("error: ")):
                raise Refused
            assert status == 0, f"{words}: exit status {status}, {said[-2000:]}"

        attack(len(LINES.strip().splitlines()), attempt, LIMIT_S)
