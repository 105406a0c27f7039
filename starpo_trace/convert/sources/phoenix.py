"""Exports of Arize Phoenix -> span rows: its data frames and REST answers, and annotations.

Phoenix keeps attributes as nested objects: names are split at their dots, lists and a few JSON texts
are parsed. Its REST API flattens them again. Scope, resource and links are not kept at all. To
spans of GenAI conventions it adds OpenInference's names for the same.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.sources.feedback import ANY, Feedback, make_carrier
from starpo_trace.convert.sources.fields import (
    SPAN_DIGITS,
    TRACE_DIGITS,
    read_any_value,
    read_attributes,
    read_error,
    read_events,
    read_id,
    read_ns,
    read_time,
)

_KIND: Final = "openinference.span.kind"
_PREFIX: Final = "attributes."
_JSON_ATTRIBUTES: Final = ("tool.parameters", "metadata", "llm.prompt_template.variables")
"""What Phoenix parses of the texts that instrumentors write."""
_MESSAGES: Final = (keys.INPUT_MESSAGES, keys.OUTPUT_MESSAGES)
_FRAME_COLUMNS: Final = frozenset({"context.span_id", "context.trace_id", "span_kind"})
_REST_FIELDS: Final = frozenset({"context", "span_kind", "start_time"})
_OTLP_FIELDS: Final = frozenset({"trace_id", "span_id", "start_time_unix_nano", "parent_span_id"})
_ANNOTATION_FIELDS: Final = frozenset({"annotator_kind", "identifier"})


def is_span(names: Collection[str]) -> bool:
    """Whether a record with these names is a span of Phoenix, as its clients give it."""
    return set(names) >= _FRAME_COLUMNS or set(names) >= _REST_FIELDS


def is_annotation(names: Collection[str]) -> bool:
    """Whether a record with these names is an annotation of Phoenix."""
    return set(names) >= _ANNOTATION_FIELDS


def is_otlp_span(value: Mapping[str, Any]) -> bool:
    """Whether a record is a span as `/spans/otlpv1` gives it."""
    return value.keys() >= _OTLP_FIELDS and isinstance(value.get("attributes"), list)


def read_span(record: Mapping[str, Any], source: str) -> SpanRow:
    """A row of the data frame, or a span of the REST API -> span row.

    Raises:
        ValueError, TypeError, KeyError: a field cannot be read.
    """
    context = record.get("context")
    context = context if isinstance(context, Mapping) else {}
    attributes: dict[str, Any] = {}
    for name, value in record.items():
        if name.startswith(_PREFIX):
            flatten(name.removeprefix(_PREFIX), value, attributes)
    for name, value in read_attributes(record.get("attributes")).items():
        flatten(name, value, attributes)
    events = read_events(_to_list(record.get("events")))
    return _make_row(
        source=source,
        trace_id=context.get("trace_id", record.get("context.trace_id")),
        span_id=context.get("span_id", record.get("context.span_id")),
        parent_id=record.get("parent_id"),
        name=record.get("name"),
        start_ns=read_time(record.get("start_time")),
        end_ns=read_time(record.get("end_time")),
        error=read_error(record.get("status_code"), record.get("status_message")),
        events=events,
        attributes=restore_attributes(attributes, record.get("span_kind"), has_events=events != ()),
    )


def read_otlp_span(record: Mapping[str, Any], source: str) -> SpanRow:
    """A span of `/spans/otlpv1` -> span row.

    Raises:
        ValueError, TypeError, KeyError: a field cannot be read.
    """
    attributes: dict[str, Any] = {}
    for name, value in read_attributes(record["attributes"]).items():
        flatten(name, read_any_value(value), attributes)
    status = record.get("status") or {}
    events = read_events(record.get("events"))
    return _make_row(
        source=source,
        trace_id=record["trace_id"],
        span_id=record["span_id"],
        parent_id=record.get("parent_span_id"),
        name=record.get("name"),
        start_ns=read_ns(record, ("start_time_unix_nano",)),
        end_ns=read_ns(record, ("end_time_unix_nano",)),
        error=read_error(status.get("code"), status.get("message")),
        events=events,
        attributes=restore_attributes(attributes, None, has_events=events != ()),
    )


def _make_row(
    *, source: str, trace_id: Any, span_id: Any, parent_id: Any, name: Any, **fields: Any
) -> SpanRow:
    fields["end_ns"] = fields["end_ns"] or None
    return SpanRow(
        source=source,
        trace_id=read_id(trace_id, TRACE_DIGITS),
        span_id=read_id(span_id, SPAN_DIGITS),
        parent_id=read_id(parent_id, SPAN_DIGITS) if parent_id else None,
        name=str(name or ""),
        **fields,
    )


def flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    """A nested value -> attributes named by the way to it; indices count lists of objects.

    Counts that a data frame made floats for its gaps are integers again.
    """
    if isinstance(value, Mapping):
        if name in _JSON_ATTRIBUTES:
            into[name] = json.dumps(_drop_gaps(value), ensure_ascii=False)
            return
        for key, each in value.items():
            flatten(f"{name}.{key}", each, into)
        return
    items = _to_list(value)
    if isinstance(items, list):
        if items and all(isinstance(each, Mapping) for each in items):
            for number, each in enumerate(items):
                flatten(f"{name}.{number}", each, into)
        else:
            into[name] = items
    elif isinstance(value, float):
        if value == value:  # noqa: PLR0124 (no NaN)
            into[name] = int(value) if value.is_integer() else value
    elif value is not None:
        into[name] = value


def _to_list(value: Any) -> Any:
    """An array of a data frame -> list; anything else as it is."""
    return list(value) if isinstance(value, tuple) else value


def _drop_gaps(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object of a data frame's column, where every row has the names of all -> its own."""
    return {key: each for key, each in value.items() if each is not None}


