"""Scripted replies -> a real OpenAI-compatible HTTP server.

For tests of agents that use Starpo, and for Starpo's own: no model, no network beyond this
machine, and the server's request log as ground truth.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call that the scripted model makes."""

    id: str
    """Call id."""
    name: str
    """Tool name."""
    arguments: str
    """Argument text, sent verbatim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted answer. Streamed in pieces when the request asks for a stream."""

    content: str | None = None
    """Text of the answer."""
    reasoning_content: str | None = None
    """Reasoning, as DeepSeek and vLLM send it."""
    tool_calls: Sequence[ToolCall] = ()
    """Tool calls."""
    finish_reason: str | None = None
    """Default: `tool_calls` when there are some, else `stop`."""
    prompt_token_ids: Sequence[int] | None = None
    """vLLM: ids of the whole prompt."""
    token_ids: Sequence[int] | None = None
    """vLLM: ids of the answer."""
    logprobs: Sequence[float] | None = None
    """Log-probability of each token of the answer."""
    usage: Mapping[str, Any] | None = None
    """Usage object; streamed in a last chunk of its own."""
    extra_message: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the message."""
    status: int = 200
    """HTTP status; from 400 on an error object is sent instead."""
    num_stream_chunks: int = 4
    """Into how many pieces each text is cut."""
    cut_after_chunks: int | None = None
    """Break the connection after so many chunks."""
    error_after_chunks: int | None = None
    """Send an error event after so many chunks."""
    chunk_pause_s: float = 0.0
    """Time between chunks."""
    delay_s: float = 0.0
    """Time before the answer."""


Script = Sequence[Reply] | Callable[[dict[str, Any]], Reply]


class ScriptedServer:
    """A server on this machine that answers chat completions from a script.

    Example:
        with ScriptedServer([Reply(content="4")]) as server:
            client = openai.OpenAI(base_url=server.base_url, api_key="none")
            ...
            assert len(server.requests) == 1
    """

    def __init__(self, script: Script) -> None:
        """`script` is a list of replies, the last of which repeats, or a function of the body."""
        self.requests: list[dict[str, Any]] = []
        """Body of every request, in order of arrival."""
        self._script = script
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.scripted = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="scripted-server", daemon=True
        )

    @property
    def base_url(self) -> str:
        """What a client's `base_url` should be."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def port(self) -> int:
        """Port it listens on."""
        return self._server.server_port

    def choose_reply(self, body: dict[str, Any]) -> Reply:
        """Log a request and pick the answer to it."""
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
        if callable(self._script):
            return self._script(body)
        return self._script[min(number, len(self._script) - 1)]

    def __enter__(self) -> "ScriptedServer":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    scripted: ScriptedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        reply = self.server.scripted.choose_reply(body)
        time.sleep(reply.delay_s)
        if reply.status >= 400:
            error = {"message": f"scripted {reply.status}", "type": "scripted", "code": None}
            self._send_json({"error": error}, reply.status)
        elif body.get("stream"):
            self._send_stream(reply, str(body.get("model")))
        else:
            self._send_json(build_completion(reply, str(body.get("model"))), 200)

    def _send_json(self, value: Any, status: int) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_stream(self, reply: Reply, model: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(build_chunks(reply, model)):
            if number == reply.cut_after_chunks:
                self.close_connection = True
                return
            if number == reply.error_after_chunks:
                self._send_event(json.dumps({"error": {"message": "scripted", "type": "scripted"}}))
            self._send_event(json.dumps(event))
            time.sleep(reply.chunk_pause_s)
        self._send_event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _send_event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def build_completion(reply: Reply, model: str) -> dict[str, Any]:
    """Reply -> body of a `chat.completion`."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.reasoning_content is not None:
        message["reasoning_content"] = reply.reasoning_content
    if reply.tool_calls:
        message["tool_calls"] = [_wire_call(call) for call in reply.tool_calls]
    message.update(reply.extra_message)
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": _finish_reason(reply),
        "logprobs": _wire_logprobs(reply.logprobs),
    }
    if reply.token_ids is not None:
        choice["token_ids"] = list(reply.token_ids)
    completion = {**_envelope("chat.completion", model), "choices": [choice]}
    if reply.usage is not None:
        completion["usage"] = dict(reply.usage)
    if reply.prompt_token_ids is not None:
        completion["prompt_token_ids"] = list(reply.prompt_token_ids)
    return completion


def build_chunks(reply: Reply, model: str) -> Iterator[dict[str, Any]]:
    """Reply -> `chat.completion.chunk`s: role, reasoning, text, interleaved tool calls, end."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", **reply.extra_message}]
    if reply.content is not None:
        deltas[0]["content"] = ""
    for name, text in (("reasoning_content", reply.reasoning_content), ("content", reply.content)):
        deltas += [{name: piece} for piece in _cut(text or "", reply.num_stream_chunks)]
    deltas += _tool_call_deltas(reply)
    token_ids = _cut(list(reply.token_ids or ()), len(deltas))
    logprobs = _cut(list(reply.logprobs or ()), len(deltas))
    for number, delta in enumerate(deltas):
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if number < len(token_ids):
            choice["token_ids"] = token_ids[number]
        if number < len(logprobs):
            choice["logprobs"] = _wire_logprobs(logprobs[number])
        chunk = {**_envelope("chat.completion.chunk", model), "choices": [choice]}
        if number == 0 and reply.prompt_token_ids is not None:
            chunk["prompt_token_ids"] = list(reply.prompt_token_ids)
        yield chunk
    end = {"index": 0, "delta": {}, "finish_reason": _finish_reason(reply)}
    yield {**_envelope("chat.completion.chunk", model), "choices": [end]}
    if reply.usage is not None:
        envelope = _envelope("chat.completion.chunk", model)
        yield {**envelope, "choices": [], "usage": dict(reply.usage)}


def _tool_call_deltas(reply: Reply) -> list[dict[str, Any]]:
    """Heads first, then pieces of the arguments of all calls in turn."""
    deltas = []
    pieces = []
    for index, call in enumerate(reply.tool_calls):
        head = {"index": index, **_wire_call(call), "function": {"name": call.name}}
        head["function"]["arguments"] = ""
        deltas.append({"tool_calls": [head]})
        for turn, piece in enumerate(_cut(call.arguments, reply.num_stream_chunks)):
            tail = {"index": index, "function": {"arguments": piece}}
            pieces.append((turn, {"tool_calls": [tail]}))
    pieces.sort(key=lambda piece: piece[0])
    return deltas + [delta for _, delta in pieces]


def _cut(whole: Any, num_pieces: int) -> list[Any]:
    size = max(1, -(-len(whole) // max(1, num_pieces)))
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _wire_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _wire_logprobs(logprobs: Sequence[float] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    entries = [{"token": "", "bytes": [], "logprob": p, "top_logprobs": []} for p in logprobs]
    return {"content": entries, "refusal": None}


def _finish_reason(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")


def _envelope(kind: str, model: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 0, "model": model}
