"""OTLP protobuf -> itself, or itself without the records that are of no use."""

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from starpo_trace.collect.checks import Tally, check_attributes
from starpo_trace.collect.refusals import FieldError, Reason, RefusedError
from starpo_trace.collect.shells import RequestShell, ResourceShell, ScopeShell
from starpo_trace.collect.signals import LOGS, TRACES, Signal

_SPAN_BEGINS: Final = b"\x0a"
"""By which readers of the store tell spans from log records."""
_LARGE_BYTES: Final = 4 << 20
_NUM_OTHER_FIELDS: Final = 1000


def filter_protobuf(body: bytes, tally: Tally, signal: Signal) -> bytes:
    """Body -> bytes of its good records, counted in `tally`; mostly the body itself.

    Raises:
        RefusedError: it is not OTLP, or larger than allowed.
    """
    request = _parse(RequestShell, body, "the request", tally)
    tally.expect(len(request.groups), "resources")
    is_whole = True
    for index, group in enumerate(request.groups):
        kept = _filter_resource(group, f"{signal.levels[0]}[{index}]", tally, signal)
        if kept is not None:
            request.groups[index] = kept
            is_whole = False
    return body if is_whole else request.SerializeToString()


def _filter_resource(group: bytes, path: str, tally: Tally, signal: Signal) -> bytes | None:
    """Bytes of the group without useless records; None when it has none."""
    resource = _parse(ResourceShell, group, path, tally)
    _check_group(Resource, resource.resource, f"{path}.resource", tally)
    tally.expect(len(resource.scopes), "scopes")
    is_whole = True
    for index, data in enumerate(resource.scopes):
        scope_path = f"{path}.{signal.levels[1]}[{index}]"
        scope = _parse(ScopeShell, data, scope_path, tally)
        _check_group(InstrumentationScope, scope.scope, f"{scope_path}.scope", tally)
        tally.expect(len(scope.records), f"{signal.name}s")
        kept = _keep_good(scope.records, f"{scope_path}.{signal.levels[2]}", tally, signal)
        if len(kept) < len(scope.records):
            scope.records[:] = kept
            resource.scopes[index] = scope.SerializeToString()
            is_whole = False
    return None if is_whole else resource.SerializeToString()


def _check_group(kind: Any, pieces: Iterable[bytes], path: str, tally: Tally) -> None:
    """Look at a resource or scope, which may come in several pieces."""
    for piece in pieces:
        group = _parse(kind, piece, path, tally)
        try:
            check_attributes(group, tally)
        except FieldError as fault:
            raise RefusedError(Reason.MALFORMED, str(fault.under(path))) from None


def _keep_good(records: Iterable[bytes], path: str, tally: Tally, signal: Signal) -> list[bytes]:
    kept: list[bytes] = []
    for index, data in enumerate(records):
        try:
            _check_record(data, tally, signal)
        except FieldError as fault:
            tally.reject(fault.under(f"{path}[{index}]"))
        else:
            kept.append(data)
    tally.num_good += len(kept)
    return kept


def _check_record(data: bytes, tally: Tally, signal: Signal) -> None:
    if len(data) > tally.limits.max_span_bytes:
        raise FieldError(f"more than {tally.limits.max_span_bytes:,} bytes")
    if signal is LOGS and data[:1] == _SPAN_BEGINS:
        raise FieldError(f"a span, no log record; send it to {TRACES.path}")
    _check_fields(data, tally.limits.max_values)
    try:
        record = signal.record.FromString(data)
    except DecodeError as error:
        raise FieldError(describe_fault(error)) from None
    signal.check(record, tally)


def _parse(kind: Any, data: bytes, what: str, tally: Tally) -> Any:
    _check_fields(data, tally.limits.max_spans + _NUM_OTHER_FIELDS)
    try:
        return kind.FromString(data)
    except DecodeError as error:
        problem = f"not an OTLP request: {what}: {describe_fault(error)}"
        raise RefusedError(Reason.MALFORMED, problem) from None


def _check_fields(data: bytes, limit: int) -> None:
    """Count the fields of a large message before protobuf makes an object of each."""
    if len(data) > _LARGE_BYTES and has_more_fields(data, limit):
        raise RefusedError(Reason.TOO_LARGE, f"more than {limit:,} fields in a message")


def has_more_fields(data: bytes, limit: int) -> bool:
    """Whether a message has more than so many fields, not looking into them.

    False for what is no message: its parser says so better.
    """
    position = num_fields = 0
    try:
        while position < len(data) and num_fields <= limit:
            tag, position = _read_varint(data, position)
            num_fields += 1
            match tag & 7:
                case 0:
                    _, position = _read_varint(data, position)
                case 1:
                    position += 8
                case 2:
                    length, position = _read_varint(data, position)
                    position += length
                case 5:
                    position += 4
    except IndexError:
        return False
    return num_fields > limit


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[position]) > 127:
        number |= (byte & 127) << shift
        shift += 7
        position += 1
        if shift > 63:
            raise IndexError
    return number | byte << shift, position + 1


def describe_fault(error: DecodeError) -> str:
    """What protobuf says of bytes it cannot read -> words for the sender."""
    text = str(error).rpartition(": ")[2]
    return {
        "Wire format was corrupt": "broken protobuf",
        "String field had bad UTF-8": "text that is not UTF-8",
        "Exceeded upb_DecodeOptions_MaxDepth": "nested too deeply",
    }.get(text, "broken protobuf")
