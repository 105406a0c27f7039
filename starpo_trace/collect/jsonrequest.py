"""OTLP JSON -> the bytes of the same request as protobuf.

Written out rather than left to protobuf's JSON bridge, which is nine times slower, expects ids in
base64, and stops at the first fault.
"""

from typing import Any

import orjson

from starpo_trace.collect.checks import Tally, check_attributes
from starpo_trace.collect.jsonfields import (
    GROUP,
    SCOPE_GROUP,
    as_list,
    as_object,
    fill,
)
from starpo_trace.collect.refusals import FieldError, Reason, RefusedError
from starpo_trace.collect.signals import Signal


def convert_json(body: bytes, tally: Tally, signal: Signal) -> bytes:
    """JSON body -> protobuf bytes of its good records, counted in `tally`.

    Raises:
        RefusedError: it is not JSON, or what surrounds the records is not OTLP.
    """
    num_marks = body.count(b",") + body.count(b"[") + 2 * body.count(b"{")
    if num_marks > tally.limits.max_json_marks:
        raise RefusedError(Reason.TOO_LARGE, "the JSON has too many elements; send smaller batches")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(Reason.MALFORMED, f"not JSON: {error}") from None
    request = signal.request()
    try:
        _fill_request(request, document, tally, signal)
    except FieldError as fault:
        raise RefusedError(Reason.MALFORMED, str(fault)) from None
    return request.SerializeToString()


def _fill_request(request: Any, document: Any, tally: Tally, signal: Signal) -> None:
    document = as_object(document)
    snake, name = signal.levels[0], signal.json_levels[0]
    if snake in document and name not in document:
        raise FieldError(f"OTLP JSON spells it {name}").under(snake)
    groups = as_list(document, name)
    tally.expect(len(groups), "resources")
    for index, group in enumerate(groups):
        path = f"{name}[{index}]"
        try:
            _fill_resource(getattr(request, snake).add(), group, path, tally, signal)
        except FieldError as fault:
            raise fault.under(path) from None


def _fill_resource(target: Any, group: Any, path: str, tally: Tally, signal: Signal) -> None:
    fill(target, GROUP, group)
    _check_group(target.resource, "resource", tally)
    name = signal.json_levels[1]
    scopes = as_list(group, name)
    tally.expect(len(scopes), "scopes")
    for index, scope in enumerate(scopes):
        added = getattr(target, signal.levels[1]).add()
        try:
            _fill_scope(added, scope, f"{path}.{name}[{index}]", tally, signal)
        except FieldError as fault:
            raise fault.under(f"{name}[{index}]") from None


def _fill_scope(target: Any, scope: Any, path: str, tally: Tally, signal: Signal) -> None:
    fill(target, SCOPE_GROUP, scope)
    _check_group(target.scope, "scope", tally)
    name = signal.json_levels[2]
    objects = as_list(scope, name)
    tally.expect(len(objects), f"{signal.name}s")
    records = getattr(target, signal.levels[2])
    for index, content in enumerate(objects):
        record = records.add()
        try:
            fill(record, signal.fields, content)
            signal.check(record, tally)
        except FieldError as fault:
            del records[-1]
            tally.reject(fault.under(f"{path}.{name}[{index}]"))
        else:
            tally.num_good += 1


def _check_group(group: Any, name: str, tally: Tally) -> None:
    try:
        check_attributes(group, tally)
    except FieldError as fault:
        raise fault.under(name) from None
