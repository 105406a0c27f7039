"""OTLP payloads (protobuf or JSON) -> span rows.

Plain Python over upb protobuf and orjson: on this data both Polars' NDJSON reader and protobuf's
own JSON bridge are several times slower.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

MAX_TIME_NS = 2**63 - 1
"""Later times (the field is unsigned) do not fit the dataset's columns and are cut to this."""

_ID_LENGTHS = (32, 16)


class DecodeError(ValueError):
    """A payload is not an OTLP trace export."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRow:
    """One span as it was exported, whatever its dialect."""

    source: str
    """Path of the store or file it was read from, as the caller named it."""
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    parent_id: str | None = None
    """Span id of the parent, in the same trace."""
    name: str = ""
    """Span name."""
    scope: str = ""
    """Name of the instrumentation scope."""
    start_ns: int = 0
    """Start, Unix time."""
    end_ns: int | None = None
    """End, Unix time; None when the span never ended."""
    error: str | None = None
    """Status message of a failed span (empty when it has none); None when the status is not
    an error."""
    num_dropped: int = 0
    """Attributes the SDK dropped for its limits."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Attribute values as Python objects."""
    events: tuple[tuple[str, int, dict[str, Any]], ...] = ()
    """(name, time_ns, attributes) of each GenAI span event."""
    links: tuple[tuple[str, str], ...] = ()
    """(trace_id, span_id) of each linked span."""
    resource: dict[str, Any] = field(default_factory=dict)
    """Attributes of the process that recorded it; one object for all its spans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MalformedSpan:
    """A span that was read but cannot be used by anybody."""

    source: str
    """Where it was read."""
    trace_id: str | None
    """Its trace id as found."""
    span_id: str | None
    """Its span id as found."""
    name: str
    """Its name, when it has one."""
    scope: str
    """Its scope's name."""
    detail: str
    """What is wrong with it."""


def decode_protobuf(payload: bytes, source: str) -> Iterator[SpanRow | MalformedSpan]:
    """`ExportTraceServiceRequest` or `TracesData` bytes -> its spans.

    Raises:
        DecodeError: the bytes are not such a message.
    """
    from google.protobuf.message import DecodeError as ProtobufError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(payload)
    except (ProtobufError, RecursionError) as error:
        raise DecodeError(f"not an OTLP trace message: {error}") from error
    return _protobuf_spans(request, source)


def decode_json(payload: bytes | str, source: str) -> Iterator[SpanRow | MalformedSpan]:
    """OTLP JSON (one `{"resourceSpans": [...]}`) -> its spans.

    Raises:
        DecodeError: the text is not JSON, or not such an object.
    """
    try:
        request = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise DecodeError(f"not JSON: {error}") from error
    groups = request.get("resourceSpans") if isinstance(request, dict) else None
    if not isinstance(groups, list):
        raise DecodeError("no list `resourceSpans`")
    return _json_spans(groups, source)


