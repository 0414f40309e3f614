import base64
import contextlib
import http.client
import io
import json
import logging
import re
import socket
import struct
import subprocess
import threading
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from browser import Browser
from flax import nnx
from PIL import Image

from student_jax import STTR
from student_jax.demo import server as demo_server
from student_jax.demo import static_page
from student_jax.demo.samples import PAGE
from student_jax.demo.server import (
    HEADERS,
    MAX_BODY_BYTES,
    DemoConfig,
    Server,
    page_app,
    python_app,
)
from student_jax.inference.stylist import Stylist
from student_jax.weights.folder import open_student
from triplets import InputError


@pytest.fixture(scope="module")
def stylist(tiny_model):
    return Stylist(STTR(tiny_model, rngs=nnx.Rngs(1)), style_scale=64)


@contextlib.contextmanager
def running(app, config):
    with Server(app, config) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        yield server
        server.stop()
        thread.join()


@pytest.fixture(scope="module")
def server(stylist):
    config = DemoConfig(port=0, max_size=64)
    with running(python_app(stylist, config), config) as server:
        yield server


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, response.headers["Content-Type"], data


def stylise(server, **fields):
    request = {
        "content": data_url(64, 64),
        "styles": [data_url(64, 64)],
        "blend": 0.5,
        "strength": 1.0,
        "preserve_colour": False,
    }
    body = json.dumps(request | fields)
    status, kind, data = ask(server, "POST", "/stylise", body, {"Content-Type": "application/json"})
    if kind == "image/png":
        return status, np.array(Image.open(io.BytesIO(data)))
    return status, json.loads(data)["error"]


def data_url(height, width, colour="red"):
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(encoded, "PNG")
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def test_page_and_samples(server):
    status, kind, page = ask(server, "GET", "/")
    assert (status, kind) == (200, "text/html; charset=utf-8") and b"<form" in page
    for name, kind in (("page.js", "javascript"), ("page.css", "css"), ("icon.svg", "svg")):
        assert kind in ask(server, "GET", f"/{name}")[1]
    samples = json.loads(ask(server, "GET", "/model.json")[2])["samples"]
    status, kind, picture = ask(server, "GET", f"/samples/style/{samples['style'][0]}")
    assert (status, kind) == (200, "image/jpeg")
    Image.open(io.BytesIO(picture)).verify()


def test_stylises_uploads_and_samples(server):
    status, upload = stylise(server)
    assert status == 200 and upload.shape == (64, 64, 3)
    samples = json.loads(ask(server, "GET", "/model.json")[2])["samples"]
    status, sample = stylise(server, content="sample:" + samples["content"][0])
    assert status == 200 and min(sample.shape[:2]) == 64
    red = np.array([255, 0, 0])
    assert (stylise(server, strength=0)[1] == red).all()
    two = [data_url(64, 64, "blue"), data_url(64, 64, "green")]
    assert stylise(server, styles=two, blend=0.3)[0] == 200
    first = stylise(server, styles=two[:1])[1]
    np.testing.assert_array_equal(stylise(server, styles=two, blend=0)[1], first)
    status, smaller = stylise(server, size=32, stroke_size=2)
    assert status == 200 and smaller.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content": None}, "choose a content."),
        ({"styles": [None]}, "choose a style."),
        ({"styles": []}, "expected one or two styles"),
        ({"strength": 2}, "strength is 2.0"),
        ({"stroke_size": 100}, "stroke_size is 100.0; expected 0.25 to 8"),
        ({"size": 0}, "and a size"),
        ({"strength": "much"}, "not a request of this page; expected styles, strength, blend"),
        ({"content": "data:image/png;base64,AAAA"}, "no JPEG, PNG, WebP"),
        ({"content": "data:image/png;base64,%"}, "the content is not a picture"),
        ({"content": "data:image/png;base64,\u00e4"}, "the content is not a picture"),
        ({"content": data_url(64, 16_400)}, "the content is too long, 16400 x 64 px"),
        ({"content": data_url(8000, 8000)}, "8000 x 8000 pixels, more than the limit"),
        ({"content": "sample:../../LICENSE"}, "there is no content sample"),
    ],
)
def test_unusable_requests_get_one_sentence(server, fields, message):
    status, error = stylise(server, **fields)
    assert status == 400 and message in error and "\n" not in error and error.endswith(".")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not a request of this page: Expecting"),
        (b"\xff", "not a request of this page: 'utf-8' codec"),
        (b"[]", "not a request of this page; expected a JSON object."),
        (b"{}", "not a request of this page; expected styles, strength, blend"),
        (b"[" * 100_000, "not a request of this page"),
        (
            b'{"styles": ["a"], "strength": 1%s, "blend": 0, "preserve_colour": 0}' % (b"0" * 400),
            "not a request of this page",
        ),
    ],
)
def test_bodies_that_are_not_a_request(server, body, message):
    status, _, reply = ask(server, "POST", "/stylise", body, {"Content-Type": "application/json"})
    error = json.loads(reply)["error"]
    assert status == 400 and message in error and error.endswith(".")


