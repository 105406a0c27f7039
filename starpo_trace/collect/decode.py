"""OTLP request body (protobuf or JSON) -> the protobuf bytes to store, and what was left out.

The only entrance for what strangers send: whatever the bytes are, it returns or raises `RefusedError`,
and what it returns can be read by every reader of the store.
"""

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from starpo_trace.collect.checks import Tally
from starpo_trace.collect.inflate import inflate_body
from starpo_trace.collect.jsonrequest import convert_json
from starpo_trace.collect.limits import Limits
from starpo_trace.collect.protobufrequest import describe_fault, filter_protobuf
from starpo_trace.collect.refusals import Reason, RefusedError
from starpo_trace.collect.signals import TRACES, Signal

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What one request holds."""

    payload: bytes
    """Export request of the good records; empty when there are none."""
    num_records: int
    """Spans or log records in it."""
    num_rejected: int = 0
    """Records left out, because nobody could use them."""
    faults: tuple[str, ...] = ()
    """What is wrong with the first of those."""

    @property
    def message(self) -> str:
        """Sentence about the records left out, for the client."""
        if not self.num_rejected:
            return ""
        more = self.num_rejected - len(self.faults)
        return "; ".join(self.faults) + (f"; and {more:,} more" if more else "")


def decode_body(
    body: bytes, encoding: str, content_type: str, limits: Limits, signal: Signal = TRACES
) -> Decoded:
    """Body as sent -> what to store of it.

    Raises:
        RefusedError: as `decode_request`, or it cannot be decompressed within the limits.
    """
    return decode_request(inflate_body(body, encoding, limits), content_type, limits, signal)


def decode_request(
    body: bytes, content_type: str, limits: Limits, signal: Signal = TRACES
) -> Decoded:
    """Decompressed body -> what to store of it.

    Raises:
        RefusedError: it is no OTLP request of this signal, is larger than allowed, or has no good record.
    """
    tally = Tally(limits)
    payload = (convert_json if content_type == JSON else filter_protobuf)(body, tally, signal)
    if not tally.num_good:
        if tally.num_rejected:
            raise RefusedError(
                Reason.MALFORMED, f"no {signal.name} can be used: {'; '.join(tally.faults)}"
            )
        return Decoded(payload=b"", num_records=0)
    _check_readable(payload, signal)
    return Decoded(
        payload=payload,
        num_records=tally.num_good,
        num_rejected=tally.num_rejected,
        faults=tuple(tally.faults),
    )


def _check_readable(payload: bytes, signal: Signal) -> None:
    """Read the whole once more, as the store's readers will."""
    try:
        signal.request.FromString(payload)
    except DecodeError as error:
        raise RefusedError(
            Reason.MALFORMED, f"not an OTLP request: {describe_fault(error)}"
        ) from None
