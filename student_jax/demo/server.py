"""`style-distil demo`: a web page to try a student, served by this machine for this machine.

The page computes in the browser, with the student's ONNX files; with `--python` it asks this
program, which computes with JAX. Starlette and Uvicorn handle the requests.
"""

import asyncio
import base64
import contextlib
import io
import json
import socket
import tempfile
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import numpy as np
import uvicorn
from jaxtyping import UInt8
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from student_jax.compilation import enable_compilation_cache
from student_jax.demo.samples import KINDS, PAGE, samples
from student_jax.inference.stylist import Stylist
from student_jax.students import DEFAULT_STUDENT
from student_jax.weights.folder import open_student
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

MAX_BODY_BYTES = 48 * 2**20
"""Largest request: three pictures of 12 MB, in base64."""

MAX_PIXELS = 40_000_000
"""Largest picture that is decoded."""

MAX_AREA = 4
"""Largest content that is stylised, in squares of `DemoConfig.max_size`: others wait meanwhile."""

MAX_CONNECTIONS = 64
"""Connections at once; further ones are refused."""

TIMEOUT_S = 60
"""Seconds that a request waits for its bytes, and for the pictures of those before it."""

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
"""What browsers call this machine."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
        "connect-src 'self' data: blob:"
    ),
    # Threads of WebAssembly share memory, which browsers allow to isolated pages alone.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}


@dataclass(frozen=True)
class DemoConfig:
    """Serve the demo page."""

    checkpoint: str = DEFAULT_STUDENT
    """"modulated" or "mini" (the bundled students), the workdir of a training run, an exported
    folder or safetensors file, or hf://OWNER/NAME."""
    python: bool = False
    """Compute with JAX on this machine instead of in the browser: any student at any size."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this one lets other machines in."""
    port: int = 7860
    """Port to listen on; 0 chooses a free one."""
    max_size: int = 1024
    """With --python: reduce larger contents to this shorter side (px)."""

    def __post_init__(self):
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; expected 0 to 65535.")
        if self.max_size < 1:
            raise ValueError(f"max_size is {self.max_size}; expected 1 or more.")


def demo(config: DemoConfig) -> None:
    """Serve until interrupted.

    Raises:
        InputError: no such student, an address that it cannot listen on, or a page that is not
            built.
    """
    with contextlib.ExitStack() as stack:
        if config.python:
            enable_compilation_cache()
            app = python_app(Stylist.from_pretrained(config.checkpoint), config)
        else:
            from student_jax.demo.static_page import write_page

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_page(open_student(config.checkpoint), folder)
            app = page_app(folder, config)
        server = stack.enter_context(Server(app, config))
        print(f"http://{config.host}:{server.port}/   (Ctrl-C stops)", flush=True)
        server.run()


def page_app(folder: Path, config: DemoConfig) -> Starlette:
    """The page of `static_page.write_page`."""
    return _app([Mount("/", StaticFiles(directory=folder, html=True))], config)


