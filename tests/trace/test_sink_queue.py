"""The queue of spans: bounded, whole trajectories, and every span counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from starpo_trace import semconv
from starpo_trace.store import spanqueue
from starpo_trace.store.spanqueue import SpanQueue
from starpo_trace.store.spansize import estimate_bytes


class Collector(SpanExporter):
    def __init__(self):
        self.spans = []

    def export(self, spans):
        self.spans += spans
        return SpanExportResult.SUCCESS


COLLECTOR = Collector()
PROVIDER = TracerProvider(shutdown_on_exit=False)
PROVIDER.add_span_processor(SimpleSpanProcessor(COLLECTOR))
TRACER = PROVIDER.get_tracer("test")


def make_span(name, trajectory=None, **attributes):
    if trajectory is not None:
        attributes[semconv.TRAJECTORY_ID] = trajectory
    TRACER.start_span(name, attributes=attributes).end()
    return COLLECTOR.spans.pop()


def names(spans):
    return [span.name for span in spans]


def test_a_trajectory_that_does_not_fit_leaves_as_a_whole():
    """Its waiting spans go, its later ones are refused, and their room serves the others."""
    queue = SpanQueue(max_spans=4)
    for name, trajectory in [("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")]:
        assert queue.put(make_span(name, trajectory)) is not None
    assert queue.put(make_span("a3", "a")) is None
    assert queue.put(make_span("a4", "a")) is None
    assert queue.put(make_span("c1", "c")) == 3
    assert names(queue.take(10, 1 << 30)) == ["b1", "b2", "c1"]
    queue.settle(3)
    assert queue.read_stats() == {
        "sent": 7,
        "accepted": 3,
        "acknowledged": 3,
        "rejected": 0,
        "waiting": 0,
        "dropped": 4,
    }


def test_spans_outside_of_trajectories_belong_to_their_trace():
    """Two traces, one of them broken: the other stays."""
    queue = SpanQueue(max_spans=1)
    first, second = make_span("first"), make_span("second")
    assert (queue.put(first), queue.put(second)) == (1, None)
    assert names(queue.take(10, 1 << 30)) == ["first"]


def test_spans_under_way_when_their_trajectory_breaks_do_not_come_back():
    """A batch that is put back loses what has been broken meanwhile, and keeps its order."""
    queue = SpanQueue(max_spans=3)
    for name in ("a1", "b1", "a2"):
        queue.put(make_span(name, name[0]))
    assert len(queue.take(2, 1 << 30)) == 2
    assert queue.put(make_span("a3", "a")) is None
    queue.put_back()
    queue.put(make_span("b2", "b"))
    assert names(queue.take(10, 1 << 30)) == ["b1", "b2"]
    queue.settle(2)
    stats = queue.read_stats()
    assert (stats["sent"], stats["acknowledged"], stats["dropped"]) == (5, 2, 3)


def test_bytes_are_bounded():
    """What waits is at most so many bytes, by an estimate that counts the text."""
    span = make_span("a", text="y" * 100_000)
    queue = SpanQueue(max_bytes=3 * estimate_bytes(span))
    results = [queue.put(make_span("a", text="y" * 100_000)) for _ in range(5)]
    assert results == [1, 2, 3, None, None]


def test_one_span_beyond_the_bound_is_taken_when_nothing_waits():
    """Otherwise it could never be delivered."""
    queue = SpanQueue(max_bytes=10)
    assert queue.put(make_span("a")) == 1


def test_broken_trajectories_are_forgotten_in_the_end(monkeypatch):
    """A process that runs for years remembers a bounded number of them."""
    monkeypatch.setattr(spanqueue, "MAX_BROKEN", 2)
    queue = SpanQueue(max_spans=0)
    for key in ("a", "b", "c"):
        assert queue.put(make_span("x", key)) is None
    queue.max_spans = 10
    assert [queue.put(make_span("x", key)) for key in ("a", "b", "c")] == [1, None, None]


def test_a_stuck_queue_does_not_grow_by_what_it_dropped():
    """Places of spans that left are removed, also when nobody takes from the queue."""
    queue = SpanQueue(max_spans=2)
    queue.put(make_span("stays", "stays"))
    for number in range(3000):
        queue.put(make_span("1", f"t{number}"))
        queue.put(make_span("2", f"t{number}"))
    assert len(queue._entries) < 1100
    assert len(queue._groups) == 1
    assert queue.read_stats()["dropped"] == 6000


@pytest.mark.parametrize("value", ["語" * 1000, ("y" * 1000,), [1.5] * 300])
def test_the_estimate_is_no_less_than_what_is_sent(value):
    """Attributes of every type count, non-ASCII text with its encoded length."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    span = make_span("a", value=value)
    assert estimate_bytes(span) >= encode_spans([span]).ByteSize()


POOL = {key: [make_span(f"{key}{n}", key) for n in range(3)] for key in "abcde"}


@given(
    st.lists(
        st.one_of(
            st.sampled_from([(key, n) for key in "abcde" for n in range(3)]),
            st.sampled_from(["take", "settle", "reject", "refuse", "put_back"]),
        ),
        max_size=60,
    ),
    st.integers(1, 6),
)
def test_every_span_is_counted_once(actions, max_spans):
    """After any sequence: sent = accepted + rejected + dropped, bounded, first in, first out."""
    queue = SpanQueue(max_spans=max_spans)
    num_put = num_acknowledged = num_rejected = 0
    batch = []
    for action in actions:
        if isinstance(action, tuple):
            queue.put(POOL[action[0]][action[1]])
            num_put += 1
        elif action == "take":
            if not batch:
                batch = queue.take(2, 1 << 30)
        elif action == "put_back":
            queue.put_back()
            batch = []
        else:
            num_good = len(batch) if action == "settle" else len(batch) // 2
            queue.settle(num_good, is_refused=action == "refuse")
            num_acknowledged += num_good
            num_rejected += len(batch) - num_good
            batch = []
        stats = queue.read_stats()
        assert stats["sent"] == num_put
        assert stats["sent"] == stats["accepted"] + stats["rejected"] + stats["dropped"]
        assert (stats["acknowledged"], stats["rejected"]) == (num_acknowledged, num_rejected)
        assert 0 <= stats["waiting"] <= max_spans
        live = [entry.number for entry in queue._entries if entry.span is not None]
        assert live == sorted(live)
        assert len(live) + len(batch) == stats["waiting"]
        assert sorted(entry.number for group in queue._groups.values() for entry in group) == live
        assert (queue._num_bytes == 0) == (stats["waiting"] == 0)
