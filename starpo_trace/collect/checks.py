"""What makes a span, a log record or a request unusable, whichever format it came in."""

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

    def add_values(self, count: int) -> None:
        """Count attribute values, events and links; refuse a request with too many of them."""
        self.num_values += count
        if self.num_values > self.limits.max_values:
            raise RefusedError(
                Reason.TOO_LARGE,
                f"more than {self.limits.max_values:,} attribute values in a request; "
                "send smaller batches",
            )

    def reject(self, fault: FieldError) -> None:
        """Leave one record out."""
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
    check_attributes(span, tally)
    events, links = span.events, span.links
    tally.add_values(len(events) + len(links))
    for index, event in enumerate(events):
        try:
            check_attributes(event, tally)
        except FieldError as fault:
            raise fault.under(f"events[{index}]") from None
    for index, link in enumerate(links):
        try:
            _check_length(link.trace_id, 16, "trace_id")
            _check_length(link.span_id, 8, "span_id")
            check_attributes(link, tally)
        except FieldError as fault:
            raise fault.under(f"links[{index}]") from None


def check_log_record(record: Any, tally: Tally) -> None:
    """Count the record's values and look at its ids, which it may lack.

    Raises:
        FieldError: the record is empty or larger than allowed, or has an id that is none.
        RefusedError: the request has too many values.
    """
    if not record.ListFields():
        raise FieldError("is empty")
    _check_length(record.trace_id, 16, "trace_id")
    _check_length(record.span_id, 8, "span_id")
    check_attributes(record, tally)
    limit = tally.limits.max_attribute_bytes
    if record.body.ByteSize() > limit:
        raise FieldError(f"more than {limit:,} bytes").under("body")
    if record.body.WhichOneof("value") in _NESTED_KINDS:
        try:
            _count_nested(record.body, 1, tally)
        except FieldError as fault:
            raise fault.under("body") from None


def check_attributes(message: Any, tally: Tally) -> None:
    """Count the attribute values of a span, log record, event, link, resource or scope.

    Raises:
        FieldError: one is larger than allowed or nested too deeply.
        RefusedError: the request has too many.
    """
    attributes = message.attributes
    tally.add_values(len(attributes))
    limit = tally.limits.max_attribute_bytes
    is_large = message.ByteSize() > limit  # else no attribute can be
    for index, attribute in enumerate(attributes):
        if is_large and attribute.ByteSize() > limit:
            raise FieldError(f"more than {limit:,} bytes").under(f"attributes[{index}]")
        if attribute.value.WhichOneof("value") in _NESTED_KINDS:
            try:
                _count_nested(attribute.value, 1, tally)
            except FieldError as fault:
                raise fault.under(f"attributes[{index}]") from None


def _count_nested(value: Any, depth: int, tally: Tally) -> None:
    if depth > MAX_NESTING:
        raise FieldError(f"nested more than {MAX_NESTING} levels deep")
    is_list = value.WhichOneof("value") == "array_value"
    items = value.array_value.values if is_list else value.kvlist_value.values
    tally.add_values(len(items))  # before any of them is looked at
    for item in items:
        child = item if is_list else item.value
        if child.WhichOneof("value") in _NESTED_KINDS:
            _count_nested(child, depth + 1, tally)


def _check_length(value: bytes, length: int, name: str) -> None:
    if value and len(value) != length:
        raise FieldError(f"{len(value)} bytes, must be {length}").under(name)


def _check_id(value: bytes, zero: bytes, name: str) -> None:
    if len(value) != len(zero):
        raise FieldError(f"{len(value)} bytes, must be {len(zero)}").under(name)
    if value == zero:
        raise FieldError("all zero").under(name)
