"""OTLP JSON -> `ExportTraceServiceRequest` bytes.

Written out rather than left to protobuf's JSON bridge, which is nine times slower, expects ids in
base64, and stops at the first fault.
"""

from typing import Any, Final

import orjson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from starpo_trace.collect.checks import Tally, check_attributes, check_span
from starpo_trace.collect.jsonfields import (
    RESOURCE_SPANS,
    SCOPE_SPANS,
    SPAN,
    as_list,
    as_object,
    fill,
)
from starpo_trace.collect.refusals import FieldError, Reason, RefusedError

_SNAKE: Final = "resource_spans"


def convert_json(body: bytes, tally: Tally) -> bytes:
    """JSON body -> protobuf bytes of its good spans, counted in `tally`.

    Raises:
        RefusedError: it is not JSON, or what surrounds the spans is not OTLP.
    """
    num_marks = body.count(b",") + body.count(b"[") + 2 * body.count(b"{")
    if num_marks > tally.limits.max_json_marks:
        raise RefusedError(Reason.TOO_LARGE, "the JSON has too many elements; send smaller batches")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(Reason.MALFORMED, f"not JSON: {error}") from None
    request = ExportTraceServiceRequest()
    try:
        _fill_request(request, document, tally)
    except FieldError as fault:
        raise RefusedError(Reason.MALFORMED, str(fault)) from None
    return request.SerializeToString()


def _fill_request(request: Any, document: Any, tally: Tally) -> None:
    document = as_object(document)
    if _SNAKE in document and "resourceSpans" not in document:
        raise FieldError("OTLP JSON spells it resourceSpans").under(_SNAKE)
    groups = as_list(document, "resourceSpans")
    tally.expect(len(groups), "resources")
    for index, group in enumerate(groups):
        try:
            _fill_resource(request.resource_spans.add(), group, f"resourceSpans[{index}]", tally)
        except FieldError as fault:
            raise fault.under(f"resourceSpans[{index}]") from None


def _fill_resource(target: Any, group: Any, path: str, tally: Tally) -> None:
    fill(target, RESOURCE_SPANS, group)
    _check_group(target.resource, "resource", tally)
    scopes = as_list(group, "scopeSpans")
    tally.expect(len(scopes), "scopes")
    for index, scope in enumerate(scopes):
        try:
            _fill_scope(target.scope_spans.add(), scope, f"{path}.scopeSpans[{index}]", tally)
        except FieldError as fault:
            raise fault.under(f"scopeSpans[{index}]") from None


def _fill_scope(target: Any, scope: Any, path: str, tally: Tally) -> None:
    fill(target, SCOPE_SPANS, scope)
    _check_group(target.scope, "scope", tally)
    objects = as_list(scope, "spans")
    tally.expect(len(objects), "spans")
    spans = target.spans
    for index, content in enumerate(objects):
        span = spans.add()
        try:
            fill(span, SPAN, content)
            check_span(span, tally)
        except FieldError as fault:
            del spans[-1]
            tally.reject(fault.under(f"{path}.spans[{index}]"))
        else:
            tally.num_good += 1


def _check_group(group: Any, name: str, tally: Tally) -> None:
    try:
        check_attributes(group, tally)
    except FieldError as fault:
        raise fault.under(name) from None
