import base64
import http.client
import io
import json
import socket
import struct
import threading

import numpy as np
import pytest
from browser import Browser
from flax import nnx
from PIL import Image

from student_jax import STTR
from student_jax.demo.server import MAX_BODY_BYTES, DemoConfig, make_server
from student_jax.inference.stylist import Stylist
from triplets import InputError


@pytest.fixture(scope="module")
def stylist(tiny_model):
    return Stylist(STTR(tiny_model, rngs=nnx.Rngs(1)), style_scale=64)


@pytest.fixture(scope="module")
def server(stylist):
    with make_server(stylist, "127.0.0.1", 0, max_size=64) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
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
    samples = json.loads(ask(server, "GET", "/samples")[2])
    status, kind, picture = ask(server, "GET", f"/samples/style/{samples['style'][0]}")
    assert (status, kind) == (200, "image/jpeg")
    Image.open(io.BytesIO(picture)).verify()


def test_stylises_uploads_and_samples(server):
    status, upload = stylise(server)
    assert status == 200 and upload.shape == (64, 64, 3)
    samples = json.loads(ask(server, "GET", "/samples")[2])
    status, sample = stylise(server, content="sample:" + samples["content"][0])
    assert status == 200 and min(sample.shape[:2]) == 64
    red = np.array([255, 0, 0])
    assert (stylise(server, strength=0)[1] == red).all()
    two = [data_url(64, 64, "blue"), data_url(64, 64, "green")]
    assert stylise(server, styles=two, blend=0.3)[0] == 200
    first = stylise(server, styles=two[:1])[1]
    np.testing.assert_array_equal(stylise(server, styles=two, blend=0)[1], first)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content": None}, "choose a content."),
        ({"styles": [None]}, "choose a style."),
        ({"styles": []}, "expected one or two styles"),
        ({"strength": 2}, "strength is 2.0"),
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
    assert ask(server, "POST", "/stylise", "{}", form)[0] == 404
    assert ask(server, "GET", "/", headers={"Host": "elsewhere.example"})[0] == 403
    large = {"Content-Type": "application/json", "Content-Length": str(MAX_BODY_BYTES + 1)}
    status, _, answer = ask(server, "POST", "/stylise", b"", large)
    assert status == 413 and b"together they may have 36 MB at most" in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (
            b"POST /stylise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: \xb2\r\n\r\n",
            411,
        ),
    ],
)
def test_malformed_requests_get_an_answer(server, request_, status):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(request_)
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert b"nosniff" in head and b"Content-Security-Policy" in head
    assert json.loads(body)["error"].endswith(".")


def test_a_client_that_leaves_is_no_defect(server, capfd):
    for sent in (
        b"",
        b"GET / HTTP/1.1\r\n",
        b"GET /samples/style/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(sent)
            # The connection is reset instead of closed.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ask(server, "GET", "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_places_where_it_cannot_listen(server, stylist):
    port = server.server_port
    with pytest.raises(InputError, match=rf"127\.0\.0\.1, port {port}: .* give another --port"):
        make_server(stylist, "127.0.0.1", port, max_size=64)
    for fields in ({"port": 70000}, {"port": -1}, {"max_size": 0}):
        with pytest.raises(ValueError, match="expected"):
            DemoConfig(**fields)


@pytest.mark.slow  # starts a browser
def test_in_a_browser(server, tmp_path):
    """What a person does: choose, upload, stylise, compare, and meet an error."""
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photo.png")
    (tmp_path / "not.png").write_bytes(b"nothing")
    idle = "!document.getElementById('go').disabled"
    with Browser(f"http://127.0.0.1:{server.server_port}/", tmp_path / "profile") as browser:
        browser.until("document.querySelectorAll('[data-slot=second] img').length > 1")
        browser.click("#go")
        browser.until("document.getElementById('error').textContent == 'choose a content.'")
        browser.until(idle)

        browser.click("[data-slot=content] button")
        browser.click("[data-slot=style] button")
        browser.click("[data-slot=second] button", 1)
        browser.click("#go")
        browser.until("document.getElementById('after').naturalWidth > 0")
        browser.until(idle)
        browser.run(
            "(e => { e.value = 25; e.dispatchEvent(new Event('input')) })"
            "(document.getElementById('compare'))"
        )
        style = browser.run("document.getElementById('before').style.clipPath")
        assert style == "inset(0px 75% 0px 0px)"
        assert browser.run("document.getElementById('download').href").startswith("blob:")
        assert Image.open(io.BytesIO(browser.screenshot())).size[0] > 1000

        for name, expected in (("photo.png", "× 60 px"), ("not.png", "cannot read 'the content'")):
            root = browser("DOM.getDocument")["root"]["nodeId"]
            node = browser("DOM.querySelector", nodeId=root, selector="#content")["nodeId"]
            browser("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / name)])
            browser.until("chosen.content.value.startsWith('data:')")
            browser.click("#go")
            browser.until(f"document.body.innerText.includes({json.dumps(expected)})")
            browser.until(idle)
            browser.run("choose('content', null)")
