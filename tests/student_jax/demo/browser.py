"""The demo page in headless Chromium.

python tests/student_jax/demo/browser.py docs/   # takes the pictures of the documentation
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
        answer = self._ask(method, **params)
        assert "error" not in answer, answer
        return answer["result"]

    def _ask(self, method, **params):
        """The answer to a request: a result or an error."""
        request = {"id": next(self._ids), "method": method, "params": params}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._out, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = json.loads(self._message(method, deadline))
            if answer.get("id") == request["id"]:
                return answer

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
        while not self._is_true(guarded):
            if time.monotonic() > deadline:
                page = self.run("document.body.innerText")
                raise AssertionError(f"waited {PATIENCE_S} s for {expression} in: {page}")
            time.sleep(0.05)

    def _is_true(self, expression) -> bool:
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        # While a page starts that is isolated from others, in a process of its own, there is none.
        if "execution context" in answer.get("error", {}).get("message", ""):
            return False
        assert "error" not in answer, answer
        return answer["result"]["result"].get("value", False)

    def click(self, selector, index=0):
        """Click on one of the elements that a CSS selector finds."""
        self.run(f"document.querySelectorAll({json.dumps(selector)})[{index}].click()")

    def upload(self, slot, path):
        """Choose a file for the content or a style."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        selector = f"[data-slot={slot}] input[type=file]"
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self("Page.captureScreenshot")["data"])


def take_pictures(out: Path) -> None:
    """The page with a sample photo in the style of a sample painting, on a desktop and a phone."""
    from student_jax.demo.server import DemoConfig, Server, page_app
    from student_jax.demo.static_page import write_page
    from student_jax.weights.folder import open_student

    config = DemoConfig(port=0)
    with tempfile.TemporaryDirectory() as folder:
        write_page(open_student("modulated"), Path(folder, "page"))
        with Server(page_app(Path(folder, "page"), config), config) as server:
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            with Browser(f"http://127.0.0.1:{server.port}/", Path(folder, "profile")) as browser:
                browser.until("!document.getElementById('go').disabled")
                browser.click("[data-slot=content] [title=coffee]")
                browser.click("[data-slot=style] [title*='cafe terrace']")
                browser.until("document.querySelectorAll('[aria-pressed=true]').length == 2")
                # The second time, the runtime is warm: the page shows the usual seconds.
                for _ in range(2):
                    browser.click("#go")
                    browser.until("!document.getElementById('go').disabled")
                _save(browser.screenshot(), out / "demo.png")
                browser(
                    "Emulation.setDeviceMetricsOverride",
                    width=390,
                    height=844,
                    deviceScaleFactor=1,
                    mobile=True,
                )
                browser.run("scrollTo(0, document.body.scrollHeight)")
                time.sleep(1)  # until it is drawn
                _save(browser.screenshot(), out / "demo_phone.png")
            server.stop()
            thread.join()


def _save(screenshot: bytes, path: Path) -> None:
    from triplets.atomic import atomic_write

    # 256 colours take a third of the bytes.
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(256)
    with atomic_write(path) as file:
        picture.save(file, "PNG", optimize=True)


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
