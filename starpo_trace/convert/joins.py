"""Deferred span rows -> as many, with what only other spans of the same run know of them.

Log records belong into the spans they were emitted in; calls of tools that AgentOps writes as spans
of their own into the call that asked for them; Logfire's streamed answers into theirs. agent-lightning's
rewards say by attributes what they are about; Strands names tools on the agent alone; MCP's spans
inside of a tool's are no further steps.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv
from starpo_trace.convert.dialects import agentlightning, annotations, frameworks, logrecords
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.flattened import gather
from starpo_trace.convert.fetched import is_unanswered_or_fetch
from starpo_trace.convert.otlp import SpanRow

_MAX_ANCESTORS: Final = 64
_LINK: Final = "agentlightning.link"
_LINK_PREFIX: Final = f"{_LINK}."
_NO_SPAN: Final = "0" * 16
_STRANDS: Final = "strands."
_REQUEST_TYPE: Final = "gen_ai.request.type"
_CALLS: Final = "gen_ai.completion.0.tool_calls."
_MAY_JOIN: Final = frozenset({frameworks.LOGFIRE_TYPE, frameworks.MCP_METHOD, _REQUEST_TYPE})

_READ_PREFIXES: Final = (
    *("starpo.", "gen_ai.", "agent.", "error.", "session.", "event_loop.", "logfire.span_type"),
    *("openinference.", "fi.", "llm.", "input.", "output.", "tool.", "tool_", "mcp."),
    *("traceloop.", "gcp.vertex.agent.", "agentlightning.", "agentops.", "langsmith."),
    *("haystack.", "executor.", "workflow.", "edge_group.", "message.", "operation.name"),
    *("mlflow.", "langfuse."),
    *("prompt_token_ids", "response_token_ids", "logprobs.", "events", "reward", "agent_name"),
    *annotations.PREFIXES,
)
"""What dialects read of a span; others add to it on the way, a Collector's processor say."""

_READ_OF_RESOURCE: Final = ("agentlightning.",)

SpanKey = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class Neighbours:
    """What is known of all spans of a partition, deferred or not."""

    parents: dict[SpanKey, str | None] = field(default_factory=dict)
    """Span -> its parent's id."""
    tools: set[SpanKey] = field(default_factory=set)
    """Spans that are runs of tools."""
    answers: dict[str, list[SpanKey]] = field(default_factory=dict)
    """Id of an answer -> the calls that got it, by their start."""
    groups: dict[str, str] = field(default_factory=dict)
    """Trace -> the conversation (agent-lightning: the rollout) that its spans name."""


@dataclass(slots=True, kw_only=True)
class DeferredRows:
    """Rows being joined."""

    rows: list[SpanRow]
    """The rows."""
    index: dict[SpanKey, int]
    """Place of each."""
    neighbours: Neighbours
    """What is known of the others."""
    joined: set[int] = field(default_factory=set)
    """Log records that a span has now: rows that are used and are no more."""


def needs_others(row: SpanRow, span: CanonicalSpan | Rejection) -> bool:
    """Whether other spans may change what a span means, or it what others do."""
    attributes = row.attributes
    if semconv.RECORD in attributes and not logrecords.matches(row):
        return is_unanswered_or_fetch(row)
    if isinstance(span, Rejection):
        is_log = span.reason == logrecords.WITHOUT_SPAN
        if is_log or (logrecords.matches(row) and span.reason != "not_an_agent_log"):
            return is_log
    elif span.call is not None:
        call = span.call
        # Content may come: a log record, or the answer that is told beside.
        if not call["has_input"] or (call["text"] is None and call["tool_calls"] is None):
            return True
    if not _MAY_JOIN.isdisjoint(attributes) or agentlightning.is_requested_call(row):
        return True
    return _names_links(row) or row.scope.startswith(_STRANDS)


def strip_unread(row: SpanRow) -> SpanRow:
    """Row -> with what is read of it, so that copies that differ in anything else stay equal."""
    attributes = row.attributes
    if not logrecords.matches(row):
        attributes = {k: v for k, v in attributes.items() if k.startswith(_READ_PREFIXES)}
    resource = {k: v for k, v in row.resource.items() if k.startswith(_READ_OF_RESOURCE)}
    return replace(row, source="", attributes=attributes, resource=resource)


