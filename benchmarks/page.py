"""Seconds per picture on the demo page, in headless Chromium by WebAssembly.

    make page                   # needs Node.js
    python benchmarks/page.py   # needs chromium-headless-shell, chromium or google-chrome

"ready" is from an empty profile to a page that can stylise, everything loaded from this machine;
"first" the first picture, with its style encoded, and "next" the median of the following ones. All
but "ready" are what the page counts: from the picture's file to the result's pixels.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from student_jax.default import DEFAULT_STUDENT
from student_jax.demo.server import DemoConfig, Server, page_app
from student_jax.demo.static_page import write_page
from student_jax.weights.folder import open_student
from triplets.atomic import write_json
from triplets.bundled import SAMPLES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "student_jax" / "demo"))
from browser import Browser


@dataclass(frozen=True)
class Config:
    """What to measure."""

    size: int = 512
    """Side of the square photo in pixels."""
    threads: tuple[int, ...] = (1, 2)
    """Of WebAssembly; at most as many as there are processors."""
    repeats: int = 4
    """Pictures after the first."""
    checkpoint: str = DEFAULT_STUDENT


def main(config: Config) -> None:
    """Measure all, and print a table."""
    print("| px | threads | ready s | first s | next s |")
    print("| ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_page(open_student(config.checkpoint), folder / "page")
        with Image.open(SAMPLES / "content" / "coffee.jpg") as photo:
            photo.resize((config.size, config.size)).save(folder / "photo.png")
        for threads in config.threads:
            ready, first, *others = measure(folder, threads, config.repeats)
            row = f"{ready:.2f} | {first:.2f} | {statistics.median(others):.2f}"
            print(f"| {config.size} | {threads} | {row} |", flush=True)


def measure(folder: Path, threads: int, repeats: int) -> list[float]:
    """Seconds until the page is ready, and of each picture."""
    description = json.loads((folder / "page" / "model.json").read_text())
    write_json(folder / "page" / "model.json", description | {"threads": threads})
    settings = DemoConfig(port=0)
    with Server(page_app(folder / "page", settings), settings) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        start = time.perf_counter()
        url = f"http://127.0.0.1:{server.port}/?wasm"
        with Browser(url, folder / f"profile{threads}") as browser:
            browser.until("!document.getElementById('go').disabled")
            seconds = [time.perf_counter() - start]
            browser.upload("content", folder / "photo.png")
            browser.click("[data-slot=style] [title*='cafe terrace']")
            browser.until("!document.querySelector('[data-slot=style] .preview').hidden")
            for _ in range(1 + repeats):
                browser.run("delete document.getElementById('facts').dataset.seconds")
                browser.click("#go")
                browser.until("document.getElementById('facts').dataset.seconds")
                seconds.append(
                    float(browser.run("document.getElementById('facts').dataset.seconds"))
                )
        server.stop()
        thread.join()
    return seconds


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
