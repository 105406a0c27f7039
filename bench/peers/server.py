"""Name of a scenario, sent as the model -> a scripted answer over real HTTP on this machine."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from peers import expected
from starpo_trace.testing import Reply, ToolCall, build_chunks, build_completion

HOLD_S = 10.0
"""How long a stream that never ends is held open."""

CALLS = [
    ToolCall(id=call_id, name=name, arguments=arguments)
    for call_id, name, arguments in expected.TOOL_CALLS
]
REPLIES = {
    "plain": Reply(content=expected.ANSWER, usage=expected.USAGE),
    "reasoning": Reply(content=expected.ANSWER, reasoning_content=expected.REASONING),
    "tokens": Reply(
        content=expected.ANSWER,
        prompt_token_ids=expected.PROMPT_IDS,
        token_ids=expected.RESPONSE_IDS,
        logprobs=expected.LOGPROBS,
    ),
    "tools": Reply(content=expected.ANSWER, tool_calls=CALLS),
    "json": Reply(content='{"answer": 4}'),
    "limited": Reply(status=429),
    "cut": Reply(content=expected.ANSWER * 5, num_stream_chunks=20, cut_after_chunks=4),
    "held": Reply(content=expected.ANSWER * 5, num_stream_chunks=20),
}


def build_responses_answer() -> dict[str, Any]:
    """Body of an answer of the Responses API: a reasoning item, a call and a message."""
    call_id, name, arguments = expected.TOOL_CALLS[0]
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "responses",
        "status": "completed",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "output": [
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": expected.REASONING}],
                "encrypted_content": expected.ENCRYPTED,
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
                "status": "completed",
            },
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": expected.ANSWER, "annotations": []}],
            },
        ],
        "usage": {
            "input_tokens": 120,
            "output_tokens": 38,
            "total_tokens": 158,
            "input_tokens_details": {"cached_tokens": expected.CACHED_TOKENS},
            "output_tokens_details": {"reasoning_tokens": expected.REASONING_TOKENS},
        },
    }


def build_responses_events() -> Iterator[dict[str, Any]]:
    """Events of the same answer, streamed."""
    answer = build_responses_answer()
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    for index, item in enumerate(answer["output"]):
        yield {"type": "response.output_item.added", "output_index": index, "item": item}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": "response.completed", "response": answer}


class ScenarioServer(ThreadingHTTPServer):
    """Answers until the block is left."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def base_url(self) -> str:
        """What a client's `base_url` should be."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of what is tested."""

    def __enter__(self) -> "ScenarioServer":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scenario, is_stream = body["model"], body.get("stream")
        if self.path.endswith("/responses"):
            if is_stream:
                events = (
                    (event["type"], {**event, "sequence_number": number})
                    for number, event in enumerate(build_responses_events())
                )
                self._send_events(events)
            else:
                self._send_json(200, build_responses_answer())
            return
        reply = REPLIES[scenario]
        if reply.status != 200:
            self._send_json(reply.status, {"error": {"message": "slow down", "type": "requests"}})
        elif is_stream:
            chunks = ((None, chunk) for chunk in build_chunks(reply, scenario))
            self._send_events(chunks, scenario)
        else:
            self._send_json(200, build_completion(reply, scenario))

    def _send_json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_events(self, events: Iterator[tuple[str | None, Any]], scenario: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, (name, event) in enumerate(events):
            if scenario == "cut" and number == 4:
                self.close_connection = True
                return
            if scenario == "held" and number == 4:
                time.sleep(HOLD_S)
            head = f"event: {name}\n" if name else ""
            self._send_chunk(f"{head}data: {json.dumps(event)}\n\n")
        if not self.path.endswith("/responses"):
            self._send_chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""
