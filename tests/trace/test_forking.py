"""Forks and worker processes: every span once, from the process that recorded it."""

import subprocess
import sys
import threading
from collections import Counter
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from starpo_trace import semconv
from starpo_trace.convert.otlp import SpanRow, decode_protobuf
from starpo_trace.store.segments import Record, list_segments, read_segment


class Receiver:
    """A local OTLP/HTTP endpoint that keeps the names of the spans it takes."""

    def __init__(self):
        self.names = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                receiver.names += [
                    span.name
                    for group in request.resource_spans
                    for scope in group.scope_spans
                    for span in scope.spans
                ]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def names_in(store):
    return [
        row.name
        for path in list_segments(store)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, str(path))
        if isinstance(row, SpanRow)
    ]


OS_FORK = """
import os, sys, threading
import starpo_trace

starpo_trace.instrument({destination})

def work(name):
    with starpo_trace.trajectory(name):
        pass

def keep_busy(stop):
    number = 0
    while not stop.is_set():
        work("noise")

stop = threading.Event()
thread = threading.Thread(target=keep_busy, args=(stop,))
thread.start()  # so that forks happen while locks are held and requests are under way
for number in range(10):
    work(f"parent {{number}}")
    child = os.fork()
    if child == 0:
        work(f"child {{number}}")
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
work("last")
assert starpo_trace.flush(30)
stats = starpo_trace.stats()
assert stats["dropped"] == stats["rejected"] == 0, stats
"""

PROCESSES = """
import multiprocessing, sys
import starpo_trace

def work(number):
    starpo_trace.instrument({destination})
    with starpo_trace.trajectory(f"worker {{number}}"):
        pass
    open_run = starpo_trace.trajectory(f"open {{number}}")
    open_run.__enter__()  # ended, as abandoned, when the worker leaves
    work.kept = open_run

if __name__ == "__main__":
    if {method!r} == "fork":
        starpo_trace.instrument({destination})
        with starpo_trace.trajectory("parent"):
            pass
    context = multiprocessing.get_context({method!r})
    workers = [context.Process(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, worker.exitcode
"""


def run(code, tmp_path, **fields):
    path = tmp_path / "agent.py"
    path.write_text(code.format(**fields))
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def check_os_fork(names):
    counts = Counter(names)
    expected = [f"invoke_agent {who} {n}" for who in ("parent", "child") for n in range(10)]
    assert {name: counts[name] for name in expected} == dict.fromkeys(expected, 1)
    assert counts["invoke_agent last"] == 1


@pytest.mark.slow
def test_forked_children_and_the_store(tmp_path):
    """Ten forks amid a busy thread: each span of parent and children is stored once."""
    store = tmp_path / "store"
    run(OS_FORK, tmp_path, destination=f"store={str(store)!r}")
    check_os_fork(names_in(store))


@pytest.mark.slow
def test_forked_children_and_an_endpoint(tmp_path):
    """The same through OTLP, each process with a connection of its own."""
    with Receiver() as receiver:
        run(OS_FORK, tmp_path, destination=f"endpoint={receiver.url!r}")
        check_os_fork(receiver.names)


GRPC_FORK = """
import os, sys
import starpo_trace

os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = "grpc"
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:{port}"
starpo_trace.instrument()
for number in range(3):
    with starpo_trace.trajectory(f"parent {{number}}"):
        pass
    assert starpo_trace.flush(60)  # so that a channel is open
    child = os.fork()
    if child == 0:
        with starpo_trace.trajectory(f"child {{number}}"):
            pass
        assert starpo_trace.flush(60)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


class GrpcReceiver(TraceServiceServicer):
    """A local OTLP/gRPC endpoint that keeps the names of the spans it takes."""

    def __init__(self):
        self.names = []
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def Export(self, request, _context):  # noqa: N802 (gRPC's name)
        self.names += [
            span.name
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        return ExportTraceServiceResponse()

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None).wait()


@pytest.mark.slow
def test_forked_children_and_grpc(tmp_path):
    """gRPC dies in forks; the children's spans arrive all the same, through a helper."""
    with GrpcReceiver() as receiver:
        run(GRPC_FORK, tmp_path, port=receiver.port)
    expected = [f"invoke_agent {who} {n}" for who in ("child", "parent") for n in range(3)]
    assert sorted(receiver.names) == expected


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("is_store", [True, False])
def test_workers_of_multiprocessing(tmp_path, method, is_store):
    """However workers begin, what they recorded is there when they are gone, open runs too."""
    store = tmp_path / "store"
    with Receiver() as receiver:
        destination = f"store={str(store)!r}" if is_store else f"endpoint={receiver.url!r}"
        run(PROCESSES, tmp_path, method=method, destination=destination)
        names = names_in(store) if is_store else receiver.names
    expected = [f"invoke_agent {kind} {n}" for kind in ("open", "worker") for n in range(3)]
    if method == "fork":
        expected.append("invoke_agent parent")
    assert sorted(names) == sorted(expected)


OPEN_SPANS = """
import os, sys
import openai
import starpo_trace
from starpo_trace.testing import Reply, ScriptedServer

starpo_trace.instrument(store={store!r})
server = ScriptedServer([Reply(content="one two three four")]).__enter__()  # the parent's to close
with (
    openai.OpenAI(base_url=server.base_url, api_key="none") as client,
    starpo_trace.trajectory("agent"),
):
    stream = client.chat.completions.create(model="m", messages=[], stream=True)
    next(iter(stream))
    with starpo_trace.step("tool", "parallel"):
        child = os.fork()
        if child == 0:
            with starpo_trace.step("tool", "own"):
                pass
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
server.__exit__(None, None, None)
assert starpo_trace.flush(30)
"""


@pytest.mark.slow
def test_a_forked_child_ends_no_span_of_its_parents(tmp_path, read_store):
    """An open stream, step and run are in the child too, and are the parent's to end."""
    store = tmp_path / "store"
    run(OPEN_SPANS, tmp_path, store=str(store))
    rows = read_store(store)
    assert sorted(row.name for row in rows) == [
        "chat m",
        "execute_tool own",
        "execute_tool parallel",
        "invoke_agent agent",
        "trajectory part",
    ]
    [call] = [row for row in rows if row.name == "chat m"]
    assert call.attributes[semconv.STREAM_OUTCOME] == "exhausted"
    assert "one two three four" in call.attributes[semconv.OUTPUT_MESSAGES]


POOL = """
import multiprocessing
import starpo_trace

def work(number):
    with starpo_trace.trajectory(f"worker {{number}}"):
        pass

if __name__ == "__main__":
    starpo_trace.instrument(store={store!r})
    for _ in range(3):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.map(work, range(20))
"""


@pytest.mark.slow
def test_a_pool_that_is_terminated_loses_nothing(tmp_path):
    """Leaving `with Pool()` sends each worker SIGTERM while it may be delivering already."""
    store = tmp_path / "store"
    run(POOL, tmp_path, store=str(store))
    expected = {f"invoke_agent worker {number}": 3 for number in range(20)}
    assert Counter(names_in(store)) == expected
