"""OTLP JSON objects -> fields of OTLP messages, by tables that name each field once.

As OTLP demands, unknown keys are ignored, null is a field left out, ids are hexadecimal, and 64-bit
numbers may be text.
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from starpo_trace.collect.limits import MAX_NESTING
from starpo_trace.collect.refusals import FieldError

_Reader = Callable[[Any, str, Any], None]
Fields = Mapping[str, tuple[str, _Reader]]
"""JSON key -> field of the message, and what reads it."""

_MAX_SHOWN: Final = 40


def fill(target: Any, fields: Fields, content: Any) -> None:
    """JSON object -> the fields of a message.

    Raises:
        FieldError: a value has the wrong type.
    """
    for key, value in as_object(content).items():
        field = fields.get(key)
        if field is None or value is None:
            continue
        name, read = field
        try:
            read(target, name, value)
        except FieldError as fault:
            raise fault.under(key) from None


def as_object(value: Any) -> dict[str, Any]:
    """Value, which must be a JSON object."""
    if type(value) is not dict:
        raise FieldError(f"{_show(value)} is not an object")
    return value


def as_list(content: dict[str, Any], key: str) -> list[Any]:
    """Value of a key, which must be a list; empty when it is not there."""
    value = content.get(key)
    if value is None:
        return []
    if type(value) is not list:
        raise FieldError(f"{_show(value)} is not a list").under(key)
    return value


def _read_text(target: Any, name: str, value: Any) -> None:
    if type(value) is not str:
        raise FieldError(f"{_show(value)} is not text")
    setattr(target, name, value)


def _read_id(num_bytes: int) -> _Reader:
    def read(target: Any, name: str, value: Any) -> None:
        if type(value) is str and len(value) in {0, 2 * num_bytes}:
            try:
                setattr(target, name, bytes.fromhex(value))
            except ValueError:
                pass
            else:
                return
        raise FieldError(f"{_show(value)} is not {2 * num_bytes} hexadecimal digits")

    return read


def _read_integer(low: int, high: int) -> _Reader:
    def read(target: Any, name: str, value: Any) -> None:
        number = _parse_integer(value)
        if not low <= number <= high:
            raise FieldError(f"{_show(value)} is not between {low} and {high}")
        setattr(target, name, number)

    return read


def _parse_integer(value: Any) -> int:
    if type(value) is int:
        return value
    if type(value) is str and len(value) <= 20:
        digits = value.removeprefix("-")
        if digits.isascii() and digits.isdigit():
            return int(value)
    raise FieldError(f"{_show(value)} is not a whole number")


def _read_enum(names: Mapping[str, int]) -> _Reader:
    read_number = _read_integer(-(2**31), 2**31 - 1)

    def read(target: Any, name: str, value: Any) -> None:
        # The standard asks for the number; some senders write the name.
        read_number(target, name, names.get(value, value) if type(value) is str else value)

    return read


def _read_boolean(target: Any, name: str, value: Any) -> None:
    if type(value) is not bool:
        raise FieldError(f"{_show(value)} is not true or false")
    setattr(target, name, value)


def _read_double(target: Any, name: str, value: Any) -> None:
    number = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(
        value if type(value) is str else "", value
    )
    if type(number) not in {int, float}:
        raise FieldError(f"{_show(value)} is not a number")
    setattr(target, name, number)


def _read_bytes(target: Any, name: str, value: Any) -> None:
    if type(value) is str:
        plain = value.replace("-", "+").replace("_", "/").rstrip("=")
        try:
            data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, ValueError):
            pass
        else:
            setattr(target, name, data)
            return
    raise FieldError(f"{_show(value)} is not base64")


def _read_value(target: Any, name: str, value: Any) -> None:
    _fill_value(getattr(target, name), value, 0, "")


def _read_message(fields: Fields) -> _Reader:
    def read(target: Any, name: str, value: Any) -> None:
        message = getattr(target, name)
        message.SetInParent()
        fill(message, fields, value)

    return read


def _read_messages(fields: Fields) -> _Reader:
    def read(target: Any, name: str, value: Any) -> None:
        if type(value) is not list:
            raise FieldError(f"{_show(value)} is not a list")
        messages = getattr(target, name)
        for index, content in enumerate(value):
            try:
                fill(messages.add(), fields, content)
            except FieldError as fault:
                raise fault.under(f"[{index}]") from None

    return read


def _read_attributes(target: Any, name: str, value: Any) -> None:
    _fill_pairs(getattr(target, name), value, 0)


def _fill_pairs(pairs: Any, value: Any, depth: int) -> None:
    if type(value) is not list:
        raise FieldError(f"{_show(value)} is not a list")
    for index, pair in enumerate(value):
        try:
            _fill_pair(pairs.add(), pair, depth)
        except FieldError as fault:
            raise fault.under(f"[{index}]") from None


def _fill_pair(target: Any, pair: Any, depth: int) -> None:
    content = as_object(pair)
    key = content.get("key", "")
    if type(key) is not str:
        raise FieldError(f"{_show(key)} is not text").under("key")
    target.key = key
    value = content.get("value")
    if type(value) is dict and len(value) == 1 and type(value.get("stringValue")) is str:
        target.value.string_value = value["stringValue"]  # as nearly all are
    elif value is not None:
        _fill_value(target.value, value, depth, "value")


def _fill_value(target: Any, value: Any, depth: int, path: str) -> None:
    """`AnyValue` object -> message; `depth` lists and maps are around it."""
    is_set = False
    target.SetInParent()
    if type(value) is not dict:
        raise FieldError(f"{_show(value)} is not an object").under(path)
    for kind, content in value.items():
        field = _VALUE.get(kind)
        if content is None or (field is None and kind not in _NESTED):
            continue
        if is_set:
            raise FieldError("holds two values").under(path)
        is_set = True
        try:
            if field is not None:
                field[1](target, field[0], content)
            else:
                _fill_nested(getattr(target, _NESTED[kind]), content, depth + 1)
        except FieldError as fault:
            raise fault.under(f"{path}.{kind}".lstrip(".")) from None


def _fill_nested(target: Any, content: Any, depth: int) -> None:
    if depth > MAX_NESTING:
        raise FieldError(f"nested more than {MAX_NESTING} levels deep")
    target.SetInParent()
    values = as_list(as_object(content), "values")
    if target.DESCRIPTOR.name == "KeyValueList":
        _fill_pairs(target.values, values, depth)
        return
    for index, value in enumerate(values):
        message = target.values.add()
        if value is not None:
            _fill_value(message, value, depth, f"values[{index}]")


def _show(value: Any) -> str:
    """Value -> what a client recognises it by."""
    if type(value) in {dict, list}:
        return "an object" if type(value) is dict else "a list"
    text = orjson.dumps(value).decode() if not isinstance(value, str) else repr(value[:200])
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


_UINT32 = _read_integer(0, 2**32 - 1)
_UINT64 = _read_integer(0, 2**64 - 1)
_VALUE: Final[Fields] = {
    "stringValue": ("string_value", _read_text),
    "boolValue": ("bool_value", _read_boolean),
    "intValue": ("int_value", _read_integer(-(2**63), 2**63 - 1)),
    "doubleValue": ("double_value", _read_double),
    "bytesValue": ("bytes_value", _read_bytes),
}
_NESTED: Final = {"arrayValue": "array_value", "kvlistValue": "kvlist_value"}
_ATTRIBUTES: Final[Fields] = {
    "attributes": ("attributes", _read_attributes),
    "droppedAttributesCount": ("dropped_attributes_count", _UINT32),
}
_EVENT: Final[Fields] = {
    "timeUnixNano": ("time_unix_nano", _UINT64),
    "name": ("name", _read_text),
    **_ATTRIBUTES,
}
_LINK: Final[Fields] = {
    "traceId": ("trace_id", _read_id(16)),
    "spanId": ("span_id", _read_id(8)),
    "traceState": ("trace_state", _read_text),
    "flags": ("flags", _UINT32),
    **_ATTRIBUTES,
}
_STATUS: Final[Fields] = {
    "message": ("message", _read_text),
    "code": ("code", _read_enum(dict(trace_pb2.Status.StatusCode.items()))),
}
SPAN: Final[Fields] = {
    "traceId": ("trace_id", _read_id(16)),
    "spanId": ("span_id", _read_id(8)),
    "traceState": ("trace_state", _read_text),
    "parentSpanId": ("parent_span_id", _read_id(8)),
    "flags": ("flags", _UINT32),
    "name": ("name", _read_text),
    "kind": ("kind", _read_enum(dict(trace_pb2.Span.SpanKind.items()))),
    "startTimeUnixNano": ("start_time_unix_nano", _UINT64),
    "endTimeUnixNano": ("end_time_unix_nano", _UINT64),
    "events": ("events", _read_messages(_EVENT)),
    "droppedEventsCount": ("dropped_events_count", _UINT32),
    "links": ("links", _read_messages(_LINK)),
    "droppedLinksCount": ("dropped_links_count", _UINT32),
    "status": ("status", _read_message(_STATUS)),
    **_ATTRIBUTES,
}
LOG_RECORD: Final[Fields] = {
    "timeUnixNano": ("time_unix_nano", _UINT64),
    "observedTimeUnixNano": ("observed_time_unix_nano", _UINT64),
    "severityNumber": ("severity_number", _read_enum(dict(logs_pb2.SeverityNumber.items()))),
    "severityText": ("severity_text", _read_text),
    "body": ("body", _read_value),
    "flags": ("flags", _UINT32),
    "traceId": ("trace_id", _read_id(16)),
    "spanId": ("span_id", _read_id(8)),
    "eventName": ("event_name", _read_text),
    **_ATTRIBUTES,
}
_SCOPE: Final[Fields] = {
    "name": ("name", _read_text),
    "version": ("version", _read_text),
    **_ATTRIBUTES,
}
GROUP: Final[Fields] = {
    "resource": ("resource", _read_message(_ATTRIBUTES)),
    "schemaUrl": ("schema_url", _read_text),
}
SCOPE_GROUP: Final[Fields] = {
    "scope": ("scope", _read_message(_SCOPE)),
    "schemaUrl": ("schema_url", _read_text),
}
