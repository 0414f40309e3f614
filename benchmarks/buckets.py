"""Reading triplets from a bucket against a folder: the input pipeline, and a training with it.

python benchmarks/buckets.py --size 256

The bucket is an S3 server of moto on this machine, in a process of its own, so there is no network
in between: what is measured is the client, the cache and the decoding. The triplets are all pairs
of the bundled samples, and "stylised" is a blend of the two.
"""

import contextlib
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np
import tyro
from train import prepare

from student_jax.training import sharding
from student_jax.training.config import TrainConfig
from student_jax.training.data import load_sources, training_batches
from student_jax.training.train import initial_student
from triplets import Cache, ImageFolder, ImageSet, TripletDataset, TripletWriter, load_images
from triplets.bundled import SAMPLES

SERVER = """
import boto3, sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://{}:{}".format(*server.get_host_and_port())
boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="bucket")
print(url, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    size: int = 256
    """Side of the pictures in pixels."""
    crop_size: int = 128
    """Side of the crops in pixels."""
    batch_size: int = 4
    """Triplets per batch."""
    batches: int = 60
    """Batches that the pipeline alone is timed for."""
    steps: int = 10
    """Steps of the mini student with L1, each timed with the wait for its batch; 0 for the pipeline
    alone."""
    repeats: int = 2
    """Rounds over all places; the fastest counts, but for the cold cache, which is one round."""


@contextlib.contextmanager
def s3_server() -> Iterator[None]:
    """A server like S3, to which the environment then points."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("http"):
                os.environ["AWS_ENDPOINT_URL"] = line.strip()
                break
        yield
        process.stdin.close()


def write(root: str, size: int, version: int) -> str:
    """All pairs of the samples, in shards of 8."""
    contents, styles = (
        load_images(ImageFolder(SAMPLES / kind), size)[0] for kind in ("content", "style")
    )
    assert isinstance(contents, ImageSet)
    pairs = np.indices((len(contents), len(styles))).reshape(2, -1).T
    writer = TripletWriter(
        root, contents=contents, styles=styles, pairs=pairs, shard_size=8, version=version
    )
    for shard in writer.missing_shards():
        rows = writer.shard_pairs(shard)
        blends = contents.images[rows[:, 0]] // 2 + styles.images[rows[:, 1]] // 2
        writer.write_shard(shard, blends)
    return root


def open_batches(data: str, cache: Cache, config: BenchmarkConfig) -> grain.DatasetIterator:
    """The batches of a training."""
    sources, _ = load_sources([data], data, 0.0, cache)
    return training_batches(
        sources,
        batch_size=config.batch_size,
        crop_size=config.crop_size,
        seed=0,
        num_workers=0,
    )


def pipeline(data: str, cache: Cache, config: BenchmarkConfig) -> float:
    """Triplets per second of the input pipeline alone, the opening of the dataset included."""
    start = time.perf_counter()
    batches = open_batches(data, cache, config)
    for _ in itertools.islice(batches, config.batches):
        pass
    batches.close()
    return config.batches * config.batch_size / (time.perf_counter() - start)


def training(data: str, cache: Cache, config: BenchmarkConfig, program: tuple) -> float:
    """Triplets per second of a training that waits for its batches."""
    step, state, _, features, _ = program
    state = jax.tree.map(lambda x: x.copy(), state)
    mesh = sharding.make_mesh()
    batches = open_batches(data, cache, config)
    start = None
    for number in range(config.steps + 2):
        if number == 2:
            start = time.perf_counter()
        batch = next(batches)
        del batch["record"]
        state, terms = step(state, sharding.shard_batch(batch, mesh), features)
        jax.block_until_ready(terms)
    batches.close()
    return config.steps * config.batch_size / (time.perf_counter() - start)


def main(config: BenchmarkConfig) -> None:
    """Print the table."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"jax {jax.__version__}; load {os.getloadavg()[0]:.1f}; {config.size} px, crops of "
        f"{config.crop_size} px\n"
    )
    with tempfile.TemporaryDirectory() as name, s3_server():
        folder = Path(name)
        raw = write(str(folder / "raw"), config.size, 1)
        packed = write(str(folder / "packed"), config.size, 2)
        bucket = write("s3://bucket/triplets", config.size, 2)
        sizes = [TripletDataset(root).storage.total_bytes() for root in (raw, packed)]
        print(f"version 1: {sizes[0] / 1e6:.1f} MB, version 2: {sizes[1] / 1e6:.1f} MB\n")
        room = Cache(folder / "cache", 10**10)
        # The largest file fits, and all of them do not.
        little = Cache(folder / "little", sizes[1] * 2 // 3)
        places = {
            "raw, folder": (raw, room),
            "WebP, folder": (packed, room),
            "WebP, S3, warm cache": (bucket, room),
            "WebP, S3, cache too small": (bucket, little),
        }
        program = ()
        if config.steps:
            student = initial_student(TrainConfig.mini((raw,), Path()))
            program = prepare(raw, config.crop_size, config.batch_size, student, {"loss": "L1"})
        cold = pipeline(bucket, room, config)
        rates: dict[str, list[tuple[float, float]]] = {place: [] for place in places}
        for _ in range(config.repeats):
            for place, (data, cache) in places.items():
                rate = pipeline(data, cache, config)
                trained = training(data, cache, config, program) if program else float("nan")
                rates[place].append((rate, trained))
        shutil.rmtree(room.folder)
    best = {place: [max(column) for column in zip(*r, strict=True)] for place, r in rates.items()}
    (base_pipeline, base_training) = best["raw, folder"]
    print("| place | pipeline triplets/s | of raw | training triplets/s | of raw |")
    print("| --- | --- | --- | --- | --- |")
    for place, (alone, trained) in best.items():
        print(
            f"| {place} | {alone:.0f} | {alone / base_pipeline:.2f} | {trained:.1f} | "
            f"{trained / base_training:.2f} |"
        )
    print(f"| WebP, S3, cold cache | {cold:.0f} | {cold / base_pipeline:.2f} | | |")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
