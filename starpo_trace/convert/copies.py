"""Span rows as read -> each span once, and the copies that contradict one another.

A span may be delivered again, and read from two places: equal copies are one span, silently. Copies
that differ are nobody's retry. A trajectory that holds one is fit for no training, because what
happened cannot be told from what somebody wrote over it. Copies of a reward are all kept until
their signatures are judged, so that no span with its ids can delete it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.convert.dialects import annotations
from starpo_trace.convert.otlp import SpanRow

CONFLICT: Final = "conflicting_copies"

# What others add on the way, a Collector's processor say, contradicts nothing that is read here.
_READ_PREFIXES: Final = (
    *("starpo.", "gen_ai.", "agent.", "error.", "session."),
    *("openinference.", "fi.", "llm.", "input.", "output.", "tool.", "tool_call."),
    *("traceloop.", "gcp.vertex.agent."),
    *("mlflow.", "langfuse."),
    *annotations.PREFIXES,
)

SpanKey = tuple[str, str]
"""Trace id and span id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinctSpans:
    """Spans of which every one is there once, but for copies of rewards that differ."""

    rows: list[SpanRow]
    """The spans, in a fixed order; a reward's copies stand before a span of another kind."""
    num_duplicates: int = 0
    """Copies left out because they say nothing else."""
    contradicting: list[SpanRow] = field(default_factory=list)
    """Copies left out that differ from the one that stayed."""
    contested: frozenset[SpanKey] = frozenset()
    """Spans of which there are copies that differ."""


def deduplicate_spans(rows: Sequence[SpanRow]) -> DistinctSpans:
    """Spans as read -> each once, whatever the order they were read in.

    A finished copy silently replaces unfinished ones. Of finished ones that differ, the one that
    ended first stays.
    """
    kept: dict[SpanKey, list[SpanRow]] = {}
    copies: dict[SpanKey, list[SpanRow]] = {}
    for row in rows:
        key = (row.trace_id, row.span_id)
        if key in kept:
            copies.setdefault(key, list(kept[key])).append(row)
        else:
            kept[key] = [row]
    contradicting: list[SpanRow] = []
    contested: set[SpanKey] = set()
    for key, each in copies.items():
        different = _find_different(each)
        rewards = [row for row in different if _is_reward(row)]
        others = [row for row in different if not _is_reward(row)]
        kept[key] = rewards + others[:1]
        if len(different) > 1 and any(map(_is_read, different)):
            contested.add(key)
            contradicting += others[1:]
    distinct = [row for key in sorted(kept) for row in kept[key]]
    return DistinctSpans(
        rows=distinct,
        num_duplicates=len(rows) - len(distinct) - len(contradicting),
        contradicting=sorted(contradicting, key=lambda row: (row.trace_id, row.span_id)),
        contested=frozenset(contested),
    )


def _find_different(copies: Sequence[SpanRow]) -> list[SpanRow]:
    finished = [row for row in copies if row.end_ns is not None] or copies
    by_content: dict[str, SpanRow] = {}
    for row in sorted(finished, key=lambda row: (row.end_ns or 0, row.source, repr(row))):
        by_content.setdefault(_describe_content(row), row)
    return sorted(by_content.values(), key=lambda row: (row.end_ns or 0, _describe_content(row)))


def _describe_content(row: SpanRow) -> str:
    """All that is read of a span, but the place where it was found."""
    attributes = sorted((key, value) for key, value in _read_attributes(row).items())
    times = (row.start_ns, row.end_ns)
    rest = (row.parent_id, row.name, row.scope, row.error, row.num_dropped, row.events, row.links)
    return repr((times, rest, attributes))


def _read_attributes(row: SpanRow) -> dict[str, Any]:
    return {key: item for key, item in row.attributes.items() if key.startswith(_READ_PREFIXES)}


def _is_read(row: SpanRow) -> bool:
    return bool(_read_attributes(row))


def _is_reward(row: SpanRow) -> bool:
    return row.attributes.get(semconv.RECORD) == "reward"
