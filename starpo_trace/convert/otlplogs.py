"""OTLP log payloads (protobuf or JSON) -> span rows that stand for log records.

Instrumentations may write what was said as log records beside their spans. A log record becomes a
row below the span that it was emitted in, so that it is read, routed and counted like any span; what
it says, `starpo_trace.convert.dialects.logrecords` reads. It has no id of its own: a hash of what it
holds stands for one, behind a `#` that no span's id can have.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Final

from starpo_trace.convert.dialects.logrecords import EVALUATION, LOG_BODY, LOG_MARK
from starpo_trace.convert.otlp import (
    MAX_TIME_NS,
    DecodeError,
    MalformedSpan,
    SpanRow,
    decode_protobuf,
    describe_fault,
)
from starpo_trace.convert.otlpjson import read_json_value

_RECORD_DEPTH: Final = (1, 2, 2)
"""Field numbers on the way to a span or a log record: resource, scope, record."""
_FIRST_TAG_OF_SPAN: Final = 0x0A
"""Field 1 of a span is its trace id, of a log record its time."""


def holds_logs(value: Any) -> bool:
    """Whether a parsed JSON value is an OTLP log export."""
    return isinstance(value, dict) and isinstance(value.get("resourceLogs"), list)


def decode_log_groups(value: dict[str, Any], source: str) -> Iterator[SpanRow | MalformedSpan]:
    """OTLP JSON (one `{"resourceLogs": [...]}`), parsed -> its log records."""
    for group in value["resourceLogs"]:
        for scope_group in _list_of(group, "scopeLogs"):
            scope = _name_of(scope_group)
            for record in _list_of(scope_group, "logRecords"):
                try:
                    yield _json_row(record, scope, source)
                except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
                    yield _make_malformed(source, scope, describe_fault(error))


def decode_any_protobuf(payload: bytes, source: str) -> Iterator[SpanRow | MalformedSpan]:
    """Bytes of an OTLP message of spans or of log records, which have no mark that tells them apart.

    Raises:
        DecodeError: the bytes are neither.
    """
    if not is_log_message(payload):
        return decode_protobuf(payload, source)
    from google.protobuf.message import DecodeError as ProtobufError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest()
    try:
        request.ParseFromString(payload)
    except (ProtobufError, RecursionError) as error:
        raise DecodeError(f"not an OTLP log message: {error}") from error
    return _protobuf_logs(request, source)


def is_log_message(payload: bytes) -> bool:
    """Whether the first record of an OTLP message is a log record: only spans begin with bytes."""
    records = _find_records(payload, 0, len(payload), _RECORD_DEPTH)
    start, end = next(records, (0, 0))
    return start < end and payload[start] != _FIRST_TAG_OF_SPAN


def _find_records(
    payload: bytes, start: int, end: int, way: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    if not way:
        yield start, end
        return
    for found in _find_fields(payload, start, end, way[0]):
        yield from _find_records(payload, *found, way[1:])


def _find_fields(payload: bytes, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Bounds of the nested messages with a field number, within bounds."""
    position = start
    while position < end:
        tag, position = _read_varint(payload, position)
        if tag & 7 != 2:  # all fields on the way are length-delimited
            return
        length, position = _read_varint(payload, position)
        if position + length > end:
            return
        if tag >> 3 == wanted:
            yield position, position + length
        position += length


def _read_varint(payload: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    for byte in payload[position : position + 10]:
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, position


def _protobuf_logs(request: Any, source: str) -> Iterator[SpanRow | MalformedSpan]:
    for resource_logs in request.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            scope = scope_logs.scope.name
            for record in scope_logs.log_records:
                try:
                    yield _protobuf_row(record, scope, source)
                except (ValueError, TypeError, AttributeError, RecursionError) as error:
                    yield _make_malformed(source, scope, describe_fault(error))


def _protobuf_row(record: Any, scope: str, source: str) -> SpanRow:
    attributes = _protobuf_map(record.attributes)
    return _make_row(
        source=source,
        trace_id=_checked_id(record.trace_id.hex(), 32),
        span_id=_checked_id(record.span_id.hex(), 16),
        name=record.event_name or str(attributes.get("event.name") or ""),
        scope=scope,
        time_ns=min(record.time_unix_nano or record.observed_time_unix_nano, MAX_TIME_NS),
        attributes=attributes,
        body=_protobuf_value(record.body) if record.HasField("body") else None,
    )


def _protobuf_map(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _protobuf_value(pair.value) for pair in pairs}


def _protobuf_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_protobuf_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _protobuf_map(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


def _json_row(record: dict[str, Any], scope: str, source: str) -> SpanRow:
    attributes = _json_map(record.get("attributes"))
    time_ns = int(record.get("timeUnixNano") or record.get("observedTimeUnixNano") or 0)
    return _make_row(
        source=source,
        trace_id=_checked_id(str(record.get("traceId") or "").lower(), 32),
        span_id=_checked_id(str(record.get("spanId") or "").lower(), 16),
        name=str(record.get("eventName") or attributes.get("event.name") or ""),
        scope=scope,
        time_ns=max(0, min(time_ns, MAX_TIME_NS)),
        attributes=attributes,
        body=read_json_value(record.get("body")),
    )


def _json_map(pairs: Any) -> dict[str, Any]:
    return {str(pair["key"]): read_json_value(pair.get("value")) for pair in pairs or ()}


def _checked_id(value: str, length: int) -> str:
    """An id, or `""` for none and for all zeros."""
    if not value.strip("0"):
        return ""
    if len(value) != length:
        raise ValueError(f"id {value!r} has not {length} hexadecimal digits")
    int(value, 16)
    return value


def _list_of(container: Any, name: str) -> list[Any]:
    found = container.get(name) if isinstance(container, dict) else None
    return found if isinstance(found, list) else []


def _name_of(scope_group: Any) -> str:
    scope = scope_group.get("scope") if isinstance(scope_group, dict) else None
    name = scope.get("name") if isinstance(scope, dict) else None
    return name if isinstance(name, str) else ""


def _make_row(
    *,
    source: str,
    trace_id: str,
    span_id: str,
    name: str,
    scope: str,
    time_ns: int,
    attributes: dict[str, Any],
    body: Any,
) -> SpanRow:
    told = repr((name, scope, time_ns, sorted(attributes.items()), body))
    digest = blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return SpanRow(
        source=source,
        # One of no trace is alone, however many there are.
        trace_id=trace_id or f"{LOG_MARK}{digest}",
        span_id=f"{span_id}{LOG_MARK}{digest}",
        parent_id=span_id or None,
        name=name,
        scope=scope,
        start_ns=time_ns,
        end_ns=time_ns,
        links=((trace_id, span_id),) if name == EVALUATION and trace_id and span_id else (),
        attributes=attributes if body is None else {**attributes, LOG_BODY: body},
    )


def _make_malformed(source: str, scope: str, detail: str) -> MalformedSpan:
    return MalformedSpan(
        source=source, trace_id=None, span_id=None, name="log record", scope=scope, detail=detail
    )
