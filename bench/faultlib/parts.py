"""What every part hands back, and the small things that several of them need."""

import os
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from starpo_trace.convert.otlp import SpanRow, decode_protobuf
from starpo_trace.store.segments import Record, list_segments, read_segment

HERE = Path(__file__).parent


@dataclass
class Part:
    """Results of one part."""

    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)

    def target(self, name: str, value: Any, target: str, *, met: bool) -> None:
        """Add a figure that has a target."""
        self.targets.append({"name": name, "value": value, "target": target, "met": bool(met)})


def read_rows(store: Path) -> tuple[list[SpanRow], int]:
    """Every readable span of a store, and the number of damaged places."""
    rows: list[SpanRow] = []
    num_damages = 0
    for path in list_segments(store):
        for item in read_segment(path):
            if isinstance(item, Record):
                found = decode_protobuf(item.payload, str(path))
                rows += [row for row in found if isinstance(row, SpanRow)]
            else:
                num_damages += 1
    return rows, num_damages


def count_ids(rows: list[SpanRow]) -> Counter:
    """How often each span is there."""
    return Counter((row.trace_id, row.span_id) for row in rows)


def child_command(module: str, *arguments: str) -> list[str]:
    """Run a file of this folder in a process of its own."""
    return [sys.executable, str(HERE / f"{module}.py"), *arguments]


def child_environment(**more: str) -> dict[str, str]:
    """Environment in which a child finds this folder and takes no settings from ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**kept, "PYTHONPATH": str(HERE.parent), "STARPO_DEBUG": "0", **more}


class Endpoint:
    """An OTLP/HTTP endpoint that may refuse, hang or reset, and remembers what it took."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.taken: Counter = Counter()
        self.names: Counter = Counter()
        self.num_refused = 0
        self.healthy = threading.Event()
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                """Broken connections are the point."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        fault = self.fault
        if fault is None:
            self.take(body)
        else:
            self.num_refused += 1
        if fault == "hang":
            self.healthy.wait()
            handler.close_connection = True
        elif fault == "reset":
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.close_connection = True
        else:
            handler.send_response(200 if fault is None else int(fault))
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        spans = [
            span
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        with self.lock:
            self.taken.update((span.trace_id.hex(), span.span_id.hex()) for span in spans)
            self.names.update(span.name for span in spans)

    def recover(self) -> None:
        """Take everything from now on."""
        self.fault = None
        self.healthy.set()

    def close(self) -> None:
        self.recover()
        self.server.shutdown()
        self.server.server_close()


def read_peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


Run = Callable[..., Part]