def restore_attributes(
    attributes: dict[str, Any], kind: Any, *, has_events: bool
) -> dict[str, Any]:
    """Flattened attributes -> as the instrumentor wrote them, as far as Phoenix keeps that.

    Args:
        attributes: Of one span.
        kind: Phoenix's own field, which its REST API has instead of OpenInference's attribute.
        has_events: The span has events of GenAI conventions.
    """
    restored = dict(attributes)
    for name in _JSON_ATTRIBUTES:
        below = {key: each for key, each in restored.items() if key.startswith(f"{name}.")}
        if below:
            restored = {key: each for key, each in restored.items() if key not in below}
            value = {key.removeprefix(f"{name}."): each for key, each in below.items()}
            restored[name] = json.dumps(value, ensure_ascii=False)
    _restore_arguments(restored)
    if kind is not None and str(kind).upper() != "UNKNOWN":
        restored.setdefault(_KIND, kind)
    is_genai = keys.OPERATION_NAME in restored
    is_call = str(restored.get(_KIND)).upper() == "LLM"
    if is_genai and (not is_call or has_events or any(key in restored for key in _MESSAGES)):
        restored.pop(_KIND, None)  # GenAI's own names say more
    return restored


def _restore_arguments(attributes: dict[str, Any]) -> None:
    """A tool's arguments word for word, where the span's input says the same."""
    parsed, text = attributes.get("tool.parameters"), attributes.get("input.value")
    if isinstance(parsed, str) and isinstance(text, str):
        try:
            is_same = json.loads(parsed) == json.loads(text)
        except ValueError:
            return
        if is_same:
            attributes["tool.parameters"] = text


def read_annotation(record: Mapping[str, Any], source: str) -> SpanRow:
    """An annotation of a span, trace or session, from a data frame or the REST API -> its carrier.

    Raises:
        ValueError, TypeError: a field cannot be read, or it names no target.
    """
    result = record.get("result")
    result = result if isinstance(result, Mapping) else {}
    span_id, trace_id = record.get("span_id"), record.get("trace_id")
    session_id = record.get("session_id")
    if not (span_id or trace_id or session_id):
        raise ValueError(
            "an annotation without span_id; in a data frame it is the index: export "
            "`annotations.reset_index()`"
        )

    def find(name: str) -> Any:
        value = result.get(name, record.get(f"result.{name}"))
        return None if value != value else value  # noqa: PLR0124 (NaN)

    changed = record.get("updated_at") or record.get("created_at")
    name = str(record.get("annotation_name") or record.get("name") or "annotation")
    feedback = Feedback(
        key=f"phoenix:{record.get('id')}:{span_id}:{trace_id}:{name}:{changed}",
        name=name,
        value=find("score"),
        label=find("label"),
        explanation=find("explanation"),
        annotator=str(record.get("annotator_kind") or "").upper() or None,
        identifier=record.get("identifier"),
        time_ns=read_time(changed),
        trace_id=read_id(trace_id, TRACE_DIGITS) if trace_id else ANY,
        span_id=read_id(span_id, SPAN_DIGITS) if span_id else ANY,
        session_id=None if session_id is None else str(session_id),
    )
    return make_carrier(feedback, source)


def read_record(record: Mapping[str, Any], source: str) -> SpanRow | MalformedSpan:
    """Any record of Phoenix -> span row.

    Raises:
        ValueError, TypeError, KeyError: a field cannot be read.
    """
    if is_span(record.keys()):
        return read_span(record, source)
    if is_otlp_span(record):
        return read_otlp_span(record, source)
    return read_annotation(record, source)


def list_records(value: Any) -> Iterator[Any]:
    """A page of the REST API, a list of records, or one record -> records."""
    if isinstance(value, Mapping) and isinstance(value.get("data"), list):
        value = value["data"]
    yield from value if isinstance(value, list) else (value,)
