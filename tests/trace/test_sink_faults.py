"""A store on a bad disk, or a full one: the agent is unharmed, and every span is counted."""

import errno
import os

import pytest
from opentelemetry.sdk.trace import TracerProvider

from starpo_trace import semconv
from starpo_trace.convert.otlp import SpanRow, decode_protobuf
from starpo_trace.store.files import Files
from starpo_trace.store.segments import Record, list_segments, read_segment
from starpo_trace.store.sink import SpanSink


class BadFiles(Files):
    """Real files on which one operation fails some times."""

    def __init__(self, operation, number, num_failures):
        self.operation = operation
        self.number = number
        self.num_failures = num_failures

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if name != super().__getattribute__("operation"):
            return value

        def call(*arguments):
            result = value(*arguments) if name in {"write_at", "sync_data"} else None
            if self.num_failures > 0:
                self.num_failures -= 1
                raise OSError(self.number, os.strerror(self.number))
            return value(*arguments) if result is None else result

        return call


@pytest.fixture(autouse=True)
def production(monkeypatch):
    """Faults of the disk are logged, not raised, as in production."""
    monkeypatch.setenv("STARPO_DEBUG", "0")


def tracer_of(sink):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(sink)
    return provider.get_tracer("test")


def rows_in(store):
    return [
        row
        for path in list_segments(store)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, str(path))
        if isinstance(row, SpanRow)
    ]


def names_in(store):
    return [row.name for row in rows_in(store)]


def flush_in_the_end(sink):
    return any(sink.force_flush(20_000) for _ in range(20))


@pytest.mark.parametrize(
    ("operation", "number"),
    [
        ("create", errno.EMFILE),
        ("create", errno.EROFS),
        ("create", errno.ENOSPC),
        ("make_directory", errno.EROFS),
        ("write_at", errno.ENOSPC),
        ("write_at", errno.EDQUOT),
        ("write_at", errno.EIO),
        ("sync_data", errno.EIO),
        ("sync_data", errno.EDQUOT),
        ("sync_directory", errno.EIO),
        ("measure_segments", errno.EMFILE),
        ("is_deleted", errno.EIO),
    ],
)
def test_a_disk_that_fails_for_a_while_costs_nothing(tmp_path, operation, number):
    """Whatever call fails and whichever way, all spans are there once afterwards."""
    store = tmp_path / "new" / "store"
    sink = SpanSink(store, files=BadFiles(operation, number, 3))
    tracer = tracer_of(sink)
    for name in ("a", "b"):
        tracer.start_span(name).end()
        sink.force_flush(20_000)
    assert flush_in_the_end(sink)
    sink.shutdown()
    assert sorted(names_in(store)) == ["a", "b"]
    stats = sink.read_stats()
    assert (stats["sent"], stats["acknowledged"], stats["waiting"]) == (2, 2, 0)


@pytest.mark.parametrize(
    ("operation", "number"),
    [("rename", errno.EACCES), ("rename", errno.EIO), ("close", errno.EIO)],
)
def test_a_segment_that_cannot_be_sealed_stays_readable(tmp_path, operation, number):
    """It keeps the name of an open one, and the next segment begins."""
    sink = SpanSink(tmp_path, segment_bytes=1, files=BadFiles(operation, number, 1))
    tracer = tracer_of(sink)
    for name in ("a", "b"):
        tracer.start_span(name).end()
        assert sink.force_flush(20_000)
    sink.shutdown()
    assert sorted(names_in(tmp_path)) == ["a", "b"]
    assert sorted(path.suffix for path in list_segments(tmp_path)) == [".open", ".otlp"]


def test_a_failed_sync_is_not_trusted_twice(tmp_path):
    """The batch goes to a new segment, and the old one ends before it."""
    files = BadFiles("sync_data", errno.EIO, 0)
    sink = SpanSink(tmp_path, files=files)
    tracer = tracer_of(sink)
    tracer.start_span("before").end()
    assert sink.force_flush(20_000)
    files.num_failures = 1
    tracer.start_span("failed").end()
    assert not sink.force_flush(20_000)
    assert flush_in_the_end(sink)
    old, new = list_segments(tmp_path)
    assert [item.num_spans for item in read_segment(old) if isinstance(item, Record)] == [1]
    assert [item.num_spans for item in read_segment(new) if isinstance(item, Record)] == [1]
    assert names_in(tmp_path) == ["before", "failed"]
    sink.shutdown()


