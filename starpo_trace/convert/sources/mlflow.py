"""Traces of MLflow -> span rows: `Trace.to_json()`, rows of `search_traces`, `traces.json` files.

Each attribute is JSON text. What came by OTLP has its own names beside MLflow's, but text that
was JSON itself was parsed and written anew. Scopes are not kept; resources are tags of the trace.
"""

import base64
import binascii
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.sources.feedback import Feedback, make_carrier
from starpo_trace.convert.sources.fields import (
    SPAN_DIGITS,
    TRACE_DIGITS,
    read_error,
    read_events,
    read_id,
    read_links,
    read_ns,
    read_records,
    read_time,
    restore_number,
)

SESSION: Final = "mlflow.trace.session"
"""Under this name a root span has what MLflow keeps with the trace."""

_OWN: Final = "mlflow."
_ANNOTATORS: Final = {
    "HUMAN": "HUMAN",
    "LLM_JUDGE": "LLM",
    "AI_JUDGE": "LLM",
    "CODE": "CODE",
}
_FRAME_COLUMNS: Final = frozenset({"trace_id", "trace"})
_STARTS: Final = ("start_time_unix_nano", "start_time_ns", "start_time")
_ENDS: Final = ("end_time_unix_nano", "end_time_ns", "end_time")


def is_trace(value: Any) -> bool:
    """Whether a JSON value is a trace of MLflow, or the file of its spans."""
    if not isinstance(value, Mapping):
        return False
    data = value.get("data")
    if isinstance(value.get("info"), Mapping) and isinstance(data, Mapping) and "spans" in data:
        return True
    spans = value.get("spans")
    if value.keys() > {"spans"} or not isinstance(spans, list):
        return False
    first = spans[0] if spans else None
    return isinstance(first, Mapping) and _is_span(first)


def _is_span(span: Mapping[str, Any]) -> bool:
    attributes = span.get("attributes")
    return isinstance(attributes, Mapping) and "mlflow.traceRequestId" in attributes


def is_frame_row(names: Collection[str]) -> bool:
    """Whether a record with these names is a row of the data frame that `search_traces` gives."""
    return set(names) >= _FRAME_COLUMNS


def read_traces(value: Any, source: str) -> Iterator[SpanRow | MalformedSpan]:
    """A trace, its file of spans, a row of the data frame, or a list of them -> span rows.

    Raises:
        ValueError: the row holds no trace.
    """
    if isinstance(value, list):
        for each in value:
            yield from read_traces(each, source)
        return
    if is_frame_row(value.keys()):
        value = read_json(value["trace"])
        if not is_trace(value):
            raise ValueError("the column `trace` holds no trace of MLflow as JSON")
    info = value.get("info") or {}
    spans = value["data"]["spans"] if "data" in value else value["spans"]
    spans = spans if isinstance(spans, list) else [spans]
    session = (info.get("trace_metadata") or info.get("request_metadata") or {}).get(SESSION)
    resource = {
        key: each
        for key, each in (info.get("tags") or {}).items()
        if isinstance(key, str) and not key.startswith(_OWN)
    }
    yield from read_records(spans, lambda span: _read_span(span, source, session, resource), source)
    assessments = info.get("assessments") or ()
    yield from read_records(assessments, lambda each: _read_assessment(each, source), source)


def _read_span(
    span: Mapping[str, Any], source: str, session: Any, resource: dict[str, Any]
) -> SpanRow:
    context = span.get("context") or {}  # of MLflow 2
    attributes = {
        name: restore_number(name, value)
        for name, each in span["attributes"].items()
        if (value := read_attribute(name, each)) is not None
    }
    parent = span.get("parent_span_id", span.get("parent_id"))
    if session is not None and not parent:
        attributes[SESSION] = session
    status = span.get("status")
    status = status if isinstance(status, Mapping) else {}
    return SpanRow(
        source=source,
        trace_id=_read_bytes(context.get("trace_id", span.get("trace_id")), TRACE_DIGITS),
        span_id=_read_bytes(context.get("span_id", span.get("span_id")), SPAN_DIGITS),
        parent_id=_read_bytes(parent, SPAN_DIGITS) if parent else None,
        name=str(span.get("name") or ""),
        start_ns=read_ns(span, _STARTS),
        end_ns=read_ns(span, _ENDS) or None,
        error=read_error(
            status.get("code", span.get("status_code")),
            status.get("message", span.get("status_message")),
        ),
        attributes=attributes,
        events=read_events(span.get("events")),
        links=read_links(span.get("links")),
        resource=resource,
    )


def read_attribute(name: str, text: Any) -> Any:
    """Attribute as JSON text -> value; lists and objects of others than MLflow stay texts.

    Those were texts of JSON, or arrays, which every dialect reads as text too.
    """
    if not isinstance(text, str):
        return text
    try:
        value = read_json(text)
    except ValueError:
        return text
    is_text = isinstance(value, list | dict) and not name.startswith(_OWN)
    return text if is_text else value


def _read_bytes(value: Any, num_digits: int) -> str:
    """An id as base64 (MLflow 3), `0x` digits (MLflow 2) or `tr-` digits -> digits."""
    if isinstance(value, str):
        value = value.removeprefix("tr-")
        if len(value) == -(-num_digits // 6) * 4 and not value.startswith("0x"):
            try:
                return base64.b64decode(value, validate=True).hex()
            except binascii.Error as error:
                raise ValueError(f"id {value!r} is no base64: {error}") from error
    return read_id(value, num_digits)


def _read_assessment(assessment: Mapping[str, Any], source: str) -> SpanRow:
    """Feedback or an expectation -> its carrier; the latter is a text of what was expected."""
    given, expected = assessment.get("feedback"), assessment.get("expectation")
    given = given if isinstance(given, Mapping) else {}
    value = given.get("value")
    if isinstance(expected, Mapping):
        told = expected.get("value", expected.get("serialized_value"))
        value = f"expected {told if isinstance(told, str) else _dump(told)}"
    elif not isinstance(value, int | float | str | None):
        value = _dump(value)
    error = given.get("error")
    origin = assessment.get("source") or {}
    span_id = assessment.get("span_id")
    name = str(assessment.get("assessment_name") or "assessment")
    changed = assessment.get("last_update_time") or assessment.get("create_time")
    notes = (error and f"failed: {_dump(error)}", assessment.get("rationale"))
    if assessment.get("valid") is False:
        notes = ("no longer valid", *notes)
    feedback = Feedback(
        key=f"mlflow:{assessment.get('assessment_id')}:{name}:{changed}",
        name=name,
        value=value,
        explanation="; ".join(str(note) for note in notes if note) or None,
        annotator=_ANNOTATORS.get(str(origin.get("source_type", "")).upper()),
        identifier=origin.get("source_id"),
        time_ns=read_time(changed),
        trace_id=_read_bytes(assessment.get("trace_id"), TRACE_DIGITS),
        span_id=_read_bytes(span_id, SPAN_DIGITS) if span_id else "",
    )
    return make_carrier(feedback, source)


def _dump(value: Any) -> str:
    from starpo_trace.messages import dump_json

    return dump_json(value)
