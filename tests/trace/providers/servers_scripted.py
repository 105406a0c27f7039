"""Scripted HTTP answers -> a real server on this machine, for any provider's API."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One scripted answer."""

    chunks: Sequence[bytes]
    """The body, in the pieces in which it is sent."""
    content_type: str = "application/json"
    """Its content type."""
    status: int = 200
    """HTTP status."""
    headers: dict[str, str] = field(default_factory=dict)
    """More headers."""
    is_cut: bool = False
    """Whether the connection breaks after the last piece."""
    stall_after: int | None = None
    """After so many pieces, wait until the server is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it arrived."""

    path: str
    """Path and query."""
    headers: dict[str, str]
    """Headers, names in lower case."""
    body: bytes
    """Body."""


class AnswerServer:
    """Answers requests from a script, the last answer again and again, and logs them."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[Request] = []
        """Every request, in order of arrival."""
        self.closing = threading.Event()
        """Set when the server is about to close."""
        self._answers = answers
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.answers = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="answer-server", daemon=True
        )

    @property
    def port(self) -> int:
        """Port it listens on."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Address of the server, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def choose_answer(self, request: Request) -> Answer:
        """Log a request and pick the answer to it."""
        with self._lock:
            self.requests.append(request)
            return self._answers[min(len(self.requests), len(self._answers)) - 1]

    def __enter__(self) -> "AnswerServer":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    answers: AnswerServer

    def handle_error(self, request, client_address) -> None:
        """Leave a client that went away unreported."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.answers.choose_answer(
            Request(path=self.path, headers=headers, body=body)
        )
        self.send_response(answer.status)
        self.send_header("content-type", answer.content_type)
        self.send_header("transfer-encoding", "chunked")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        for number, chunk in enumerate(answer.chunks):
            if number == answer.stall_after:
                self.server.answers.closing.wait()
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        if answer.is_cut:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""