def test_a_segment_deleted_under_the_writer_is_replaced(tmp_path):
    """What was in it is gone; what comes later goes to a new one."""
    sink = SpanSink(tmp_path)
    tracer = tracer_of(sink)
    tracer.start_span("before").end()
    assert sink.force_flush(20_000)
    for path in list_segments(tmp_path):
        path.unlink()
    tracer.start_span("after").end()
    assert flush_in_the_end(sink)
    assert names_in(tmp_path) == ["after"]
    sink.shutdown()


def test_a_full_store_refuses_and_counts(tmp_path):
    """Below its limit the folder keeps everything acknowledged; beyond, spans are rejected."""
    sink = SpanSink(tmp_path, max_store_bytes=100_000, segment_bytes=30_000)
    tracer = tracer_of(sink)
    for number in range(30):
        tracer.start_span(str(number), attributes={"text": "y" * 10_000}).end()
        sink.force_flush(20_000)
    stats = sink.read_stats()
    assert stats["sent"] == 30 == stats["acknowledged"] + stats["rejected"]
    assert stats["acknowledged"] == 9
    assert names_in(tmp_path) == [str(number) for number in range(9)]
    assert sum(path.stat().st_size for path in list_segments(tmp_path)) <= 100_000
    sink.shutdown()


def test_a_full_store_refuses_the_rest_of_a_trajectory(tmp_path):
    """After a refused span no later one of its run is stored, even when there is room again."""
    sink = SpanSink(tmp_path, max_store_bytes=20_000)
    tracer = tracer_of(sink)

    def record(name, run, num_bytes):
        attributes = {semconv.TRAJECTORY_ID: run, "text": "y" * num_bytes}
        tracer.start_span(name, attributes=attributes).end()
        return sink.force_flush(20_000)

    assert record("a1", "a", 10_000)
    assert not record("b1", "b", 15_000)
    assert not record("b2", "b", 10)
    assert record("a2", "a", 10)
    stats = sink.read_stats()
    assert (stats["acknowledged"], stats["rejected"], stats["dropped"]) == (2, 1, 1)
    assert names_in(tmp_path) == ["a1", "a2"]
    sink.shutdown()


def test_the_limit_counts_other_processes_files_and_ends_with_them(tmp_path):
    """A folder filled by others refuses; when they make room, spans are stored again."""
    foreign = tmp_path / "0-1-a.otlp"
    foreign.write_bytes(b"x" * 50_000)
    (tmp_path / "notes.txt").write_bytes(b"x" * 50_000)  # no segment
    sink = SpanSink(tmp_path, max_store_bytes=40_000)
    tracer = tracer_of(sink)
    tracer.start_span("refused").end()
    assert not sink.force_flush(20_000)
    foreign.unlink()
    sink._store._measured_s = None  # as after the second that it trusts a measurement
    tracer.start_span("stored").end()
    assert sink.force_flush(20_000)
    assert names_in(tmp_path) == ["stored"]
    sink.shutdown()


def test_a_stuck_disk_drops_whole_trajectories(tmp_path):
    """Two runs end while nothing can be written: the one that fits is stored, all of it."""
    files = BadFiles("create", errno.ENOSPC, 1 << 30)
    sink = SpanSink(tmp_path, max_queue_spans=10, files=files)
    tracer = tracer_of(sink)
    for number in range(6):
        for run in ("a", "b"):
            attributes = {semconv.TRAJECTORY_ID: run}
            tracer.start_span(f"{run}{number}", attributes=attributes).end()
    files.num_failures = 0
    sink.force_flush(20_000)
    assert flush_in_the_end(sink)
    sink.shutdown()
    assert names_in(tmp_path) == [f"b{number}" for number in range(6)]
    stats = sink.read_stats()
    assert stats["sent"] == 12 == stats["accepted"] + stats["rejected"] + stats["dropped"]
    assert stats["dropped"] == 6