def join_rows(rows: list[SpanRow], neighbours: Neighbours) -> DeferredRows:
    """Rows that need others, and what is known of these -> the rows joined, in the same order."""
    index = {(row.trace_id, row.span_id): i for i, row in enumerate(rows)}
    deferred = DeferredRows(rows=list(rows), index=index, neighbours=neighbours)
    for join in _JOINS:
        join(deferred)
    return deferred


def _join_logs(deferred: DeferredRows) -> None:
    """Records -> events of their spans, in the order of their times."""
    rows = deferred.rows
    events: dict[int, list[logrecords.Event]] = defaultdict(list)
    for i, row in enumerate(rows):
        if not logrecords.matches(row):
            continue
        key = (row.trace_id, row.parent_id or "")
        if logrecords.is_evaluation(row):
            answer = str(row.attributes.get(semconv.RESPONSE_ID))
            links = _pick_link(deferred, row, [("gen_ai.response.id", answer)])
            rows[i] = replace(row, links=links) if links else row
        elif key in deferred.neighbours.parents:
            deferred.joined.add(i)
            event = logrecords.read_event(row)
            target = deferred.index.get(key)
            if target is not None and not isinstance(event, Rejection):
                events[target].append(event)
    for i, found in events.items():
        rows[i] = _add_events(rows[i], sorted(found, key=lambda event: event[1]))


def _add_events(row: SpanRow, events: list[logrecords.Event]) -> SpanRow:
    known = {repr((name, fields)) for name, _, fields in row.events}
    new = [event for event in events if repr((event[0], event[2])) not in known]
    noted = [reason for _, _, fields in new for reason in logrecords.list_noted(fields)]
    attributes = row.attributes
    if noted:
        attributes = {**attributes, semconv.USABLE_FOR_REASONS: noted}
    return replace(row, attributes=attributes, events=(*row.events, *new))


def _join_requested_calls(deferred: DeferredRows) -> None:
    """AgentOps: what an answer asked for is in children of its span, in their order."""
    rows = deferred.rows
    asked: dict[int, list[SpanRow]] = defaultdict(list)
    for row in rows:
        if agentlightning.is_requested_call(row):
            call = deferred.index.get((row.trace_id, row.parent_id or ""))
            if call is not None:
                asked[call].append(row)
    for i, children in asked.items():
        if any(name.startswith(_CALLS) for name in rows[i].attributes):
            continue
        children.sort(key=lambda row: (row.start_ns, row.span_id))
        found: dict[str, Any] = {}
        for number, child in enumerate(children):
            for own, name in (("id", "call.id"), ("name", "name"), ("arguments", "parameters")):
                found[f"{_CALLS}{number}.{own}"] = child.attributes.get(f"tool.{name}")
        rows[i] = replace(rows[i], attributes={**rows[i].attributes, **found})


def _join_links(deferred: DeferredRows) -> None:
    """agent-lightning: a reward is linked to the call that matches, seen or to come.

    Read are the names that agent-lightning itself gives: an answer's id, and ids of spans.
    """
    for i, row in enumerate(deferred.rows):
        if not _names_links(row) or row.links:
            continue
        links = _pick_link(deferred, row, _read_matches(row))
        deferred.rows[i] = replace(row, links=links or ((row.trace_id, _NO_SPAN),))


def _names_links(row: SpanRow) -> bool:
    return row.name.startswith("agentlightning.") and any(
        name.startswith(_LINK_PREFIX) for name in row.attributes
    )


def _read_matches(row: SpanRow) -> list[tuple[str, str]]:
    found = gather(row.attributes, _LINK)
    return [
        (str(each["key_match"]), str(each.get("value_match")))
        for each in (found if isinstance(found, list) else ())
        if isinstance(each, dict) and "key_match" in each
    ]


