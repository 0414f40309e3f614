"""Dumps by an engine to a bucket, while workers and drivers are killed and the server fails.

Whatever happens, the dataset ends up byte for byte as an unbroken run leaves it in a folder.
"""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
from PIL import Image
from unreliable import BUCKET, KEY, s3_server, unreliable

from triplets import Cache, TripletDataset

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", 30))
MINUTES = 60
"""After which a test is taken to hang."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """8 contents and 6 styles: 12 tiles of 2 x 2."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind, count in (("content", 8), ("style", 6)):
        (root / kind).mkdir()
        for i in range(count):
            small = rng.integers(0, 256, (5, 7, 3), np.uint8)
            Image.fromarray(small).resize((70, 50)).save(root / kind / f"{kind}{i}.png")
    return root


class Dumps:
    """Starts the command with what all dumps here have in common."""

    def __init__(self, pictures: Path, model: Path, folder: Path, url: str):
        self._words = [sys.executable, "-m", "style_distil", "dump", "--model", str(model)]
        for kind in ("content", "style"):
            self._words += [f"--{kind}", str(pictures / kind)]
        self._words += ["--steps", "4", "--tile", "2", "--format", "2"]
        self.folder, self.url = folder, url
        self.environment = (
            os.environ
            | KEY
            | {
                "AWS_ENDPOINT_URL": url,
                "AWS_DEFAULT_REGION": "us-east-1",
                "OMP_NUM_THREADS": "1",
                "XDG_CACHE_HOME": str(folder / "cache"),
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        )

    def start(self, out: str, *flags: str, **options) -> subprocess.Popen:
        with open(self.folder / "log.txt", "a") as log:
            return subprocess.Popen(
                [*self._words, "--out", out, *flags],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )

    def wait(self, process: subprocess.Popen) -> int:
        return process.wait(60 * MINUTES)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()[-3000:]

    def check(self, out: str, whole: dict[str, bytes]) -> None:
        """The dataset verifies and has the bytes of an unbroken run."""
        fs = fsspec.filesystem(
            "s3", key="test", secret="test", endpoint_url=self.url, skip_instance_cache=True
        )
        root = out.removeprefix("s3://")
        found = {path[len(root) + 1 :]: fs.cat_file(path) for path in fs.find(root)}
        found = {name: data for name, data in found.items() if not name.startswith("logs/")}
        assert sorted(found) == sorted(whole)
        assert [name for name in whole if found[name] != whole[name]] == []


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def whole(unbroken):
    return unbroken[0]


@pytest.fixture
def dumps(pictures, model_folder, tmp_path, server):
    return Dumps(pictures, model_folder, tmp_path, server)


@pytest.fixture(scope="module")
def unbroken(pictures, model_folder, tmp_path_factory, server):
    """The bytes that every dump here ends up with, and the seconds of an unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    dumps = Dumps(pictures, model_folder, folder, server)
    root = folder / "data"
    start = time.monotonic()
    assert dumps.wait(dumps.start(str(root))) == 0, dumps.log()
    seconds = time.monotonic() - start
    assert TripletDataset(root).verify() == []
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}, seconds


def kill_one(driver: subprocess.Popen, rng: random.Random) -> str:
    """Kill -9 the driver or one of its workers; which of them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        workers = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if "spawn_main" in " ".join(process.cmdline())
        ]
        if workers and rng.random() < 0.75:
            rng.choice(workers).kill()
            return "worker"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    return "driver"


def dump_among_kills(
    dumps: Dumps, flags: list[str], rng: random.Random, kills: int, seconds: float
) -> list[str]:
    """Start dumps again and again until so many processes were killed, each at a random moment
    within the time of an unbroken run; where they all are."""
    killed, outs = [], [f"s3://{BUCKET}/{rng.getrandbits(32)}"]
    deadline = time.monotonic() + 60 * MINUTES
    driver = dumps.start(outs[-1], *flags)
    while len(killed) < kills:
        assert time.monotonic() < deadline, dumps.log()
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert driver.wait(rng.uniform(0, seconds)) == 0, dumps.log()
            outs.append(f"s3://{BUCKET}/{rng.getrandbits(32)}")
            driver = dumps.start(outs[-1], *flags)
            continue
        killed.append(kill_one(driver, rng))
        if killed[-1] == "driver":
            driver = dumps.start(outs[-1], *flags)
    assert dumps.wait(driver) == 0, dumps.log()
    print(f"killed: {killed.count('worker')} workers and {killed.count('driver')} drivers")
    return outs


