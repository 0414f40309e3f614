"""Datasets in a bucket of a real S3 server on the loopback interface, among kills and failures."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from small_dump import dump, tree
from unreliable import BUCKET, KEY, s3_server, unreliable

from triplets import Cache, TripletDataset

pytestmark = pytest.mark.slow

KILLS = 30
SHARD_SIZE = 1  # 12 shards
PROGRAM = Path(__file__).with_name("slow_dump.py")


def start(address: str, rank: int, world_size: int) -> subprocess.Popen:
    command = [sys.executable, PROGRAM, address, str(rank), str(world_size)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_output(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status, and what it said before."""
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def files(address: str) -> dict[str, bytes]:
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    root = address.removeprefix("s3://")
    return {path[len(root) + 1 :]: fs.cat_file(path) for path in fs.find(root)}


@pytest.fixture
def server(monkeypatch):
    with s3_server() as url:
        for name, value in (KEY | {"AWS_ENDPOINT_URL": url}).items():
            monkeypatch.setenv(name, value)
        # Clients are kept by their arguments, and would ask the server of the test before.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield url


@pytest.fixture
def whole(tmp_path):
    root = dump(tmp_path / "whole", version=2, shard_size=SHARD_SIZE).root
    return {name: data for name, data in tree(root).items() if data is not None}


def test_ranks_killed_at_random_moments_among_failures(server, whole, tmp_path, monkeypatch):
    """Two ranks of many short dumps; each dump ends as an unbroken one, and a reader that looks at
    it meanwhile sees whole shards alone."""
    rng, killed, dumps = random.Random(0), 0, 0
    seconds = 0.0
    with unreliable(server, 0.03) as (url, counts):
        while killed < KILLS:
            dumps += 1
            address = f"s3://{BUCKET}/killed-{dumps}"
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            begun = time.monotonic()
            while True:
                ranks = [start(address, rank, 2) for rank in range(2)]
                # At first an unbroken run, to know how long one takes.
                if killed < KILLS and seconds and rng.random() < 0.9:
                    time.sleep(rng.uniform(0.3, 0.9) * seconds)
                    victims = [process for process in ranks if process.poll() is None]
                    for process in rng.sample(victims, min(len(victims), rng.randint(1, 2))):
                        process.kill()
                        killed += 1
                outcomes = [wait_for_output(process) for process in ranks]
                assert all(status in (0, -9) for status, _ in outcomes), outcomes
                if [status for status, _ in outcomes] == [0, 0]:
                    break
            seconds = seconds or time.monotonic() - begun
            monkeypatch.setenv("AWS_ENDPOINT_URL", server)
            assert files(address) == whole
    print(f"{killed} killed in {dumps} dumps, {counts}")
    assert counts["cut"] and counts["refused"]
    assert TripletDataset(address, Cache(tmp_path / "cache", 10**8)).verify() == []


def test_two_drivers_at_once(server, whole):
    address = f"s3://{BUCKET}/twice"
    processes = [start(address, 0, 1) for _ in range(2)]
    assert [wait_for_output(process)[0] for process in processes] == [0, 0]
    assert files(address) == whole


def test_reading_among_failures(server, tmp_path):
    """By several processes with one cache, which has room for a third of the dataset."""
    address = f"s3://{BUCKET}/read"
    dump(address, shard_size=SHARD_SIZE)
    sizes = [len(data) for data in files(address).values()]
    cache = Cache(tmp_path / "cache", max(max(sizes), sum(sizes) // 3))
    with unreliable(server, 0.05, seed=1) as (url, counts):
        program = (
            "import sys; from triplets import Cache, TripletDataset; from pathlib import Path; "
            "sys.exit(len(TripletDataset(sys.argv[1], "
            "Cache(Path(sys.argv[2]), int(sys.argv[3]))).verify()))"
        )
        arguments = [address, str(cache.folder), str(cache.max_bytes)]
        environment = os.environ | {"AWS_ENDPOINT_URL": url}
        readers = [
            subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment)
            for _ in range(2)
        ]
        assert [reader.wait(600) for reader in readers] == [0, 0]
    assert counts["cut"] and counts["refused"]
    kept = [path.stat().st_size for path in cache.folder.glob("[0-9a-f]*")]
    assert kept and sum(kept) <= cache.max_bytes