def _protobuf_spans(request: Any, source: str) -> Iterator[SpanRow | MalformedSpan]:
    for resource_spans in request.resource_spans:
        resource = _protobuf_map(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            scope = scope_spans.scope.name
            for span in scope_spans.spans:
                try:
                    row = _protobuf_row(span, scope, resource, source)
                    yield check_row(row)
                except (ValueError, TypeError, AttributeError, RecursionError) as error:
                    trace_id, span_id = span.trace_id.hex(), span.span_id.hex()
                    yield MalformedSpan(
                        source=source,
                        trace_id=trace_id,
                        span_id=span_id,
                        name=span.name,
                        scope=scope,
                        detail=str(error),
                    )


def _protobuf_row(span: Any, scope: str, resource: dict[str, Any], source: str) -> SpanRow:
    return SpanRow(
        source=source,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        name=span.name,
        scope=scope,
        start_ns=min(span.start_time_unix_nano, MAX_TIME_NS),
        end_ns=min(span.end_time_unix_nano, MAX_TIME_NS) or None,
        error=span.status.message if span.status.code == 2 else None,
        num_dropped=span.dropped_attributes_count,
        attributes=_protobuf_map(span.attributes),
        events=tuple(
            (
                event.name,
                min(event.time_unix_nano, MAX_TIME_NS),
                _protobuf_map(event.attributes),
            )
            for event in span.events
            if event.name.startswith("gen_ai.")
        ),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        resource=resource,
    )


def _protobuf_map(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _protobuf_value(pair.value) for pair in pairs}


def _protobuf_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_protobuf_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _protobuf_map(value.kvlist_value.values)
    if kind is None:
        return None
    return getattr(value, kind)


def _json_spans(groups: list[Any], source: str) -> Iterator[SpanRow | MalformedSpan]:
    for resource, scope, span in _json_span_objects(groups):
        try:
            yield check_row(_json_row(span, scope, resource, source))
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            fields = span if isinstance(span, dict) else {}
            yield MalformedSpan(
                source=source,
                trace_id=_text_or_none(fields.get("traceId")),
                span_id=_text_or_none(fields.get("spanId")),
                name=_text_or_none(fields.get("name")) or "",
                scope=scope,
                detail=describe_fault(error),
            )


def _json_span_objects(groups: list[Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Resource, scope and span, also under the names of before OTLP 1.0; what holds none is one bad span."""
    for group in groups:
        resource = _read_resource(group)
        for scope_group in _list_of(group, "scopeSpans", "instrumentationLibrarySpans"):
            scope = name = None
            if isinstance(scope_group, dict):
                scope = scope_group.get("scope") or scope_group.get("instrumentationLibrary")
            if isinstance(scope, dict):
                name = scope.get("name")
            for span in _list_of(scope_group, "spans"):
                yield resource, _text_or_none(name) or "", span


def _read_resource(group: Any) -> dict[str, Any]:
    """Resource attributes; none where they cannot be read, for the spans can."""
    try:
        return _json_map(group["resource"]["attributes"])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}


def _list_of(container: Any, *names: str) -> Iterator[Any]:
    """What an object holds in lists of these names; the object itself where it holds no list."""
    if not isinstance(container, dict):
        yield container
        return
    for name in names:
        found = container.get(name)
        if isinstance(found, list):
            yield from found
        elif found is not None:
            yield found


def _json_row(span: dict[str, Any], scope: str, resource: dict[str, Any], source: str) -> SpanRow:
    status = span.get("status") or {}
    is_error = status.get("code") in (2, "STATUS_CODE_ERROR")
    return SpanRow(
        source=source,
        trace_id=span["traceId"].lower(),
        span_id=span["spanId"].lower(),
        parent_id=(span.get("parentSpanId") or "").lower() or None,
        name=str(span.get("name", "")),
        scope=scope,
        start_ns=_json_time(span.get("startTimeUnixNano")),
        end_ns=_json_time(span.get("endTimeUnixNano")) or None,
        error=str(status.get("message") or "") if is_error else None,
        num_dropped=int(span.get("droppedAttributesCount") or 0),
        attributes=_json_map(span.get("attributes")),
        events=tuple(
            (
                event["name"],
                _json_time(event.get("timeUnixNano")),
                _json_map(event.get("attributes")),
            )
            for event in span.get("events") or ()
            if str(event.get("name", "")).startswith("gen_ai.")
        ),
        links=tuple(
            (link["traceId"].lower(), link["spanId"].lower()) for link in span.get("links") or ()
        ),
        resource=resource,
    )


def _json_time(value: Any) -> int:
    time_ns = int(value or 0)
    if time_ns < 0:
        raise ValueError(f"negative time {time_ns}")
    return min(time_ns, MAX_TIME_NS)


def _json_map(pairs: Any) -> dict[str, Any]:
    found = {pair["key"]: _json_value(pair.get("value")) for pair in pairs or ()}
    if not all(isinstance(key, str) for key in found):
        raise ValueError("an attribute's key is no text")
    return found


def _json_value(value: Any) -> Any:
    if not value:
        return None
    kind, content = next(iter(value.items()))
    if kind == "intValue":
        return int(content)
    if kind == "doubleValue":
        return float(content)
    if kind == "arrayValue":
        return [_json_value(item) for item in content.get("values") or ()]
    if kind == "kvlistValue":
        return _json_map(content.get("values"))
    return content


def check_row(row: SpanRow) -> SpanRow:
    """Row -> the same, if its ids can be used.

    Raises:
        ValueError: they cannot.
    """
    for what, value, length in zip(
        ("trace id", "span id"), (row.trace_id, row.span_id), _ID_LENGTHS, strict=True
    ):
        if len(value) != length or not value.strip("0"):
            raise ValueError(f"{what} {value!r} is not {length} hexadecimal digits above zero")
        int(value, 16)
    return row


def describe_fault(error: Exception) -> str:
    """Fault in a span's data -> what is wrong with it, in words."""
    match error:
        case KeyError():
            return f"{error.args[0]} is missing" if error.args else "a field is missing"
        case TypeError() | AttributeError():
            return f"a value has the wrong type ({error})"
        case RecursionError():
            return "nested too deeply"
        case _:
            return str(error) or "it cannot be read"


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
