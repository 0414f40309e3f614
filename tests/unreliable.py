"""A server like S3 on the loopback interface, and a way to it that fails at random."""

import contextlib
import http.client
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from moto.server import ThreadedMotoServer

KEY = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
BUCKET = "bucket"


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """An S3 of moto with an empty bucket; its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key"), KEY.values(), strict=True))
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
        client.create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.stop()


@contextlib.contextmanager
def unreliable(url: str, share: float, seed: int = 0) -> Iterator[tuple[str, dict[str, int]]]:
    """An address that passes requests on to another one: that share of them is answered with 500,
    and as many are cut, half of the uploads within their data.

    Yields:
        The address, and counts of what happened.
    """
    there = url.removeprefix("http://")
    rng, counts = random.Random(seed), {"passed": 0, "refused": 0, "cut": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            luck = rng.random()
            if luck < share:
                counts["cut"] += 1
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if luck < 2 * share:
                counts["refused"] += 1
                self.send_response(500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(there, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            counts["passed"] += 1
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            of_head = self.command == "HEAD"
            size = answer.getheader("Content-Length", "0") if of_head else str(len(data))
            self.send_header("Content-Length", size)
            self.end_headers()
            if luck > 1 - share and len(data) > 1:
                counts["cut"] += 1
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data)
            connection.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request

        def log_message(self, *_: object) -> None:
            pass

        def log_error(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that was killed in the middle is what this is about."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", counts
    finally:
        server.shutdown()
        server.server_close()
