"""What makes a span or a request unusable, whichever format it came in."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from starpo_trace.collect.limits import MAX_NESTING, Limits
from starpo_trace.collect.refusals import FieldError, Reason, RefusedError

_MAX_FAULTS: Final = 3
_NO_TRACE: Final = bytes(16)
_NO_SPAN: Final = bytes(8)
_NESTED_KINDS: Final = frozenset({"array_value", "kvlist_value"})


@dataclass(slots=True)
class Tally:
    """Counts of one request while it is read."""

    limits: Limits
    num_good: int = 0
    num_rejected: int = 0
    num_values: int = 0
    faults: list[str] = field(default_factory=list)

    def expect(self, count: int, what: str) -> None:
        """Refuse a request with too many of something, before they are made."""
        if self.num_good + self.num_rejected + count > self.limits.max_spans:
            raise RefusedError(
                Reason.TOO_LARGE,
                f"more than {self.limits.max_spans:,} {what} in a request; send smaller batches",
            )

    def reject(self, fault: FieldError) -> None:
        """Leave one span out."""
        self.num_rejected += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(str(fault))


def check_span(span: Any, tally: Tally) -> None:
    """Count the span's values and look at its ids.

    Raises:
        FieldError: the span is of no use, or larger than allowed.
        RefusedError: the request has too many values.
    """
    _check_id(span.trace_id, _NO_TRACE, "trace_id")
    _check_id(span.span_id, _NO_SPAN, "span_id")
    _check_length(span.parent_span_id, 8, "parent_span_id")
    num_values = _check_attributes(span, tally.limits)
    for index, event in enumerate(span.events):
        try:
            num_values += 1 + _check_attributes(event, tally.limits)
        except FieldError as fault:
            raise fault.under(f"events[{index}]") from None
    for index, link in enumerate(span.links):
        try:
            _check_length(link.trace_id, 16, "trace_id")
            _check_length(link.span_id, 8, "span_id")
            num_values += 1 + _check_attributes(link, tally.limits)
        except FieldError as fault:
            raise fault.under(f"links[{index}]") from None
    add_values(num_values, tally)


def _check_length(value: bytes, length: int, name: str) -> None:
    if value and len(value) != length:
        raise FieldError(f"{len(value)} bytes, must be {length}").under(name)


def add_values(num_values: int, tally: Tally) -> None:
    """Count attribute values; refuse the request when there are too many."""
    tally.num_values += num_values
    if tally.num_values > tally.limits.max_values:
        raise RefusedError(
            Reason.TOO_LARGE,
            f"more than {tally.limits.max_values:,} attribute values in a request; "
            "send smaller batches",
        )


def check_group(group: Any, tally: Tally) -> None:
    """Count the values of a resource or scope.

    Raises:
        FieldError: one is larger than allowed.
        RefusedError: the request has too many.
    """
    add_values(_check_attributes(group, tally.limits), tally)


def _check_id(value: bytes, zero: bytes, name: str) -> None:
    if len(value) != len(zero):
        raise FieldError(f"{len(value)} bytes, must be {len(zero)}").under(name)
    if value == zero:
        raise FieldError("all zero").under(name)


def _check_attributes(message: Any, limits: Limits) -> int:
    """Number of values; raises `FieldError` for one that is too large or nested too deeply."""
    attributes = message.attributes
    num_values = len(attributes)
    is_large = message.ByteSize() > limits.max_attribute_bytes  # else no attribute can be
    for index, attribute in enumerate(attributes):
        if is_large and attribute.ByteSize() > limits.max_attribute_bytes:
            problem = f"more than {limits.max_attribute_bytes:,} bytes"
            raise FieldError(problem).under(f"attributes[{index}]")
        if attribute.value.WhichOneof("value") in _NESTED_KINDS:
            num_values += _count_nested(attribute, index)
    return num_values


def _count_nested(attribute: Any, index: int) -> int:
    level = list(_children(attribute.value))
    num_values = len(level)
    depth = 1
    while level := [child for value in level for child in _children(value)]:
        depth += 1
        num_values += len(level)
        if depth > MAX_NESTING:
            problem = f"nested more than {MAX_NESTING} levels deep"
            raise FieldError(problem).under(f"attributes[{index}]")
    return num_values


def _children(value: Any) -> Iterable[Any]:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return value.array_value.values
    if kind == "kvlist_value":
        return [pair.value for pair in value.kvlist_value.values]
    return ()
