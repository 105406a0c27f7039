"""A batch of spans -> one OTLP/gRPC request -> what the endpoint said, exactly."""

from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan

from starpo_trace.store.transport import MAX_REQUEST_BYTES, Answer

_LATER: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class GrpcTransport:
    """OTLP/gRPC through the client of OpenTelemetry's exporter."""

    def __init__(self) -> None:
        self._exporter = OTLPSpanExporter()

    def send(self, batch: Sequence[ReadableSpan], *, max_timeout_s: float | None) -> Answer:
        """Send a batch once."""
        try:
            request = encode_spans(batch)
            num_bytes = request.ByteSize()
        except (ValueError, TypeError) as error:
            return Answer(kind="not_sent", reason=str(error))
        if num_bytes > MAX_REQUEST_BYTES:
            return Answer(kind="too_large", reason="more than 4 MiB")
        exporter: Any = self._exporter  # what follows is private there, the same from 1.40 to 1.45
        timeout_s = exporter._timeout
        if max_timeout_s is not None:
            timeout_s = min(timeout_s, max_timeout_s)
        try:
            with suppress_instrumentation():
                response = exporter._client.Export(
                    request=request, metadata=exporter._headers, timeout=timeout_s
                )
        except grpc.RpcError as error:
            return self._read_error(error)
        partial = response.partial_success
        return Answer(
            kind="taken", num_rejected=max(0, partial.rejected_spans), reason=partial.error_message
        )

    def close(self) -> None:
        """Close the channel."""
        self._exporter.shutdown()

    def _read_error(self, error: Any) -> Answer:
        code, details = error.code(), error.details() or ""
        reason = f"gRPC {code.name} {details[:200]}"
        pause_s = read_retry_info(error.trailing_metadata() or ())
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Receivers say the same of a request too large and of too many requests.
            is_size = pause_s is None and "larger than" in details
            return Answer(kind="too_large" if is_size else "later", reason=reason, pause_s=pause_s)
        if code is grpc.StatusCode.UNAVAILABLE:
            # A channel waits up to two minutes before it connects again; a new one does not.
            self._exporter.shutdown()
            self._exporter = OTLPSpanExporter()
        return Answer(kind="later" if code in _LATER else "refused", reason=reason, pause_s=pause_s)


def read_retry_info(metadata: Sequence[tuple[str, str | bytes]]) -> float | None:
    """Trailing metadata -> how long the endpoint asked to be left alone."""
    info = RetryInfo()
    for key, value in metadata:
        if key == "google.rpc.retryinfo-bin" and isinstance(value, bytes):
            info.ParseFromString(value)
            return min(info.retry_delay.ToTimedelta().total_seconds(), 300.0)
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in Status.FromString(value).details:
                if detail.Unpack(info):
                    return min(info.retry_delay.ToTimedelta().total_seconds(), 300.0)
    return None