def python_app(stylist: Stylist, config: DemoConfig) -> Starlette:
    """The page, and what it asks of the stylist."""
    # One picture at a time: several would share the same cores and multiply the memory.
    lock = asyncio.Lock()

    async def stylise(request: Request) -> Response:
        # A form of another site cannot send this type without being asked first (CORS).
        if request.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected JSON.")
        fields = _parse(await _body(request))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await lock.acquire()
        except TimeoutError as error:
            raise HTTPException(503, "others are waiting; try again.") from error
        try:
            picture = await run_in_threadpool(_encoded, stylist, fields, config.max_size)
        finally:
            lock.release()
        return Response(picture, media_type="image/png")

    async def model(_: Request) -> Response:
        description = {"engine": "python", "mixes": True, "max_size": config.max_size}
        return JSONResponse(description | {"samples": samples()})

    routes = [
        Route("/stylise", stylise, methods=["POST"]),
        Route("/model.json", model),
        *(Mount(f"/samples/{kind}", StaticFiles(directory=SAMPLES / kind)) for kind in KINDS),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    return _app(routes, config)


class Server:
    """Listens from the start and answers while it runs; a context manager that closes its port.

    Args:
        app: what answers.
        config: where to listen; port 0 chooses a free one.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """

    def __init__(self, app: ASGIApp, config: DemoConfig):
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        try:
            self._socket = socket.create_server((config.host, config.port), family=family)
        except OSError as error:
            raise InputError(
                f"cannot listen on {config.host}, port {config.port}: {one_line(error)}; give "
                "another --port or --host."
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,  # what people try stays private
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
            )
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_):
        self._socket.close()

    def run(self) -> None:
        """Answer until interrupted, or until `stop`."""
        self._uvicorn.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let `run` return; from another thread."""
        self._uvicorn.should_exit = True


def stylise_request(stylist: Stylist, request: dict, max_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture that a request of the page asks for.

    Args:
        request: "content" and "styles" (one or two), each a data URL or "sample:NAME"; "blend"
            (share of the second style), "strength", "preserve_colour"; and, if it likes, "size"
            (reduce larger contents to this shorter side) and "stroke_size".
        max_size: largest "size", and the default.

    Raises:
        InputError: fields that are missing or unusable.
    """
    try:
        content, styles = request.get("content"), list(request["styles"])
        strength, blend = float(request["strength"]), float(request["blend"])
        size = min(max_size, int(request.get("size", max_size)))
        stroke_size = float(request.get("stroke_size", 1))
        preserve_colour = bool(request["preserve_colour"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            "not a request of this page; expected styles, strength, blend and preserve_colour."
        ) from error
    if not 1 <= len(styles) <= 2 or not 0 <= blend <= 1 or size < 1:
        raise InputError("expected one or two styles, a blend from 0 to 1, and a size.")
    stylist = stylist.with_stroke_size(stroke_size)
    picture = resize_shorter_side(_picture("content", content), size)
    if picture.size > 3 * MAX_AREA * max_size**2:
        height, width = picture.shape[:2]
        raise InputError(f"the content is too long, {width} x {height} px; cut it.")
    pixels = float_from_uint8(picture)
    encoded = [stylist.encode_style(_picture("style", style)) for style in styles]
    weights = [1.0] if len(styles) == 1 else [1 - blend, blend]
    style = stylist.encode_style(encoded, weights)
    return uint8_from_float(stylist(pixels, style, strength, preserve_colour=preserve_colour))


def _app(routes: list[BaseRoute], config: DemoConfig) -> Starlette:
    middleware = [Middleware(_Headers)]
    if config.host in ("127.0.0.1", "::1", "localhost"):
        # Else the name of another site might lead here (DNS rebinding).
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK))
    handlers = {InputError: _refuse, HTTPException: _refuse, Exception: _refuse}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, InputError):
        message, status = str(error), HTTPStatus.BAD_REQUEST
    elif isinstance(error, HTTPException):
        message, status = error.detail, error.status_code
    else:  # Starlette raises it again, for the terminal
        message, status = "this failed; see the terminal.", HTTPStatus.INTERNAL_SERVER_ERROR
    message = message if message.endswith(".") else f"{message}."
    return JSONResponse({"error": message}, status)


async def _body(request: Request) -> bytes:
    """The bytes of a request.

    Raises:
        HTTPException: too many, or they do not come, or the client leaves.
    """
    too_large = HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the pictures are too large; together they may have {MAX_BODY_BYTES * 3 // 4 >> 20} MB "
        "at most.",
    )
    if int(request.headers.get("Content-Length", 0)) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    stream = aiter(request.stream())
    try:
        while True:
            async with asyncio.timeout(TIMEOUT_S):
                body += await anext(stream)
            if len(body) > MAX_BODY_BYTES:
                raise too_large
    except StopAsyncIteration:
        return bytes(body)
    except (TimeoutError, ClientDisconnect) as error:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT, "the request did not come to its end."
        ) from error


def _encoded(stylist: Stylist, request: dict, max_size: int) -> bytes:
    return encode_image(stylise_request(stylist, request, max_size), ".png")


def _parse(body: bytes) -> dict:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise InputError(f"not a request of this page: {one_line(error)}.") from error
    if not isinstance(request, dict):
        raise InputError("not a request of this page; expected a JSON object.")
    return request


def _picture(kind: str, given: object) -> UInt8[np.ndarray, "h w 3"]:
    if not isinstance(given, str) or not given:
        raise InputError(f"choose a {kind}.")
    if given.startswith("sample:"):
        name = given.removeprefix("sample:")
        if name not in samples()[kind]:
            raise InputError(f"there is no {kind} sample {name!r}.")
        return decode_image(SAMPLES / kind / name).pixels
    try:
        data = base64.b64decode(given.partition(",")[2], validate=True)
    except ValueError as error:  # also a text that is not ASCII
        raise InputError(f"the {kind} is not a picture: {one_line(error)}.") from error
    return decode_image(io.BytesIO(data), name=f"the {kind}", max_pixels=MAX_PIXELS).pixels


class _Headers:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Protocol(H11Protocol):
    """Uvicorn's, which waits for ever for the first line of a request, but with its patience."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._patience = self.loop.call_later(TIMEOUT_S, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._patience is not None and self.cycle is not None:
            self._patience.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)
