"""A server of S3's API on a free port, what was asked of it, and ways in which a store fails."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import boto3
from moto.server import ThreadedMotoServer

NAME = "traces-of-agents"
URL = f"s3://{NAME}"
REGION = "eu-central-1"


class Bucket:
    """A bucket of the server; the client is an administrator's."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id="admin",
            aws_secret_access_key="admin",
        )
        self.client.create_bucket(
            Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": REGION}
        )

    def put(self, key: str, data: bytes, **fields) -> None:
        """Write an object."""
        self.client.put_object(Bucket=NAME, Key=key, Body=data, **fields)

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Write every file of a folder, as `aws s3 sync` does."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=NAME, Key=key)


class _Requests(logging.Handler):
    """Lines that the server logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def downloads(self) -> list[str]:
        """Keys, as in their URLs, of the objects whose bytes were asked for."""
        paths = [line.split('"')[1].split(" ")[1] for line in self.lines if '"GET /' in line]
        return sorted(path.removeprefix(f"/{NAME}/") for path in paths if "list-type" not in path)


@contextmanager
def serve_s3() -> Iterator[str]:
    """The server's URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@contextmanager
def watch_requests() -> Iterator[_Requests]:
    """What the server is asked meanwhile."""
    requests, log = _Requests(), logging.getLogger("werkzeug")
    level = log.level
    log.addHandler(requests)
    log.setLevel(logging.INFO)
    try:
        yield requests
    finally:
        log.removeHandler(requests)
        log.setLevel(level)


@contextmanager
def serve_answers(answer) -> Iterator[str]:
    """URL of a server that answers every GET by calling `answer` with the handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve_broken(endpoint: str, *, num_cuts: int) -> Iterator[str]:
    """A way to the server on which the first downloads break off half-way."""
    cuts = [num_cuts]

    def pass_on(handler: BaseHTTPRequestHandler) -> None:
        request = Request(endpoint + handler.path, headers=dict(handler.headers))
        with urlopen(request) as answer:
            body = answer.read()
            handler.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                    handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if "list-type" not in handler.path and cuts[0]:
            cuts[0] -= 1
            body = body[: len(body) // 2]
            handler.close_connection = True
        handler.wfile.write(body)

    with serve_answers(pass_on) as url:
        yield url
