"""Span -> about how many bytes it takes, in memory and encoded."""

from typing import Final

from opentelemetry.sdk.trace import ReadableSpan

_OVERHEAD_BYTES: Final = 512


def estimate_bytes(span: ReadableSpan) -> int:
    """Length of its text, which is nearly all of a span, and a constant for the rest."""
    num_bytes = _OVERHEAD_BYTES
    for value in (span.attributes or {}).values():
        if type(value) is str:
            num_bytes += len(value)
    return num_bytes
