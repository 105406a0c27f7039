"""OTLP protobuf -> span rows; and what a span row is. JSON is read by `otlpjson`.

Plain Python over upb protobuf and msgspec: on this data both Polars' NDJSON reader and protobuf's
own JSON bridge are several times slower.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

MAX_TIME_NS = 2**63 - 1
"""Later times (the field is unsigned) do not fit the dataset's columns and are cut to this."""

_IS_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}").fullmatch
_IS_SPAN_ID: Final = re.compile(r"(?!0{16})[0-9a-f]{16}").fullmatch
_SCALARS: Final = frozenset(
    {"string_value", "int_value", "bool_value", "double_value", "bytes_value"}
)


class DecodeError(ValueError):
    """A payload is not an OTLP trace export."""


class SpanRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    attributes: dict[str, Any] = {}
    """Attribute values as Python objects."""
    events: tuple[tuple[str, int, dict[str, Any]], ...] = ()
    """(name, time_ns, attributes) of each GenAI span event."""
    links: tuple[tuple[str, str], ...] = ()
    """(trace_id, span_id) of each linked span."""
    resource: dict[str, Any] = {}
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
    found = {}
    for pair in pairs:
        value = pair.value
        kind = value.WhichOneof("value")
        found[pair.key] = getattr(value, kind) if kind in _SCALARS else _protobuf_value(value)
    return found


def _protobuf_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_protobuf_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _protobuf_map(value.kvlist_value.values)
    if kind is None:
        return None
    return getattr(value, kind)


def check_row(row: SpanRow) -> SpanRow:
    """Row -> the same, if its ids are valid.

    Raises:
        ValueError: an id is not of its length, not hexadecimal, or zero.
    """
    if not _IS_TRACE_ID(row.trace_id):
        raise ValueError(f"trace id {row.trace_id!r} is not 32 hexadecimal digits above zero")
    if not _IS_SPAN_ID(row.span_id):
        raise ValueError(f"span id {row.span_id!r} is not 16 hexadecimal digits above zero")
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
