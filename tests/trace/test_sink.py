"""The store's writer: acknowledged means on disk, and the agent never pays for a bad disk."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

import starpo_trace
from starpo_trace.convert.otlp import SpanRow, decode_protobuf
from starpo_trace.store.segments import Record, list_segments, read_segment
from starpo_trace.store.sink import SpanSink


def tracer_of(sink: SpanSink):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(sink)
    return provider.get_tracer("test")


def names_in(store: Path) -> list[str]:
    return [
        row.name
        for path in list_segments(store)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, str(path))
        if isinstance(row, SpanRow)
    ]


def test_flushed_spans_are_on_disk(tmp_path):
    """After a flush every accepted span can be read, while the segment is still open."""
    sink = SpanSink(tmp_path)
    tracer = tracer_of(sink)
    for number in range(2000):
        tracer.start_span(str(number)).end()
    assert sink.force_flush(20_000)
    assert sorted(names_in(tmp_path), key=int) == [str(number) for number in range(2000)]
    assert sink.read_stats() == {
        "sent": 2000,
        "accepted": 2000,
        "acknowledged": 2000,
        "rejected": 0,
        "waiting": 0,
        "dropped": 0,
    }
    assert [path.suffix for path in list_segments(tmp_path)] == [".open"]
    sink.shutdown()
    assert [path.suffix for path in list_segments(tmp_path)] == [".otlp"]


def test_acknowledged_spans_can_be_read_at_once(tmp_path):
    """When the writer says a span is on disk, a reader finds it there."""
    seen = threading.Event()
    found = []

    def check(spans):
        found.extend(span.name in names_in(tmp_path) for span in spans)
        seen.set()

    sink = SpanSink(tmp_path, on_acknowledged=check)
    tracer_of(sink).start_span("a").end()
    assert seen.wait(20)
    sink.shutdown()
    assert found == [True]


def test_many_threads_lose_nothing(tmp_path):
    """Eight threads at once: accepted = acknowledged = read."""
    sink = SpanSink(tmp_path)
    tracer = tracer_of(sink)

    def work():
        for _ in range(500):
            tracer.start_span("x").end()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.shutdown()
    assert len(names_in(tmp_path)) == 4000 == sink.read_stats()["acknowledged"]


def test_segments_are_sealed_by_size(tmp_path):
    """Large segments are closed and new ones begun; nothing is lost in between."""
    sink = SpanSink(tmp_path, segment_bytes=50_000)
    tracer = tracer_of(sink)
    for number in range(30):
        tracer.start_span("x", attributes={"text": "y" * 10_000, "n": number}).end()
        assert sink.force_flush(20_000)
    sink.shutdown()
    assert len(names_in(tmp_path)) == 30
    assert len(list_segments(tmp_path)) == 6


def test_a_record_stays_small_enough_for_readers(tmp_path):
    """Large spans are spread over several records of a few MiB."""
    sink = SpanSink(tmp_path)
    tracer = tracer_of(sink)
    for _ in range(12):
        tracer.start_span("x", attributes={"text": "y" * (1 << 20)}).end()
    sink.shutdown()
    records = [record for path in list_segments(tmp_path) for record in read_segment(path)]
    assert sum(record.num_spans for record in records if isinstance(record, Record)) == 12
    assert max(len(r.payload) for r in records if isinstance(r, Record)) < 4.1 * (1 << 20)


def test_a_full_queue_drops_and_counts(tmp_path):
    """Beyond its bounds the queue drops, and flush does not claim otherwise."""
    blocked, release = threading.Event(), threading.Event()

    def block(_spans):
        blocked.set()
        release.wait(20)

    sink = SpanSink(tmp_path, on_acknowledged=block, max_queue_spans=10)
    tracer = tracer_of(sink)
    tracer.start_span("first").end()
    assert blocked.wait(20)
    for _ in range(25):
        tracer.start_span("x").end()
    assert sink.read_stats()["dropped"] == 16  # the first still waits, too
    release.set()
    assert not sink.force_flush(20_000)
    assert sink.force_flush(20_000)  # nothing was dropped since
    sink.shutdown()
    assert len(names_in(tmp_path)) == 10


def test_a_span_that_cannot_be_encoded_costs_itself_only(tmp_path, monkeypatch):
    """Text that is no UTF-8 is rejected and counted; the spans beside it are written."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    sink = SpanSink(tmp_path)
    tracer = tracer_of(sink)
    for name in ("a", "\ud800", "b"):
        tracer.start_span(name).end()
    sink.force_flush(20_000)
    assert names_in(tmp_path) == ["a", "b"]
    assert sink.read_stats()["rejected"] == 1
    sink.shutdown()