def test_a_content_that_was_not_chosen(server):
    """The page leaves the field out."""
    request = {"styles": [None], "strength": 1, "blend": 0, "preserve_colour": False}
    kind = {"Content-Type": "application/json"}
    status, _, answer = ask(server, "POST", "/stylise", json.dumps(request), kind)
    assert status == 400 and json.loads(answer)["error"] == "choose a content."


def test_what_is_none_of_the_pages_business(server):
    assert ask(server, "GET", "/samples/style/../../../LICENSE")[0] == 404
    assert ask(server, "GET", "/etc/passwd")[0] == 404
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert ask(server, "POST", "/stylise", "{}", form)[0] == 415
    assert ask(server, "GET", "/stylise")[0] == 404
    for host, status in (("elsewhere.example", 400), ("localhost:1", 200), ("[::1]:1", 200)):
        assert ask(server, "GET", "/", headers={"Host": host})[0] == status
    large = {"Content-Type": "application/json", "Content-Length": str(MAX_BODY_BYTES + 1)}
    status, _, answer = ask(server, "POST", "/stylise", b"", large)
    assert status == 413 and b"together they may have 36 MB at most" in answer


def raw(server, request):
    """Status of the answer to bytes, and the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request)
        answer = connection.makefile("rb").read()
    return int(answer.split()[1]) if answer else None, answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"POST /stylise HTTP/1.1\r\nHost: localhost\r\nContent-Length: \xb2\r\n\r\n", 400),
    ],
)
def test_malformed_requests_get_an_answer(server, request_, status):
    assert raw(server, request_)[0] == status


def test_every_answer_is_isolated_and_of_this_site(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for path in ("/", "/nothing"):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert all(response.headers[name] == value for name, value in HEADERS.items())
    connection.close()


def test_clients_that_are_slow(server, monkeypatch):
    """A request that does not end gets an answer; a connection without one is closed."""
    monkeypatch.setattr(demo_server, "TIMEOUT_S", 0.2)
    begun = (
        b"POST /stylise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\nConnection: close\r\n\r\n{"
    )
    status, answer = raw(server, begun)
    assert status == 408 and b"did not come to its end" in answer
    assert raw(server, b"GET / HT") == (None, b"")


def test_one_picture_at_a_time(stylist, monkeypatch):
    """Others wait for their turn, and are told if it does not come."""
    monkeypatch.setattr(demo_server, "TIMEOUT_S", 0.2)
    entered, leave = threading.Event(), threading.Event()

    def slow(*_):
        entered.set()
        leave.wait(30)
        return base64.b64decode(data_url(8, 8).partition(",")[2])

    monkeypatch.setattr(demo_server, "_encoded", slow)
    config = DemoConfig(port=0, max_size=64)
    with running(python_app(stylist, config), config) as server:
        first = threading.Thread(target=stylise, args=(server,))
        first.start()
        assert entered.wait(30)
        status, error = stylise(server)
        assert (status, error) == (503, "others are waiting; try again.")
        assert ask(server, "GET", "/")[0] == 200  # the page itself does not wait
        leave.set()
        first.join()


def test_what_fails_within_gets_an_answer(server, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(demo_server, "_encoded", broken)
    assert stylise(server) == (500, "this failed; see the terminal.")


def test_a_client_that_leaves_is_no_defect(server, caplog):
    logging.getLogger("uvicorn").addHandler(caplog.handler)  # which keeps from the root's handlers
    for sent in (
        b"",
        b"GET / HTTP/1.1\r\n",
        b"GET /samples/style/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /stylise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\n\r\n{",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(sent)
            # The connection is reset instead of closed.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ask(server, "GET", "/")[0] == 200
    logging.getLogger("uvicorn").removeHandler(caplog.handler)
    # What an earlier test's request has left may arrive only now.
    assert not re.search("Disconnect|Reset|BrokenPipe", caplog.text), caplog.text


def test_places_where_it_cannot_listen(server, stylist):
    port = server.port
    with pytest.raises(InputError, match=rf"127\.0\.0\.1, port {port}: .* give another --port"):
        Server(python_app(stylist, DemoConfig()), DemoConfig(port=port))
    for fields in ({"port": 70000}, {"port": -1}, {"max_size": 0}):
        with pytest.raises(ValueError, match="expected"):
            DemoConfig(**fields)


def test_a_page_that_is_not_built(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setattr(static_page, "PAGE", tmp_path)
    with pytest.raises(InputError, match="run `make page` in a clone of the repository, or let"):
        static_page.write_page(STTR(tiny_model, rngs=nnx.Rngs(1)), tmp_path / "page")


def write_page(student, folder):
    """The page, without checks of symbolic shapes, which jaxtyping cannot do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        static_page.write_page(student, folder)


