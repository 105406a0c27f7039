"""OTLP JSON -> span rows.

Text of the usual form is decoded into typed structs, the quickest way there is from Python; what
has another form is read value by value, so that a bad span costs only itself.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import orjson

from starpo_trace.convert.otlp import (
    MAX_TIME_NS,
    DecodeError,
    MalformedSpan,
    SpanRow,
    check_row,
    describe_fault,
)

_ERROR_CODES: Final = (2, "STATUS_CODE_ERROR")
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}"
    r"|(?P<half>u[dD][89a-fA-F][\da-fA-F]{2})|.)",
    re.ASCII | re.DOTALL,
)
"""An escape of JSON's; `half` of a pair of surrogates, which is no character."""


class _Value(msgspec.Struct, frozen=True, gc=False):
    stringValue: str | None = None
    intValue: int | str | None = None
    doubleValue: float | str | None = None
    boolValue: bool | None = None
    arrayValue: Any = None
    kvlistValue: Any = None
    bytesValue: str | None = None


class _Pair(msgspec.Struct, frozen=True, gc=False):
    key: str
    value: _Value = _Value()


class _Link(msgspec.Struct, frozen=True, gc=False):
    traceId: str
    spanId: str


class _Event(msgspec.Struct, frozen=True, gc=False):
    name: str = ""
    timeUnixNano: int | str = 0
    attributes: list[_Pair] = []


class _Status(msgspec.Struct, frozen=True, gc=False):
    code: int | str = 0
    message: str = ""


class _Span(msgspec.Struct, frozen=True, gc=False):
    traceId: str
    spanId: str
    parentSpanId: str = ""
    name: str = ""
    startTimeUnixNano: int | str = 0
    endTimeUnixNano: int | str = 0
    attributes: list[_Pair] = []
    status: _Status = _Status()
    droppedAttributesCount: int = 0
    events: list[_Event] = []
    links: list[_Link] = []


class _Scope(msgspec.Struct, frozen=True, gc=False):
    name: str = ""


class _ScopeSpans(msgspec.Struct, frozen=True, gc=False):
    scope: _Scope = _Scope()
    spans: list[_Span] = []


class _Resource(msgspec.Struct, frozen=True, gc=False):
    attributes: list[_Pair] = []


class _ResourceSpans(msgspec.Struct, frozen=True, gc=False):
    resource: _Resource = _Resource()
    scopeSpans: list[_ScopeSpans] = []
    instrumentationLibrarySpans: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Request(msgspec.Struct, frozen=True, gc=False):
    """OTLP JSON as everybody writes it; the lenient reader takes what has another form."""

    resourceSpans: list[_ResourceSpans]

    @property
    def is_old(self) -> bool:
        """Whether spans stand under the name of before OTLP 1.0."""
        return any(
            group.instrumentationLibrarySpans is not msgspec.UNSET for group in self.resourceSpans
        )


_DECODER: Final = msgspec.json.Decoder(_Request)


def decode_json(payload: bytes | str, source: str) -> Iterator[SpanRow | MalformedSpan]:
    """OTLP JSON (one `{"resourceSpans": [...]}`) -> its spans.

    Raises:
        DecodeError: the text is not JSON, or not such an object.
    """
    try:
        request = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _json_spans(_read_groups(payload), source)
    if request.is_old:
        return _json_spans(_read_groups(payload), source)
    return _typed_spans(request, source)


def _read_groups(payload: bytes | str) -> list[Any]:
    try:
        request = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        mended = _mend_escapes(payload)
        if mended == payload:
            raise DecodeError(f"not JSON: {error}") from error
        return _read_groups(mended)
    groups = request.get("resourceSpans") if isinstance(request, dict) else None
    if not isinstance(groups, list):
        raise DecodeError("no list `resourceSpans`")
    return groups


def _mend_escapes(payload: bytes | str) -> bytes | str:
    """Halves of characters outside of the basic plane, as cut texts have them -> U+FFFD."""
    if isinstance(payload, str):
        return _ESCAPE.sub(_mend_escape, payload)
    return _ESCAPE.sub(_mend_escape, payload.decode("utf-8", "surrogateescape")).encode(
        "utf-8", "surrogateescape"
    )


def _mend_escape(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape["half"] else escape[0]


def _typed_spans(request: _Request, source: str) -> Iterator[SpanRow | MalformedSpan]:
    for group in request.resourceSpans:
        resource = _read_typed_resource(group.resource)
        for scope_group in group.scopeSpans:
            scope = scope_group.scope.name
            for span in scope_group.spans:
                try:
                    yield check_row(_typed_row(span, scope, resource, source))
                except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
                    yield MalformedSpan(
                        source=source,
                        trace_id=span.traceId,
                        span_id=span.spanId,
                        name=span.name,
                        scope=scope,
                        detail=describe_fault(error),
                    )


def _read_typed_resource(resource: _Resource) -> dict[str, Any]:
    try:
        return _typed_map(resource.attributes)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}


def _typed_row(span: _Span, scope: str, resource: dict[str, Any], source: str) -> SpanRow:
    status = span.status
    return SpanRow(
        source=source,
        trace_id=span.traceId.lower(),
        span_id=span.spanId.lower(),
        parent_id=span.parentSpanId.lower() or None,
        name=span.name,
        scope=scope,
        start_ns=_json_time(span.startTimeUnixNano),
        end_ns=_json_time(span.endTimeUnixNano) or None,
        error=status.message if status.code in _ERROR_CODES else None,
        num_dropped=span.droppedAttributesCount,
        attributes=_typed_map(span.attributes),
        events=tuple(
            (event.name, _json_time(event.timeUnixNano), _typed_map(event.attributes))
            for event in span.events
            if event.name.startswith("gen_ai.")
        )
        if span.events
        else (),
        links=tuple((link.traceId.lower(), link.spanId.lower()) for link in span.links)
        if span.links
        else (),
        resource=resource,
    )


def _typed_map(pairs: list[_Pair]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        value = pair.value
        text = value.stringValue
        found[pair.key] = text if text is not None else _typed_value(value)
    return found


def _typed_value(value: _Value) -> Any:
    if value.intValue is not None:
        return int(value.intValue)
    if value.doubleValue is not None:
        return float(value.doubleValue)
    if value.arrayValue is not None:
        return read_json_value({"arrayValue": value.arrayValue})
    if value.kvlistValue is not None:
        return read_json_value({"kvlistValue": value.kvlistValue})
    return value.boolValue if value.boolValue is not None else value.bytesValue


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
    is_error = status.get("code") in _ERROR_CODES
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
    return time_ns if time_ns <= MAX_TIME_NS else MAX_TIME_NS


def _json_map(pairs: Any) -> dict[str, Any]:
    found = {pair["key"]: read_json_value(pair.get("value")) for pair in pairs or ()}
    if not all(isinstance(key, str) for key in found):
        raise ValueError("an attribute's key is no text")
    return found


def read_json_value(value: Any) -> Any:
    """`AnyValue` as JSON has it -> Python value."""
    if not value:
        return None
    kind, content = next(iter(value.items()))
    if kind == "intValue":
        return int(content)
    if kind == "doubleValue":
        return float(content)
    if kind == "arrayValue":
        return [read_json_value(item) for item in content.get("values") or ()]
    if kind == "kvlistValue":
        return _json_map(content.get("values"))
    return content


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
