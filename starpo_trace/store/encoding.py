"""Ended spans -> bytes of one OTLP `ExportTraceServiceRequest`."""

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan

from starpo_trace.guard import report_failure


def encode_batch(batch: Sequence[ReadableSpan]) -> tuple[bytes, Sequence[ReadableSpan]]:
    """Spans -> their request, and those of them that could be encoded."""
    try:
        return encode_spans(batch).SerializeToString(), batch
    except (ValueError, TypeError):  # one span holds text that is no UTF-8, say
        good = select_encodable(batch)
    return (encode_spans(good).SerializeToString() if good else b""), good


def select_encodable(batch: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    """Return the spans that can be encoded; the first that cannot is reported."""
    return [span for span in batch if _is_encodable(span)]


def _is_encodable(span: ReadableSpan) -> bool:
    try:
        encode_spans([span]).SerializeToString()
    except (ValueError, TypeError) as error:
        report_failure("encoding a span", error)
        return False
    return True
