"""`style-distil demo`: a web page to try a student, served by this machine for this machine."""

import base64
import io
import json
import sys
import threading
import traceback
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from jaxtyping import UInt8

from student_jax.compilation import enable_compilation_cache
from student_jax.inference.stylist import Stylist
from triplets import (
    InputError,
    decode_image,
    encode_image,
    float_from_uint8,
    resize_shorter_side,
    uint8_from_float,
)
from triplets.bundled import SAMPLES
from triplets.errors import one_line

PAGE = Path(__file__).parent / "page" / "index.html"
KINDS = ("content", "style")

MAX_BODY_BYTES = 48 * 2**20
"""Largest request: three pictures of 12 MB, in base64."""

MAX_PIXELS = 40_000_000
"""Largest picture that is decoded."""

MAX_AREA = 4
"""Largest content that is stylised, in squares of `DemoConfig.max_size`: others wait meanwhile."""

TIMEOUT_S = 60
"""Seconds that a request waits for its bytes, and for the pictures of those before it."""

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""What browsers call this machine."""


@dataclass(frozen=True)
class DemoConfig:
    """Serve the demo page."""

    checkpoint: str = "mini"
    """"mini" (the bundled student), the workdir of a training run, an exported folder or
    safetensors file, or hf://OWNER/NAME."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this one lets other machines in."""
    port: int = 7860
    """Port to listen on; 0 chooses a free one."""
    max_size: int = 768
    """Reduce larger contents to this shorter side (px)."""

    def __post_init__(self):
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; expected 0 to 65535.")
        if self.max_size < 1:
            raise ValueError(f"max_size is {self.max_size}; expected 1 or more.")


def demo(config: DemoConfig) -> None:
    """Serve until interrupted.

    Raises:
        InputError: no such student, or an address that it cannot listen on.
    """
    enable_compilation_cache()
    stylist = Stylist.from_pretrained(config.checkpoint)
    with make_server(stylist, config.host, config.port, config.max_size) as server:
        print(f"http://{config.host}:{server.server_port}/   (Ctrl-C stops)", flush=True)
        server.serve_forever()