def test_kills_among_failures_of_the_server(dumps, unbroken, server):
    rng = random.Random(0)
    with unreliable(server, 0.02) as (url, counts):
        dumps.environment["AWS_ENDPOINT_URL"] = url
        flags = ["--executor", "local", "--tasks", "8", "--workers", "2"]
        outs = dump_among_kills(dumps, flags, rng, KILLS, unbroken[1])
    assert counts["cut"] and counts["refused"], counts
    print(counts)
    for out in outs:
        dumps.check(out, unbroken[0])


def test_two_drivers_at_once(dumps, whole):
    out = f"s3://{BUCKET}/twice"
    flags = ["--executor", "local", "--tasks", "6", "--workers", "1"]
    drivers = [dumps.start(out, *flags) for _ in range(2)]
    assert [dumps.wait(driver) for driver in drivers] == [0, 0], dumps.log()
    dumps.check(out, whole)


def test_a_full_disk(dumps, whole):
    """The kernel lets no file grow beyond what the pictures of a shard take."""
    out = f"s3://{BUCKET}/full"
    flags = ["--executor", "local", "--tasks", "6", "--workers", "1"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    assert dumps.wait(dumps.start(out, *flags, preexec_fn=limit)) == 1
    assert "error: " in dumps.log() and "File too large" in dumps.log()
    assert dumps.wait(dumps.start(out, *flags)) == 0, dumps.log()
    dumps.check(out, whole)


@pytest.mark.parametrize(
    ("out", "changes", "message"),
    [
        ("s3://nowhere/data", {}, "there is no such file or bucket"),
        (f"s3://{BUCKET}/data", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "check the address"),
    ],
)
def test_a_bucket_that_cannot_be_used(dumps, out, changes, message):
    """Refused before the teacher is loaded: there is none of that name."""
    dumps.environment |= changes
    assert dumps.wait(dumps.start(out, "--model", "no/such/model")) == 1
    assert message in dumps.log() and "Traceback" not in dumps.log()


def test_a_ray_cluster_of_three_workers(dumps, unbroken):
    pytest.importorskip(
        "ray", reason='Ray takes 200 MB, too much for the set-up: pip install -e ".[ray]"'
    )
    out = f"s3://{BUCKET}/ray"
    flags = ["--executor", "ray", "--tasks", "6", "--workers", "3", "--cpus-per-task", "1"]
    flags += ["--memory-per-cpu", "1"]
    rng, killed = random.Random(0), 0
    driver = dumps.start(out, *flags)
    while killed < 3:
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert driver.wait(rng.uniform(0, unbroken[1])) == 0, dumps.log()
            break
        actors = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if "ray::RankWorker" in " ".join(process.cmdline())
        ]
        if actors:
            rng.choice(actors).kill()
            killed += 1
    assert dumps.wait(driver) == 0, dumps.log()
    assert killed
    dumps.check(out, unbroken[0])


def test_a_dataset_in_a_bucket_is_read_through_the_cache(dumps, whole, tmp_path, monkeypatch):
    """Verified and previewed by the commands, through a way that fails at random."""
    out = f"s3://{BUCKET}/read"
    assert dumps.wait(dumps.start(out)) == 0, dumps.log()
    with unreliable(dumps.url, 0.02, seed=1) as (url, _):
        dumps.environment["AWS_ENDPOINT_URL"] = url
        for command in (["verify", out], ["preview", out, "--out", str(tmp_path / "sheet.png")]):
            subprocess.run(
                [sys.executable, "-m", "style_distil", "triplets", *command],
                env=dumps.environment,
                check=True,
            )
    for name, value in (KEY | {"AWS_ENDPOINT_URL": dumps.url}).items():
        monkeypatch.setenv(name, value)
    dataset = TripletDataset(out, Cache(tmp_path / "other", 10**9))
    assert len(dataset) == 48
