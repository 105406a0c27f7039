"""Spans to be written -> OTLP JSON, one export request a line."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from typing import Any, Final

import orjson

from starpo_trace.semconv import SCOPE_NAME

FOREIGN_SCOPE: Final = "starpo_trace.write"
"""Scope of rewards that must not count: only what `starpo_trace` itself recorded may."""

_ERROR: Final = 2
_INTERNAL: Final = 1
_CLIENT: Final = 3


@dataclass(slots=True, kw_only=True)
class OutSpan:
    """A span to be written."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    name: str
    """Its name."""
    start_ns: int
    """Start, Unix time."""
    end_ns: int | None
    """End, Unix time; None for a span that never ended."""
    attributes: dict[str, Any]
    """Attributes; those that are None are left out."""
    parent_id: str | None = None
    """Span id of its parent, in the same trace."""
    is_client: bool = False
    """Whether it is a call of another service."""
    error: str | None = None
    """Message of its status, where that is an error."""
    links: Sequence[tuple[str, str]] = ()
    """Trace and span id of each linked span."""
    events: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    """Name, time and attributes of each event."""
    num_dropped: int = 0
    """Attributes that are said to be missing."""
    scope: str = SCOPE_NAME
    """Name of its instrumentation scope."""


def derive_id(length: int, *parts: object) -> str:
    """What something is -> the same id for it every time, of so many bytes, in hexadecimal digits."""
    data = "\0".join(map(str, parts)).encode()
    return blake2b(data, digest_size=length, person=b"starpo-write").hexdigest()


def encode_request(spans: Iterable[OutSpan], service: str) -> bytes:
    """Spans -> one `ExportTraceServiceRequest` as JSON."""
    scopes: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        scopes.setdefault(span.scope, []).append(_encode_span(span))
    resource = {
        "service.name": service,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "starpo",
    }
    group = {
        "resource": {"attributes": encode_attributes(resource)},
        "scopeSpans": [
            {"scope": {"name": name, "version": version("starpo")}, "spans": each}
            for name, each in scopes.items()
        ],
    }
    return orjson.dumps({"resourceSpans": [group]})


def _encode_span(span: OutSpan) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": _CLIENT if span.is_client else _INTERNAL,
        "startTimeUnixNano": str(max(span.start_ns, 0)),
        "endTimeUnixNano": str(max(span.end_ns or 0, 0)),
        "attributes": encode_attributes(span.attributes),
        "status": {} if span.error is None else {"code": _ERROR, "message": span.error},
    }
    if span.parent_id is not None:
        encoded["parentSpanId"] = span.parent_id
    if span.num_dropped:
        encoded["droppedAttributesCount"] = span.num_dropped
    if span.links:
        encoded["links"] = [{"traceId": trace, "spanId": each} for trace, each in span.links]
    if span.events:
        encoded["events"] = [
            {
                "name": name,
                "timeUnixNano": str(time_ns),
                "attributes": encode_attributes(attributes),
            }
            for name, time_ns, attributes in span.events
        ]
    return encoded


def encode_attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Attributes -> their OTLP JSON; those that are None are left out."""
    return [
        {"key": key, "value": _encode_value(value)}
        for key, value in values.items()
        if value is not None
    ]


def _encode_value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list() | tuple():
            return {"arrayValue": {"values": [_encode_value(each) for each in value]}}
        case _:
            return {"stringValue": str(value)}
