"""Receivers on free ports, and hand-made requests to send them."""

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from starpo_trace.collect.access import Address, TlsFiles, Tokens, load_tls
from starpo_trace.collect.commit import CommitLog
from starpo_trace.collect.grpc_server import GrpcService, start_grpc
from starpo_trace.collect.http_server import HttpApp, start_http
from starpo_trace.collect.limits import DEFAULT_LIMITS, Limits
from starpo_trace.collect.receiver import Receiver
from starpo_trace.convert.otlp import SpanRow, decode_protobuf
from starpo_trace.store.segments import Record, list_segments, read_segment

TRACE_ID = bytes(range(1, 17))


def make_request(*span_ids: int, trace_id: bytes = TRACE_ID, **attributes: str) -> Any:
    """A request with one span for each id."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = "agent"
    scope = group.scope_spans.add()
    scope.scope.name = "test"
    for span_id in span_ids:
        span = scope.spans.add(trace_id=trace_id, span_id=span_id.to_bytes(8, "big"), name="s")
        for key, value in attributes.items():
            span.attributes.add(key=key).value.string_value = value
    return request


def stored_ids(store: Path) -> list[int]:
    """Ids of the spans that a reader of the store finds, in order of storing."""
    ids = []
    for path in list_segments(store):
        for record in read_segment(path):
            assert isinstance(record, Record)
            rows = list(decode_protobuf(record.payload, "store"))
            assert all(isinstance(row, SpanRow) for row in rows)
            assert record.num_spans == len(rows)
            ids += [int(row.span_id or "", 16) for row in rows]
    return ids


def post(
    port: int,
    body: bytes,
    *,
    path: str = "/v1/traces",
    method: str = "POST",
    kind: str | None = "application/x-protobuf",
    **headers: str,
) -> Any:
    """One HTTP request -> its answer, read to the end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if kind is not None:
        named["content-type"] = kind
    try:
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return SimpleNamespace(
            status=response.status, body=response.read(), headers=response.headers
        )
    finally:
        connection.close()


def read_stats(port: int) -> dict[str, Any]:
    """What `GET /stats` says."""
    return json.loads(post(port, b"", path="/stats", method="GET", kind=None).body)


@pytest.fixture(scope="session")
def run_async() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines on one event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def start(run_async, tmp_path) -> Iterator[Callable[..., Any]]:
    """Starts receivers: `.http` and `.grpc` are their ports, `.store` their folder."""
    stops = []

    def start_one(
        *,
        limits: Limits = DEFAULT_LIMITS,
        tokens: Tokens | None = None,
        tls: TlsFiles | None = None,
        max_store_bytes: int | None = None,
    ) -> Any:
        store = tmp_path / "store"
        log = CommitLog(store, max_store_bytes=max_store_bytes)
        receiver = Receiver(log, limits)
        access = tokens or Tokens()
        anywhere = Address(host="127.0.0.1", port=0)
        context = load_tls(tls) if tls else None
        servers = [
            run_async(start_http(HttpApp(receiver, access), anywhere, context)),
            run_async(start_grpc(GrpcService(receiver, access), anywhere, tls)),
        ]

        def stop() -> None:
            for server in servers:
                run_async(server.stop())
            receiver.close()
            log.close()

        stops.append(stop)
        return SimpleNamespace(
            http=servers[0].port, grpc=servers[1].port, store=store, receiver=receiver
        )

    yield start_one
    for stop in stops:
        stop()


class Collect:
    """`starpo-trace collect` in its own process."""

    def __init__(self, store: Path, *options: object) -> None:
        command = [sys.executable, "-m", "starpo_trace.cli", "collect", "--store", str(store)]
        for name in ("--http", "--grpc"):
            if name not in options:
                command += [name, "127.0.0.1:0"]
        self.store = store
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stderr=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"},
        )
        self.lines: list[str] = []
        ports = self.wait_for(r"-> .*Ctrl-C")
        self.http, self.grpc = (
            int(found[1]) if (found := re.search(pattern, ports)) else 0
            for pattern in (r"https?://[^ ]*?:(\d+)/", r"grpc [^ ]*?:(\d+) ")
        )

    def wait_for(self, pattern: str) -> str:
        """The next line on stderr that matches."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line matches {pattern}: {self.lines}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal -> exit status."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=180)
        self.lines += rest.splitlines()
        return self.process.returncode


@pytest.fixture
def collect(tmp_path) -> Iterator[Callable[..., Collect]]:
    """Starts `starpo-trace collect` with options."""
    started: list[Collect] = []

    def start_one(*options: object) -> Collect:
        started.append(Collect(tmp_path / "store", *options))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        with one.process:  # closes its pipe
            pass


@pytest.fixture
def helpers() -> Any:
    """The functions above."""
    return SimpleNamespace(
        make_request=make_request, stored_ids=stored_ids, post=post, read_stats=read_stats
    )
