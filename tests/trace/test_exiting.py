"""SIGTERM: what is open is ended and delivered, and the process dies as it would have."""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import starpo_trace
from starpo_trace import semconv
from starpo_trace.convert.otlp import SpanRow, decode_protobuf
from starpo_trace.store.segments import Record, list_segments, read_segment

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")


def rows_in(store):
    return [
        row
        for path in list_segments(store)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, str(path))
        if isinstance(row, SpanRow)
    ]


AGENT = """
import signal, sys, threading, time
import starpo_trace
{before}
starpo_trace.instrument(store={store!r})
{after}
with starpo_trace.trajectory("done"):
    pass
run = starpo_trace.trajectory("open")
run.__enter__()
print("ready", flush=True)
{wait}
"""


def terminate(store, *, before="", after="", wait="time.sleep(60)", environment=None, times=1):
    code = AGENT.format(store=str(store), before=before, after=after, wait=wait)
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    for _ in range(times):
        child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=180)
    return child.returncode, out, err


def ends_in(store):
    return sorted(
        (row.name, row.attributes[semconv.TRAJECTORY_END])
        for row in rows_in(store)
        if semconv.TRAJECTORY_END in row.attributes
    )


BOTH = [("invoke_agent done", "terminated"), ("invoke_agent open", "abandoned")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wait",
    [
        "time.sleep(60)",
        "threading.Event().wait()",
        "import asyncio; asyncio.run(asyncio.sleep(60))",
        "while True: pass",
    ],
)
def test_a_terminated_process_leaves_its_spans(tmp_path, wait):
    """Killed by the signal, as without us; the open run is there, abandoned, the segment sealed."""
    assert terminate(tmp_path, wait=wait) == (-signal.SIGTERM, "", "")
    assert ends_in(tmp_path) == BOTH
    assert [path.suffix for path in list_segments(tmp_path)] == [".otlp"]


@pytest.mark.slow
def test_a_busy_process_leaves_its_spans(tmp_path):
    """The signal finds the main thread anywhere, also while it hands a span over."""
    wait = """
while True:
    with starpo_trace.trajectory("busy"):
        pass
"""
    for number in range(5):
        store = tmp_path / str(number)
        assert terminate(store, wait=wait)[0] == -signal.SIGTERM
        assert set(BOTH) <= set(ends_in(store))


@pytest.mark.slow
def test_the_switch_is_honoured(tmp_path):
    """STARPO_SIGTERM=0 leaves the default action alone."""
    code, _, _ = terminate(tmp_path, environment={"STARPO_SIGTERM": "0"})
    assert code == -signal.SIGTERM
    assert ("invoke_agent open", "abandoned") not in ends_in(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_handler_of_the_programs_is_not_disturbed(tmp_path, place):
    """Installed before or after ours, it is the one that runs."""
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    code, _, err = terminate(tmp_path, **{place: handler})
    assert (code, err) == (7, "")
    assert ends_in(tmp_path) == BOTH  # by atexit


LEAVING = """
import sys
import starpo_trace
starpo_trace.instrument(endpoint=sys.argv[1])
with starpo_trace.trajectory("done"):
    pass
print("leaving", flush=True)
"""


@pytest.mark.slow
def test_a_process_that_is_delivering_already_is_let_to(tmp_path):
    """SIGTERM amid a normal exit, as a pool sends to its workers: the delivery is waited for."""
    asked, answer = threading.Event(), threading.Event()
    taken = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.set()
            answer.wait(20)
            self.send_response(200)
            self.end_headers()
            taken.append(True)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        child = subprocess.Popen(
            [sys.executable, "-c", LEAVING, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"leaving\n"
        assert asked.wait(20)
        time.sleep(0.3)  # its exit waits for the answer by now
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert child.poll() is None
        answer.set()
        _, err = child.communicate(timeout=20)
    finally:
        answer.set()
        server.shutdown()
        server.server_close()
        thread.join()
    assert (child.returncode, err, taken) == (-signal.SIGTERM, b"", [True])


@pytest.mark.slow
def test_an_endpoint_that_hangs_delays_the_end_only_so_long(tmp_path):
    """The process ends by the signal although its spans cannot be delivered."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        instrument = f"starpo_trace.uninstrument(); starpo_trace.instrument(endpoint={url!r})"
        code, _, err = terminate(tmp_path, after=instrument)
    assert code == -signal.SIGTERM
    assert "starpo_trace lost 2 of 2 spans" in err


@pytest.fixture
def default_action():
    """SIGTERM as Python finds it."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_uninstrument_puts_the_default_back(default_action, tmp_path):
    """Installed while instrumented, gone afterwards."""
    starpo_trace.instrument(store=tmp_path)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    starpo_trace.uninstrument()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_uninstrument_leaves_a_later_handler(default_action, tmp_path):
    """What the program installed meanwhile stays."""

    def theirs(*_):
        pass

    starpo_trace.instrument(store=tmp_path)
    signal.signal(signal.SIGTERM, theirs)
    starpo_trace.uninstrument()
    assert signal.getsignal(signal.SIGTERM) is theirs


def test_only_the_main_thread_installs(default_action, tmp_path):
    """From another thread Python allows no handler, and nothing is said about it."""
    thread = threading.Thread(target=starpo_trace.instrument, kwargs={"store": tmp_path})
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    starpo_trace.uninstrument()
