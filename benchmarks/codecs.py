"""Lossless forms of a picture: bytes, and time to encode and to decode it.

python benchmarks/codecs.py --sizes 256 512

The pictures are the bundled samples, contents and styles alike, or the stylised ones of --data.
JPEG XL is measured if pillow-jxl-plugin is installed, which brings it to Pillow.
"""

import importlib.util
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tyro
from PIL import Image, features

from triplets import ImageFolder, TripletDataset, load_images
from triplets.bundled import SAMPLES


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    sizes: tuple[int, ...] = (256, 512)
    """Sides of the pictures in pixels."""
    data: str | None = None
    """Dataset whose stylised pictures are taken, as they are."""
    pictures: int = 13
    """How many of them."""
    repeats: int = 3
    """The fastest of so many times counts."""


class Codec(NamedTuple):
    """A way to keep a picture."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]


def of_pillow(kind: str, **options: object) -> Codec:
    """What Pillow makes of a picture with some options."""

    def encode(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **options)
        return file.getvalue()

    return Codec(encode, lambda data: np.asarray(Image.open(io.BytesIO(data))))


def codecs(shape: tuple[int, ...]) -> dict[str, Codec]:
    """All that can be measured here."""
    raw = Codec(
        lambda image: image.tobytes(), lambda data: np.frombuffer(data, np.uint8).reshape(shape)
    )
    found = {
        "raw": raw,
        "PNG, level 1": of_pillow("PNG", compress_level=1),
        "PNG, level 6": of_pillow("PNG"),
    }
    for method, quality in ((0, 0), (1, 50), (4, 50)):
        name = f"WebP, method {method}, effort {quality}"
        found[name] = of_pillow("WEBP", lossless=True, method=method, quality=quality)
    if importlib.util.find_spec("pillow_jxl"):
        importlib.import_module("pillow_jxl")
        for effort in (1, 3):
            found[f"JPEG XL, effort {effort}"] = of_pillow("JXL", lossless=True, effort=effort)
    return found


def pictures(config: BenchmarkConfig, size: int) -> list[np.ndarray]:
    """What to encode."""
    if config.data is not None:
        dataset = TripletDataset(config.data)
        rows = np.linspace(0, len(dataset) - 1, min(config.pictures, len(dataset)))
        return list(dataset.stylised([round(row) for row in rows]))
    sets = [load_images(ImageFolder(SAMPLES / kind), size)[0] for kind in ("content", "style")]
    return [image for images in sets for image in images.images][: config.pictures]


def fastest(work: Callable[[], object], repeats: int) -> float:
    """CPU milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(1000 * (time.process_time() - start))
    return min(times)


def main(config: BenchmarkConfig) -> None:
    """Print a table per size."""
    print(
        f"{platform.processor() or platform.machine()}; Pillow {Image.__version__}, libwebp "
        f"{features.version('webp')}; load {os.getloadavg()[0]:.1f}"
    )
    for size in config.sizes:
        images = pictures(config, size)
        height, width = images[0].shape[:2]
        print(f"\n{len(images)} pictures of {width} x {height} px, each on one core\n")
        print("| codec | KiB | of raw | encode ms | decode ms |\n| --- | --- | --- | --- | --- |")
        for name, codec in codecs(images[0].shape).items():
            lengths, encoding, decoding = [], [], []
            for image in images:
                data = codec.encode(image)
                np.testing.assert_array_equal(codec.decode(data), image)
                lengths.append(len(data))
                encoding.append(fastest(lambda c=codec, x=image: c.encode(x), config.repeats))
                decoding.append(fastest(lambda c=codec, x=data: c.decode(x), config.repeats))
            kib = statistics.mean(lengths) / 1024
            print(
                f"| {name} | {kib:.0f} | {kib * 1024 / images[0].nbytes:.0%} | "
                f"{statistics.mean(encoding):.1f} | {statistics.mean(decoding):.1f} |",
                flush=True,
            )
        if config.data is not None:
            break


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
