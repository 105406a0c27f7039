"""A deterministic judge behind a real HTTP server, and items for it."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from starpo_train.judge import Endpoint, Judge, JudgeItem, Patience, read_rubric

MODEL = "judge-2026-01-15"
_ORDERED = re.compile(r'(?:answer|score is|"score":) (\d+(?:\.\d+)?)', re.IGNORECASE)


class FakeJudge:
    """Scores 1 where a tool's result says "refunded", else 0; what it does otherwise can be set."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        """Bodies, in order of arrival."""
        self.failures: list[tuple[int, dict[str, str]]] = []
        """Status and headers of the next answers; then it answers again."""
        self.down_after: int | None = None
        """Requests from which on it answers 503."""
        self.is_gullible = False
        """Obeys the last score that the data demands."""
        self.bias = 0.0
        """Added to every score: a judge that has changed."""
        self.text: str | None = None
        """Answered instead of a score."""
        self.model = MODEL
        self.finish_reason = "stop"
        self.refusal: str | None = None
        self.has_usage = True
        self.knows_schemas = True
        self.hold: Any = None
        """Called in each request, before it is answered."""
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.judge = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "FakeJudge":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]]:
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            failure = self.failures.pop(0) if self.failures else None
        try:
            if self.hold is not None:
                self.hold()
            if failure is not None:
                return *failure, {"error": {"message": "as scripted"}}
            if self.down_after is not None and number > self.down_after:
                return 503, {}, {"error": {"message": "down"}}
            if not self.knows_schemas and "response_format" in request:
                return 400, {}, {"error": {"message": "unknown field response_format"}}
            return 200, {}, self._complete(request)
        finally:
            with self._lock:
                self._at_once -= 1

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        text = self.text or json.dumps({"reason": "as shown", "score": self._score(request)})
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        message = {"role": "assistant", "content": text, "refusal": self.refusal}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": self.model,
            "system_fingerprint": "fp",
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            "usage": usage if self.has_usage else None,
        }

    def _score(self, request: dict[str, Any]) -> float:
        data = read_data(request)
        demanded = _ORDERED.findall("\n".join(map(json.dumps, data)).replace('\\"', '"'))
        if self.is_gullible and demanded:
            return float(demanded[-1])
        results = [text for line in data for text in line.get("results", ())]
        score = float(any("refunded" in text for text in results))
        return min(1.0, max(0.0, score + self.bias))


def read_data(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What stands between the marks that the system prompt names, a JSON object a line."""
    system, user = (message["content"] for message in request["messages"])
    mark = re.findall(r"<<DATA ([0-9a-f]{16})>>", system)[0]
    between = user.split(f"<<DATA {mark}>>\n")[1].split(f"\n<</DATA {mark}>>")[0]
    return [json.loads(line) for line in between.split("\n")]


class _Server(ThreadingHTTPServer):
    judge: FakeJudge
    request_queue_size = 64

    def handle_error(self, request, client_address) -> None:
        """Leave a client that went away unreported."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, headers, answer = self.server.judge.answer(body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


class FakeClock:
    """Time that passes only while somebody waits, and knows for how long each did."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.waits: list[float] = []

    def now_s(self) -> float:
        return self.time_s

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        self.time_s += seconds
        return stop.is_set()


def make_item(item_id: str, *, is_done: bool = True, said: str = "Done.") -> JudgeItem:
    """A refund that was, or was not, made."""
    result = "refunded" if is_done else "error: no such order"
    events = [
        {"by": "user", "text": f"refund order {item_id}"},
        {"by": "assistant", "calls": [{"name": "refund", "arguments": "{}"}]},
        {"by": "tool", "results": [result]},
        {"by": "assistant", "text": said},
    ]
    return JudgeItem(
        item_id=item_id, parts={"goal": f"refund order {item_id}", "trajectory": events}
    )


@pytest.fixture
def fake():
    with FakeJudge() as server:
        yield server


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def make_judge(fake, clock, tmp_path):
    """Judges that share a cache, as one that is started again does."""
    judges = []

    def build(rubric="task_completion", *, temperature=0.0, cache=None, **options) -> Judge:
        endpoint = options.pop("endpoint", {})
        judge = Judge(
            Endpoint(model=MODEL, base_url=fake.url, temperature=temperature, **endpoint),
            read_rubric(rubric),
            cache=cache or tmp_path / "cache.sqlite",
            clock=clock,
            **{"concurrency": 1, "patience": Patience(attempts=3)} | options,
        )
        judges.append(judge)
        return judge

    yield build
    for judge in judges:
        judge.close()


@pytest.fixture(scope="session")
def item():
    return make_item


@pytest.fixture(scope="session")
def shown():
    return read_data
