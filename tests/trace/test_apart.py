"""Spans of ours and of another provider in one program: none is the other's parent."""

import threading
from contextlib import contextmanager

import pytest
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

import starpo_trace
from starpo_trace.convert.sources import find_source_files, read_span_batches


class Theirs:
    """Another library, with a provider of its own."""

    def __init__(self, **options):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.span = self.provider.get_tracer("theirs").start_as_current_span

    def read_parents(self):
        """Span -> the name of its parent; a question mark is one that nobody has."""
        spans = self._exporter.get_finished_spans()
        names = {span.context.span_id: span.name for span in spans}
        return {
            span.name: None if span.parent is None else names.get(span.parent.span_id, "?")
            for span in spans
        }


@contextmanager
def record(folder, **options):
    """What is read of our spans, once the block has been left: span -> the name of its parent."""
    parents: dict[str, str | None] = {}
    starpo_trace.instrument(store=folder, **options)
    try:
        yield parents
    finally:
        starpo_trace.uninstrument()
    files = find_source_files([folder]) if any(folder.glob("*.otlp*")) else ()
    rows = [row for file in files for batch in read_span_batches(file) for row in batch.rows]
    names = {row.span_id: row.name for row in rows}
    for row in rows:
        parents[row.name] = None if row.parent_id is None else names.get(row.parent_id, "?")


def play(theirs):
    with (
        starpo_trace.trajectory("a"),
        theirs.span("chain"),
        starpo_trace.step("tool", "t"),
        theirs.span("inner"),
        starpo_trace.step("tool", "u"),
    ):
        pass


OURS = {
    "invoke_agent a": None,
    "execute_tool t": "invoke_agent a",
    "execute_tool u": "execute_tool t",
}


def test_each_has_a_tree_of_its_own(tmp_path):
    """As if the other were not there."""
    theirs = Theirs()
    with record(tmp_path) as ours:
        play(theirs)
    assert ours == OURS
    assert theirs.read_parents() == {"chain": None, "inner": "chain"}


def test_around_a_run_theirs_go_on(tmp_path):
    """What they begin in the run lies below what they had open; our root has their trace."""
    theirs = Theirs()
    with record(tmp_path) as ours:
        with theirs.span("request") as request:
            play(theirs)
            with starpo_trace.trajectory("b") as run:
                assert run.id.startswith(f"{request.get_span_context().trace_id:032x}-")
        assert not trace.get_current_span().get_span_context().is_valid
    assert ours == {**OURS, "invoke_agent a": "?", "invoke_agent b": "?"}
    assert theirs.read_parents() == {"request": None, "chain": "request", "inner": "chain"}


def test_a_thread_of_the_run(tmp_path):
    """It has the Context of the run."""
    theirs = Theirs()

    def work():
        with theirs.span("thread"), starpo_trace.step("tool", "w"):
            pass

    with record(tmp_path) as ours, theirs.span("request"), starpo_trace.trajectory("a"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert ours["execute_tool w"] == "invoke_agent a"
    assert theirs.read_parents()["thread"] == "request"


@pytest.mark.parametrize(("ours_share", "their_share"), [(0.0, 1.0), (1.0, 0.0)])
def test_one_s_sampling_is_not_the_other_s(tmp_path, ours_share, their_share):
    """Neither loses spans because the other leaves its own out."""
    theirs = Theirs(sampler=ParentBased(TraceIdRatioBased(their_share)))
    with record(tmp_path, sample=ours_share) as ours:
        play(theirs)
    assert ours == (OURS if ours_share else {})
    assert theirs.read_parents() == ({"chain": None, "inner": "chain"} if their_share else {})


def test_another_process_s_span_is_a_parent(tmp_path):
    """What arrived in a request's headers comes before what was current."""
    with record(tmp_path) as ours, starpo_trace.trajectory("a"):
        headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        token = otel_context.attach(propagate.extract(headers, otel_context.get_current()))
        with starpo_trace.step("tool", "t"):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            assert carrier["traceparent"].startswith(f"00-{'ab' * 16}-")
        otel_context.detach(token)
    assert ours["execute_tool t"] == "?"


@pytest.mark.parametrize("is_given", [True, False])
def test_spans_of_one_provider_are_one_tree(is_given, monkeypatch):
    """Where the program wants ours among its own."""
    theirs, others = Theirs(), Theirs()
    if not is_given:
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: theirs.provider)
    starpo_trace.instrument(tracer_provider=theirs.provider if is_given else None)
    with (
        starpo_trace.trajectory("a"),
        others.span("chain"),
        theirs.span("mine"),
        starpo_trace.step("tool", "t"),
        theirs.span("inner"),
    ):
        pass
    starpo_trace.uninstrument()
    assert theirs.read_parents() == {
        "invoke_agent a": None,
        "mine": "?",  # the other provider's, as without us
        "execute_tool t": "mine",
        "inner": "execute_tool t",
    }
    assert others.read_parents() == {"chain": None}


def test_a_context_that_is_given_holds(tmp_path):
    """Theirs may begin a span below another one, or below none."""
    theirs = Theirs()
    start = theirs.provider.get_tracer("theirs").start_span
    with record(tmp_path), starpo_trace.trajectory("a"):
        root = start("root", otel_context.Context())
        start("below", context=trace.set_span_in_context(root)).end()
        root.end()
    assert theirs.read_parents() == {"root": None, "below": "root"}


def test_the_tracer_is_put_back(tmp_path):
    """As it was."""
    before = vars(Tracer)["start_span"]
    with record(tmp_path):
        assert vars(Tracer)["start_span"] is not before
    assert vars(Tracer)["start_span"] is before