def test_a_deleted_store_is_made_again(tmp_path):
    """Removing the folder under a running agent loses what was in it and nothing later."""
    store = tmp_path / "store"
    sink = SpanSink(store)
    tracer = tracer_of(sink)
    tracer.start_span("before").end()
    assert sink.force_flush(20_000)
    for path in list_segments(store):
        path.unlink()
    store.rmdir()
    tracer.start_span("after").end()
    sink.force_flush(20_000)  # notices
    assert sink.force_flush(20_000)
    assert names_in(store) == ["after"]
    sink.shutdown()


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from starpo_trace.store.sink import SpanSink
from opentelemetry.sdk.trace import TracerProvider

sink = SpanSink(Path({store!r}), max_queue_spans=20)
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(sink)
tracer = provider.get_tracer("test")
tracer.start_span("before").end()
assert sink.force_flush(20_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
for _ in range(50):
    tracer.start_span("refused", attributes={{"text": "y" * 10_000}}).end()
assert not sink.force_flush(3_000)
counts = sink.read_stats()
assert counts["acknowledged"] == 1, counts
assert counts["dropped"] >= 30, counts
assert counts["accepted"] + counts["dropped"] == 51, counts
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert sink.force_flush(20_000)
tracer.start_span("after").end()
sink.shutdown()
print(sink.read_stats()["acknowledged"])
"""


@pytest.mark.slow
def test_a_disk_that_refuses_costs_the_agent_nothing(tmp_path):
    """Writes fail with EFBIG: spans wait, then drop, counted; whole records stay; it recovers."""
    code = FULL_DISK.format(tests=str(Path(__file__).parent), store=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = names_in(tmp_path)
    assert (names[0], names[-1], len(names)) == ("before", "after", int(done.stdout))
    assert done.stderr.count("cannot write its store") == 1


@pytest.mark.slow
def test_a_full_filesystem_keeps_whole_records(tmp_path):
    """On a real full disk (a small tmpfs) everything acknowledged stays readable."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        sink = SpanSink(tmp_path)
        tracer = tracer_of(sink)
        for _ in range(100):
            tracer.start_span("x", attributes={"text": "y" * 10_000}).end()
            sink.force_flush(1000)
        num_acknowledged = sink.read_stats()["acknowledged"]
        assert 5 < num_acknowledged < 30
        assert len(names_in(tmp_path)) == num_acknowledged
        assert all(isinstance(i, Record) for p in list_segments(tmp_path) for i in read_segment(p))
        sink.shutdown()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


FORK = """
import os, sys, multiprocessing
import starpo_trace
starpo_trace.instrument(store={store!r})

def work(name):
    with starpo_trace.trajectory(name):
        pass

work("parent before")
starpo_trace.flush()
work("parent pending")
child = os.fork()
if child == 0:
    work("child")
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
worker = multiprocessing.get_context("fork").Process(target=work, args=("worker",))
worker.start()
worker.join()
work("parent after")
"""


@pytest.mark.slow
def test_forked_children_write_their_own_files(tmp_path):
    """Parent, child and worker spans are each there once, without an explicit flush."""
    done = subprocess.run(
        [sys.executable, "-c", FORK.format(store=str(tmp_path))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(names_in(tmp_path)) == [
        "invoke_agent child",
        "invoke_agent parent after",
        "invoke_agent parent before",
        "invoke_agent parent pending",
        "invoke_agent worker",
    ]
    assert len({path.name.split("-")[1] for path in list_segments(tmp_path)}) == 3
    assert str(os.getpid()) not in {path.name.split("-")[1] for path in list_segments(tmp_path)}


def test_the_size_of_the_store_comes_from_the_environment(tmp_path, monkeypatch):
    """STARPO_STORE_MAX_BYTES bounds the folder."""
    monkeypatch.setenv("STARPO_STORE_MAX_BYTES", "100")
    starpo_trace.instrument(store=tmp_path)
    try:
        with starpo_trace.trajectory("x"):
            pass
        assert not starpo_trace.flush(20)
        assert starpo_trace.stats()["rejected"] == 1
    finally:
        starpo_trace.uninstrument()