def make_server(stylist: Stylist, host: str, port: int, max_size: int) -> ThreadingHTTPServer:
    """A server of the page, not running yet; port 0 chooses a free one.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    # One picture at a time: several would share the same cores and multiply the memory.
    lock = threading.Lock()
    try:
        return _Server((host, port), partial(_Handler, stylist, lock, max_size))
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port}: {one_line(error)}; give another --port or "
            "--host."
        ) from error


def stylise_request(stylist: Stylist, request: dict, max_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture that a request of the page asks for.

    Args:
        request: "content" and "styles" (one or two), each a data URL or "sample:NAME"; "blend"
            (share of the second style), "strength", "preserve_colour".

    Raises:
        InputError: fields that are missing or unusable.
    """
    try:
        content, styles = request.get("content"), list(request["styles"])
        strength, blend = float(request["strength"]), float(request["blend"])
        preserve_colour = bool(request["preserve_colour"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            "not a request of this page; expected styles, strength, blend and preserve_colour."
        ) from error
    if not 1 <= len(styles) <= 2 or not 0 <= blend <= 1:
        raise InputError("expected one or two styles, and a blend from 0 to 1.")
    picture = resize_shorter_side(_picture("content", content), max_size)
    if picture.size > 3 * MAX_AREA * max_size**2:
        height, width = picture.shape[:2]
        raise InputError(f"the content is too long, {width} x {height} px; cut it.")
    pixels = float_from_uint8(picture)
    encoded = [stylist.encode_style(_picture("style", style)) for style in styles]
    weights = [1.0] if len(styles) == 1 else [1 - blend, blend]
    style = stylist.encode_style(encoded, weights)
    return uint8_from_float(stylist(pixels, style, strength, preserve_colour=preserve_colour))


def _parse(body: bytes) -> dict:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise InputError(f"not a request of this page: {one_line(error)}.") from error
    if not isinstance(request, dict):
        raise InputError("not a request of this page; expected a JSON object.")
    return request


def _samples() -> dict[str, list[str]]:
    return {kind: sorted(path.name for path in (SAMPLES / kind).glob("*.jpg")) for kind in KINDS}


def _picture(kind: str, given: object) -> UInt8[np.ndarray, "h w 3"]:
    if not isinstance(given, str) or not given:
        raise InputError(f"choose a {kind}.")
    if given.startswith("sample:"):
        name = given.removeprefix("sample:")
        if name not in _samples()[kind]:
            raise InputError(f"there is no {kind} sample {name!r}.")
        return decode_image(SAMPLES / kind / name).pixels
    try:
        data = base64.b64decode(given.partition(",")[2], validate=True)
    except ValueError as error:  # also a text that is not ASCII
        raise InputError(f"the {kind} is not a picture: {one_line(error)}.") from error
    return decode_image(io.BytesIO(data), name=f"the {kind}", max_pixels=MAX_PIXELS).pixels


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        # A client that leaves is no defect.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S  # without a byte, after which a connection is closed

    def __init__(self, stylist: Stylist, lock: threading.Lock, max_size: int, *args):
        self._stylist, self._lock, self._max_size = stylist, lock, max_size
        super().__init__(*args)

    def do_GET(self):
        kind, _, name = unquote(self.path).removeprefix("/samples/").partition("/")
        if not self._is_for_this_machine():
            return
        if self.path == "/":
            self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/samples":
            self._send(json.dumps(_samples()).encode(), "application/json")
        elif kind in KINDS and name in _samples()[kind]:  # no other path is ever opened
            self._send((SAMPLES / kind / name).read_bytes(), "image/jpeg")
        else:
            self._refuse("there is nothing here.", HTTPStatus.NOT_FOUND)

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not self._is_for_this_machine():
            return
        # A form of another site cannot send this type without being asked first (CORS).
        if self.path != "/stylise" or self.headers.get_content_type() != "application/json":
            self._refuse("expected JSON at /stylise.", HTTPStatus.NOT_FOUND)
        elif not (length.isascii() and length.isdecimal() and len(length) < 20):
            self._refuse("expected the length of the request.", HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > MAX_BODY_BYTES:
            limit = MAX_BODY_BYTES >> 20
            self._refuse(
                f"the pictures are too large; together they may have {limit * 3 // 4} MB at most.",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        else:
            self._stylise(int(length))

    def _stylise(self, length: int) -> None:
        try:
            request = _parse(self.rfile.read(length))
            if not self._lock.acquire(timeout=TIMEOUT_S):
                self._refuse("others are waiting; try again.", HTTPStatus.SERVICE_UNAVAILABLE)
                return
            try:
                pixels = stylise_request(self._stylist, request, self._max_size)
            finally:
                self._lock.release()
        except InputError as error:
            self._refuse(str(error), HTTPStatus.BAD_REQUEST)
        except TimeoutError:
            self._refuse("the request did not come to its end.", HTTPStatus.REQUEST_TIMEOUT)
        except Exception:
            traceback.print_exc()
            self._refuse("this failed; see the terminal.", HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self._send(encode_image(pixels, ".png"), "image/png")

    def send_error(self, code, message=None, explain=None):
        # What `http.server` refuses by itself, such as a method or a line that it does not know.
        status = HTTPStatus(code)
        self.request_version = self.protocol_version  # of HTTP/0.9 there would be no headers
        self._refuse(f"{message or status.phrase}.", status)

    def log_message(self, format, *args):
        pass  # what people try stays private

    def _is_for_this_machine(self) -> bool:
        """Whether the browser asked for this machine; else another site's name led here (DNS)."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        bound = self.server.server_address[0]
        if bound not in ("127.0.0.1", "::1") or host in LOOPBACK:
            return True
        self._refuse("this page is for this machine.", HTTPStatus.FORBIDDEN)
        return False

    def _refuse(self, message: str, status: HTTPStatus) -> None:
        self.close_connection = True  # what was not read must not be taken for a request
        self._send(json.dumps({"error": message}).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data: blob:"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
