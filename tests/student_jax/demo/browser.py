"""The demo page in headless Chromium.

python tests/student_jax/demo/browser.py docs/demo.png   # takes the picture of the documentation
"""

import base64
import fcntl
import io
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # only this machine's own page is opened, and containers have no sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--window-size=1180,900",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

PATIENCE_S = 100
"""Seconds to wait for a reply of the browser, or for a state of the page."""


class Browser:
    """A page in a browser that is driven through Chromium's debugging pipe.

    If the browser or the page does not do something in time, an AssertionError says what.

    Args:
        url: the page to open.
        profile: folder for the browser's own files.
    """

    def __init__(self, url: str, profile: Path):
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        assert program, f"one of {PROGRAMS} is needed: apt install chromium"
        profile.mkdir(parents=True, exist_ok=True)
        self._log = profile / "stderr.txt"
        child_in, self._out = os.pipe()
        self._in, child_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4: neither may be one of these already.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (child_in, child_out)]
        redirected = f'exec "$0" "$@" 3<&{high[0]} 4>&{high[1]}'
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", redirected, program, *FLAGS, f"--user-data-dir={profile}"],
                pass_fds=high,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for descriptor in (child_in, child_out, *high):
            os.close(descriptor)
        self._ids, self._session, self._received = itertools.count(), None, b""
        target = self("Target.createTarget", url=url)["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for descriptor in (self._out, self._in):  # without its pipe the browser ends
            os.close(descriptor)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __call__(self, method, **params):
        """The result of a method of the Chrome DevTools Protocol."""
        request = {"id": next(self._ids), "method": method, "params": params}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._out, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = json.loads(self._message(method, deadline))
            if answer.get("id") == request["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self, method: str, deadline: float) -> bytes:
        while b"\0" not in self._received:
            left = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([self._in], [], [], left)
            part = os.read(self._in, 2**20) if ready else b""
            if not part:
                what = "has closed" if ready else f"did not answer in {PATIENCE_S} s"
                log = self._log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"the browser {what} at {method}: {log}")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return message

    def run(self, expression):
        """The value of JavaScript."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression):
        """Wait until JavaScript is true; an error, as in a page that still loads, is not."""
        deadline = time.monotonic() + PATIENCE_S
        guarded = f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
        while not self.run(guarded):
            if time.monotonic() > deadline:
                page = self.run("document.body.innerText")
                raise AssertionError(f"waited {PATIENCE_S} s for {expression} in: {page}")
            time.sleep(0.05)

    def click(self, selector, index=0):
        """Click on one of the elements that a CSS selector finds."""
        self.run(f"document.querySelectorAll({json.dumps(selector)})[{index}].click()")

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self("Page.captureScreenshot")["data"])


def take_picture(out: Path) -> None:
    """The page with a sample photo in the style of a sample painting, half compared."""
    from student_jax.demo.server import make_server
    from student_jax.inference.stylist import Stylist
    from triplets.atomic import atomic_write

    stylist = Stylist.from_pretrained()
    with (
        make_server(stylist, "127.0.0.1", 0, max_size=768) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Browser(f"http://127.0.0.1:{server.server_port}/", Path(folder)) as browser:
            browser.until("document.querySelectorAll('[data-slot=second] img').length > 1")
            browser.click("[data-slot=content] [title=coffee]")
            browser.click("[data-slot=style] [title*='cafe terrace']")
            # The second time, nothing is compiled: the page shows the usual seconds.
            for _ in range(2):
                browser.click("#go")
                browser.until("!document.getElementById('go').disabled")
                browser.until("document.getElementById('after').naturalWidth > 0")
            browser.until("[...document.images].every(image => image.complete)")
            picture = browser.screenshot()
        server.shutdown()
    # 256 colours take a third of the bytes.
    picture = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256)
    with atomic_write(out) as file:
        picture.save(file, "PNG", optimize=True)


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]))