def painted(width, height, seed):
    """A picture with colours and edges everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def set_value(browser, name, value):
    browser.run(
        f"(e => {{ e.value = {value}; e.dispatchEvent(new Event('input')) }})"
        f"(document.getElementById('{name}'))"
    )


def result(browser):
    """The picture that the page would download."""
    browser.until("!document.getElementById('go').disabled")
    browser.run(
        "fetch(document.getElementById('download').href).then(r => r.blob()).then(b => {"
        "const reader = new FileReader(); reader.onload = () => window.got = reader.result;"
        "reader.readAsDataURL(b) })"
    )
    browser.until("window.got")
    data = base64.b64decode(browser.run("window.got").partition(",")[2])
    browser.run("delete window.got")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)


@pytest.fixture(scope="module")
def built_page():
    """The page has ONNX Runtime for browsers."""
    if not (PAGE / "runtime" / "runtime.json").is_file():
        subprocess.run(["make", "page"], cwd=Path(__file__).parents[3], check=True)


@pytest.mark.slow  # starts a browser
@pytest.mark.usefixtures("built_page")
@pytest.mark.parametrize("engine", ["browser", "python"])
def test_in_a_browser(engine, tmp_path):
    """Uploads, settings and errors; the result is that of the Python program."""
    model = open_student("modulated", "best")
    stylist, config = Stylist(model), DemoConfig(port=0)
    if engine == "browser":
        write_page(model, tmp_path / "page")
        app = page_app(tmp_path / "page", config)
    else:
        app = python_app(stylist, config)
    photo, first, second = painted(160, 128, 0), painted(96, 128, 1), painted(128, 96, 2)
    files = {"content": photo, "style": first, "second": second}
    for name, picture in files.items():
        picture.save(tmp_path / f"{name}.png")
    (tmp_path / "broken.heic").write_bytes(b"nothing")
    ready = "!document.getElementById('go').disabled"
    error = "document.getElementById('error').textContent"
    with (
        running(app, config) as server,
        Browser(f"http://127.0.0.1:{server.port}/?wasm", tmp_path / "profile") as browser,
    ):
        browser.until(ready)
        assert browser.run(error) == ""
        browser.click("#go")
        browser.until(f"{error} == 'Choose a photo.'")
        browser.upload("content", tmp_path / "broken.heic")
        browser.until(f"{error}.startsWith('Cannot read broken.heic')")

        for name in files:
            browser.upload(name, tmp_path / f"{name}.png")
            browser.until(f"!document.querySelector('[data-slot={name}] .preview').hidden")
        set_value(browser, "blend", 30)
        browser.click("#go")
        expected = stylist(photo, [first, second], weights=[0.7, 0.3])
        # The runtimes order their sums differently, and round to the neighbour of a grey level.
        difference = np.abs(result(browser) - np.rint(255 * expected))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01

        browser.click(".remove")
        set_value(browser, "strength", 60)
        set_value(browser, "stroke", 2)
        browser.click("#preserve")
        browser.click("#go")
        expected = stylist.with_stroke_size(2)(photo, first, 0.6, preserve_colour=True)
        difference = np.abs(result(browser) - np.rint(255 * expected))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01

        set_value(browser, "compare", 25)
        clip = browser.run("document.getElementById('before').style.clipPath")
        assert clip == "inset(0px 75% 0px 0px)"
        assert browser.run(error) == ""
    if engine == "browser":
        # The host is gone: the second visit has all of it.
        with Browser(f"http://127.0.0.1:{server.port}/?wasm", tmp_path / "profile") as browser:
            browser.until(ready)
            assert browser.run("document.getElementById('status').innerText").startswith("Ready")


@pytest.mark.slow  # starts a browser
@pytest.mark.usefixtures("built_page")
def test_a_model_that_fails_to_load(tmp_path):
    """The page says so, and stays usable."""
    write_page(open_student("modulated", "best"), tmp_path / "page")
    (tmp_path / "page" / "model" / "stylize.onnx").write_bytes(b"broken")
    config = DemoConfig(port=0)
    with (
        running(page_app(tmp_path / "page", config), config) as server,
        Browser(f"http://127.0.0.1:{server.port}/?wasm", tmp_path / "profile") as browser,
    ):
        browser.until("!document.getElementById('go').disabled")
        browser.until(
            "document.getElementById('error').textContent.startsWith('The model did not load')"
        )
