"""Broken requests to the demo page, in one server that lives through all of them."""

import base64
import io
import json
import re
import socket
import struct

import numpy as np
import pytest
from attacks import Refused, Silent
from mutations import damaged_bytes, damaged_json
from PIL import Image
from processes import Process

pytestmark = pytest.mark.slow

LIMIT_S = 180
"""For a picture, which is compiled for, on a busy machine."""

SIDE = 64


def message(start, body=b"", host="localhost", **headers):
    fields = {"Host": host, "Connection": "close"} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{start}\r\n{lines}\r\n".encode("latin-1") + body


def posted(body, kind="application/json", **headers):
    fields = {"Content_Type": kind, "Content_Length": len(body)} | headers
    return message("POST /stylise HTTP/1.1", body, **fields)


def form(picture=None):
    """What the page asks for."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    whole = encoded.getvalue()
    urls = [
        "data:image/png;base64," + base64.b64encode(x).decode() for x in (picture or whole, whole)
    ]
    numbers = {"blend": 0.5, "strength": 1.0, "preserve_colour": False, "size": SIDE}
    return whole, json.dumps({"content": urls[0], "styles": [urls[1]]} | numbers).encode()


# Each gives the bytes of a request.


def nonsense(rng):
    return rng.randbytes(rng.choice((1, 40, 5000))) + b"\r\n\r\n"


def damaged_request(rng):
    return damaged_bytes(posted(form()[1]), rng) + b"\r\n\r\n"


def damaged_form(rng):
    return posted(damaged_json(form()[1], rng))


def damaged_picture(rng):
    return posted(form(damaged_bytes(form()[0], rng))[1])


def large(rng):
    length = rng.choice((49 * 2**20, 10**12, 10**30))
    return posted(b"x" * 1000, Content_Length=length)


def endless_chunks(rng):
    size = rng.choice((b"-1", b"g", b"F" * 40, b"fffffff", b""))
    start = message(
        "POST /stylise HTTP/1.1", Transfer_Encoding="chunked", Content_Type="application/json"
    )
    return start + size + b"\r\n" + b"x" * 100 + b"\r\n"


def chunks_that_are_large(rng):
    start = message(
        "POST /stylise HTTP/1.1", Transfer_Encoding="chunked", Content_Type="application/json"
    )
    return start + (b"100000\r\n" + bytes(2**20) + b"\r\n") * 50 + b"0\r\n\r\n"


def wrong_length(rng):
    return posted(b"{}", Content_Length=rng.choice(("-1", "x", "1, 2", "\xb2", "1e3", "0x10", "")))


def wrong_host(rng):
    hosts = ("elsewhere.example", "localhost.elsewhere.example", "", "x" * 999, "[", "\xff", "a b")
    return message("GET /model.json HTTP/1.1", host=rng.choice(hosts))


def broken_multipart(rng):
    kinds = (
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=",
    )
    body = b'--x\r\nContent-Disposition: form-data; name="content"; filename="../../x"\r\n\r\n'
    return posted(body + rng.randbytes(100), rng.choice(kinds))


def method(rng):
    name = rng.choice(("BREW", "PUT", "DELETE", "TRACE", "CONNECT", "OPTIONS", "get", "X" * 9999))
    return message(f"{name} {rng.choice(('/', '/stylise', '*', 'elsewhere.example:443'))} HTTP/1.1")


def path(rng):
    paths = (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/samples/style/..%2f..%2fLICENSE",
        "/%00",
        "/%",
        "/%zz",
        "//",
        "/\xff\xfe",
        "/" + "x" * 60_000,
        "/samples/style/" + "x" * 300,
        "http://elsewhere.example/",
        "/page.js/x",
        "/samples/style",
        "/?" + "a=b&" * 9000,
    )
    return message(f"GET {rng.choice(paths)} HTTP/1.1")


def version(rng):
    line = rng.choice(
        ("GET / HTTP/9.9", "GET /", "GET / HTTP/1.1 x", "PRI * HTTP/2.0", " GET / HTTP/1.1")
    )
    return message(line)


def headers(rng):
    fields = rng.choice(
        (
            {f"X-{i}": "x" for i in range(2000)},
            {"X": "x" * 100_000},
            {"X": "\x00"},
            {"X\x00": "x"},
            {"Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"},
            {"Expect": "nothing"},
            {"Transfer-Encoding": "gzip"},
            {"Range": "bytes=9-1,-5,x-"},
            {"Range": "bytes=" + ",".join(f"{i}-{i}" for i in range(2000))},
            {"If-Modified-Since": "yesterday"},
            {"Accept-Encoding": "\xff"},
            {"Cookie": "=;" * 999},
        )
    )
    return message("GET /page.css HTTP/1.1", **fields)


def several(rng):
    whole = message("GET / HTTP/1.1", Connection="keep-alive")
    return whole * rng.randint(1, 20) + nonsense(rng)


ANSWERED = (
    nonsense,
    damaged_request,
    damaged_form,
    damaged_form,
    damaged_form,
    damaged_picture,
    damaged_picture,
    large,
    endless_chunks,
    chunks_that_are_large,
    wrong_length,
    wrong_host,
    broken_multipart,
    method,
    path,
    version,
    headers,
    several,
)


@pytest.fixture
def demo(attack, tmp_path):
    """The process of a server, and its port."""
    words = ["demo", "--python", "--checkpoint=mini", "--port=0", f"--max-size={SIDE}"]
    patience = "from student_jax.demo import server; server.TIMEOUT_S = 5"
    with Process(attack, words, tmp_path / "log.txt", patience) as process:
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", process.said())):
            assert process.wait(0.1) is None, process.said()
        yield process, int(found[1])


def test_requests(attack, demo):
    process, port = demo

    def connect():
        return socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)

    def ask(sent):
        """All that comes back."""
        answer = b""
        with connect() as connection:
            try:
                connection.sendall(sent)
                while data := connection.recv(2**16):
                    answer += data
            except ConnectionError:  # refused before it was whole
                pass
        return answer

    def leave(sent, rng):
        """Go away before an answer, in peace or not."""
        with connect() as connection:
            connection.sendall(sent)
            if rng.random() < 0.5:  # the connection is reset instead of closed
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def attempt(rng):
        sent = rng.choice(ANSWERED)(rng)
        said, leaves = len(process.said()), rng.random() < 0.25
        if leaves:
            leave(sent[: rng.randrange(len(sent))], rng)
            status = None
        else:
            found = re.match(rb"HTTP/1\.1 (\d{3})", ask(sent))
            status = int(found[1]) if found else None
        # Others do not notice.
        assert ask(message("GET / HTTP/1.1")).startswith(b"HTTP/1.1 200 "), sent[:300]
        assert process.wait(0) is None
        assert process.said()[said:] == "", (sent[:300], process.said()[said:])
        assert status not in (500, 502), sent[:300]
        if status is None and not leaves:
            raise Silent(f"no answer to {sent[:300]}")
        if status is not None and status >= 400:
            raise Refused

    attack(100, attempt, LIMIT_S)