def _pick_link(
    deferred: DeferredRows, row: SpanRow, matches: list[tuple[str, str]]
) -> tuple[SpanKey, ...]:
    """What a row is about; of several spans of one call the tree keeps one."""
    neighbours = deferred.neighbours
    found: list[SpanKey] | None = None
    for name, value in matches:
        match name:
            case "gen_ai.response.id":
                targets = neighbours.answers.get(value, [])
            case "span_id":
                targets = [(row.trace_id, value)]
            case "trace_id":
                targets = [key for key in neighbours.parents if key[0] == value]
            case _:
                targets = []
        found = [key for key in (targets if found is None else found) if key in targets]
    group = neighbours.groups.get(row.trace_id, row.trace_id)
    near = [
        key
        for key in found or ()
        if key in neighbours.parents and neighbours.groups.get(key[0], key[0]) == group
    ]
    return (near[-1],) if near else ()


def _join_tools(deferred: DeferredRows) -> None:
    """Strands: the agent's span has the tools of all its calls."""
    for i, row in enumerate(deferred.rows):
        attributes = row.attributes
        is_call = attributes.get(semconv.OPERATION_NAME) == "chat"
        is_call = is_call and row.scope.startswith(_STRANDS)
        if not is_call or semconv.TOOL_DEFINITIONS in attributes:
            continue
        for key in _list_above(deferred.neighbours, row):
            agent = deferred.index.get(key)
            found = {} if agent is None else deferred.rows[agent].attributes
            if semconv.TOOL_DEFINITIONS in found:
                tools = {semconv.TOOL_DEFINITIONS: found[semconv.TOOL_DEFINITIONS]}
                deferred.rows[i] = replace(row, attributes={**attributes, **tools})
                break


def _join_transport(deferred: DeferredRows) -> None:
    """MCP: client's and server's span of a call are one with the tool's that made it."""
    for i, row in enumerate(deferred.rows):
        if frameworks.MCP_METHOD not in row.attributes:
            continue
        if any(key in deferred.neighbours.tools for key in _list_above(deferred.neighbours, row)):
            mark = {frameworks.IN_TOOL: True}
            deferred.rows[i] = replace(row, attributes={**row.attributes, **mark})


def _join_streamed(deferred: DeferredRows) -> None:
    """Logfire: a streamed answer is told after its call's span, beside it and with its prompt."""
    rows = deferred.rows
    waiting: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    answers: list[int] = []
    for i, row in enumerate(rows):
        kind = row.attributes.get(frameworks.LOGFIRE_TYPE)
        if kind is None or semconv.INPUT_MESSAGES not in row.attributes:
            continue
        has_answer = semconv.OUTPUT_MESSAGES in row.attributes
        if kind == "log" and has_answer:
            answers.append(i)
        elif kind == "span" and not has_answer:
            waiting[_call_key(row)].append(i)
    for i in sorted(answers, key=lambda each: rows[each].start_ns, reverse=True):
        key = _call_key(rows[i])
        calls = [j for j in waiting[key] if rows[j].start_ns <= rows[i].start_ns]
        if not calls:
            continue
        call = max(calls, key=lambda each: rows[each].start_ns)
        waiting[key].remove(call)
        told = rows[i].attributes
        told = {name: each for name, each in told.items() if not name.startswith("logfire.")}
        rows[call] = replace(rows[call], attributes={**rows[call].attributes, **told})
        mark = {frameworks.PART_OF_CALL: True}
        rows[i] = replace(rows[i], attributes={**rows[i].attributes, **mark})


def _call_key(row: SpanRow) -> tuple[Any, ...]:
    prompt = str(row.attributes[semconv.INPUT_MESSAGES])
    return row.trace_id, row.parent_id, row.scope, prompt


def _list_above(neighbours: Neighbours, row: SpanRow) -> list[SpanKey]:
    """Ancestors, the nearest first; a cycle ends like a long chain does."""
    parents: Mapping[SpanKey, str | None] = neighbours.parents
    above: list[SpanKey] = []
    key = (row.trace_id, row.parent_id or "")
    while key in parents and len(above) < _MAX_ANCESTORS:
        above.append(key)
        key = (row.trace_id, parents[key] or "")
    return above


_JOINS: Final[tuple[Callable[[DeferredRows], None], ...]] = (
    _join_logs,
    _join_requested_calls,
    _join_links,
    _join_tools,
    _join_transport,
    _join_streamed,
)
