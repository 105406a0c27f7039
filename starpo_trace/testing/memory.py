"""Recorded spans -> a list in memory, and what tests ask of it."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

from starpo_trace import semconv
from starpo_trace.capture.switch import instrument, uninstrument
from starpo_trace.testing.scripted import ToolCall
from starpo_trace.testing.tree import render_tree

_SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """A tool step that the agent recorded."""

    name: str
    """Tool name."""
    call_id: str | None
    """Id of the call it answers."""
    arguments: str | None
    """Argument text."""
    result: str | None
    """Result, as JSON text."""
    error: str | None
    """Type of the exception it raised."""


class MemoryStore(SpanProcessor):
    """Keeps ended spans in a list."""

    def __init__(self, *, is_fixed: bool = False) -> None:
        """With `is_fixed`, ids count from 1, and each start and end is a second after the last."""
        self.spans: list[ReadableSpan] = []
        """Ended spans, in the order they ended."""
        ids = _CountingIds() if is_fixed else RandomIdGenerator()
        self.provider = TracerProvider(shutdown_on_exit=False, id_generator=ids)
        """A tracer provider that writes here."""
        self.provider.add_span_processor(self)
        self._is_fixed = is_fixed
        self._clock = itertools.count(1)
        self._started: dict[int, int] = {}

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Take the time of a span's start."""
        if self._is_fixed:
            self._started[span.context.span_id] = next(self._clock)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span."""
        self.spans.append(self._fix_times(span) if self._is_fixed else span)

    def select(self, record: str, *, name: str | None = None) -> list[dict[str, Any]]:
        """Attributes of the spans whose `starpo.record` is this, and whose tool has this name."""
        attributes = [dict(span.attributes or {}) for span in self.spans]
        return [
            each
            for each in attributes
            if each.get(semconv.RECORD) == record
            and (name is None or each.get(semconv.TOOL_NAME) == name)
        ]

    def find_tool_calls(self, name: str | None = None) -> list[ToolCall]:
        """The tool calls that the model asked for, arguments verbatim, in order of the answers."""
        calls: list[ToolCall] = []
        for call in self.select("llm"):
            for message in json.loads(call.get(semconv.OUTPUT_MESSAGES, "[]")):
                calls += [
                    ToolCall(id=part["id"], name=part["name"], arguments=part["arguments"])
                    for part in message["parts"]
                    if part["type"] == "tool_call" and name in {None, part["name"]}
                ]
        return calls

    def find_tool_runs(self, name: str | None = None) -> list[ToolRun]:
        """The tool steps that the agent recorded, in the order they ended."""
        return [
            ToolRun(
                name=step[semconv.TOOL_NAME],
                call_id=step.get(semconv.TOOL_CALL_ID),
                arguments=step.get(semconv.TOOL_CALL_ARGUMENTS),
                result=step.get(semconv.TOOL_CALL_RESULT),
                error=step.get(semconv.ERROR_TYPE),
            )
            for step in self.select("step", name=name)
            if step.get(semconv.STEP_KIND) == "tool"
        ]

    def render(self) -> str:
        """The runs as text, a line per span, to compare with what a test expects."""
        return render_tree(self.spans)

    def _fix_times(self, span: ReadableSpan) -> ReadableSpan:
        context = span.get_span_context()
        started = self._started.pop(context.span_id) if context is not None else 0
        ended = next(self._clock) * _SECOND_NS
        attributes = dict(span.attributes or {})
        if semconv.RESPONSE_TIME_TO_FIRST_CHUNK in attributes:
            attributes[semconv.RESPONSE_TIME_TO_FIRST_CHUNK] = 0.0
        return ReadableSpan(
            name=span.name,
            context=context,
            parent=span.parent,
            resource=span.resource,
            attributes=attributes,
            events=[Event(each.name, each.attributes, ended) for each in span.events],
            links=span.links,
            kind=span.kind,
            status=span.status,
            start_time=started * _SECOND_NS,
            end_time=ended,
            instrumentation_scope=span.instrumentation_scope,
        )


class _CountingIds(IdGenerator):
    def __init__(self) -> None:
        self._spans, self._traces = itertools.count(1), itertools.count(1)

    def generate_span_id(self) -> int:
        return next(self._spans)

    def generate_trace_id(self) -> int:
        return next(self._traces)


@contextmanager
def record_spans(
    *, history: str | None = None, policy_id: str | None = None, is_fixed: bool = False
) -> Iterator[MemoryStore]:
    """Instrument for the length of a block, with spans kept in memory.

    A program that has called `instrument()` itself is uninstrumented first.
    """
    store = MemoryStore(is_fixed=is_fixed)
    uninstrument()
    instrument(tracer_provider=store.provider, history=history, policy_id=policy_id)
    try:
        yield store
    finally:
        uninstrument()
