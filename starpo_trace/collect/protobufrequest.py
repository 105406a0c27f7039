"""OTLP protobuf -> itself, or itself without the spans that are of no use."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from starpo_trace.collect.checks import Tally, check_group, check_span
from starpo_trace.collect.refusals import FieldError, Reason, RefusedError
from starpo_trace.collect.shells import RequestShell, ResourceShell, ScopeShell


def filter_protobuf(body: bytes, tally: Tally) -> bytes:
    """Body -> bytes of its good spans, counted in `tally`; mostly the body itself.

    Raises:
        RefusedError: it is not OTLP, or larger than allowed.
    """
    request = _parse(RequestShell, body, "the request")
    tally.expect(len(request.resource_spans), "resources")
    is_whole = True
    for index, group in enumerate(request.resource_spans):
        kept = _filter_resource(group, f"resource_spans[{index}]", tally)
        if kept is not None:
            request.resource_spans[index] = kept
            is_whole = False
    return body if is_whole else request.SerializeToString()


def _filter_resource(group: bytes, path: str, tally: Tally) -> bytes | None:
    """Bytes of the group without useless spans; None when it has none."""
    resource = _parse(ResourceShell, group, path)
    _check_group(resource.resource, f"{path}.resource", tally)
    tally.expect(len(resource.scope_spans), "scopes")
    is_whole = True
    for index, data in enumerate(resource.scope_spans):
        scope_path = f"{path}.scope_spans[{index}]"
        scope = _parse(ScopeShell, data, scope_path)
        _check_group(scope.scope, f"{scope_path}.scope", tally)
        tally.expect(len(scope.spans), "spans")
        kept = _keep_good(scope.spans, scope_path, tally)
        if len(kept) < len(scope.spans):
            scope.spans[:] = kept
            resource.scope_spans[index] = scope.SerializeToString()
            is_whole = False
    return None if is_whole else resource.SerializeToString()


def _check_group(group: Any, path: str, tally: Tally) -> None:
    try:
        check_group(group, tally)
    except FieldError as fault:
        raise RefusedError(Reason.MALFORMED, str(fault.under(path))) from None


def _keep_good(spans: Iterable[bytes], path: str, tally: Tally) -> list[bytes]:
    kept: list[bytes] = []
    for index, data in enumerate(spans):
        try:
            _check_span_bytes(data, tally)
        except FieldError as fault:
            tally.reject(fault.under(f"{path}.spans[{index}]"))
        else:
            kept.append(data)
    tally.num_good += len(kept)
    return kept


def _check_span_bytes(data: bytes, tally: Tally) -> None:
    if len(data) > tally.limits.max_span_bytes:
        raise FieldError(f"more than {tally.limits.max_span_bytes:,} bytes")
    try:
        span = Span.FromString(data)
    except DecodeError as error:
        raise FieldError(describe_fault(error)) from None
    check_span(span, tally)


def _parse(kind: Any, data: bytes, what: str) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        problem = f"not an OTLP trace request: {what}: {describe_fault(error)}"
        raise RefusedError(Reason.MALFORMED, problem) from None


def describe_fault(error: DecodeError) -> str:
    """What protobuf says of bytes it cannot read -> words for the sender."""
    text = str(error).rpartition(": ")[2]
    return {
        "Wire format was corrupt": "broken protobuf",
        "String field had bad UTF-8": "text that is not UTF-8",
        "Exceeded upb_DecodeOptions_MaxDepth": "nested too deeply",
    }.get(text, "broken protobuf")
