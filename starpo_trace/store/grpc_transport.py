"""A batch of spans -> one OTLP/gRPC request -> what the endpoint said, exactly."""

import importlib
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from starpo_trace.guard import Guard
from starpo_trace.store.transport import MAX_REQUEST_BYTES, Answer

# gRPC would import these in the thread that delivers, and a fork meanwhile would leave the child with
# half of them.
for _name in ("grpc.experimental", "grpc._channel"):
    with suppress(ImportError):
        importlib.import_module(_name)

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


_FORK_PATIENCE_S: Final = 0.5


class GrpcTransport:
    """OTLP/gRPC through the client of OpenTelemetry's exporter.

    Before a fork the call under way and the channel are ended, so that a child inherits neither. It
    uses `grpc_process` nevertheless: what else gRPC had at work may hold locks there for ever.
    """

    def __init__(self) -> None:
        self._exporter: Any = None
        self._call: Any = None
        self._lock = threading.Lock()
        self._is_held_for_fork = False
        _transports.add(self)

    def send(self, batch: Sequence[ReadableSpan], *, max_timeout_s: float | None) -> Answer:
        """Send a batch once."""
        try:
            request = encode_spans(batch)
            num_bytes = request.ByteSize()
        except (ValueError, TypeError) as error:
            return Answer(kind="not_sent", reason=str(error))
        if num_bytes > MAX_REQUEST_BYTES:
            return Answer(kind="too_large", reason="more than 4 MiB")
        return self.send_request(request, max_timeout_s=max_timeout_s)

    def send_request(
        self, request: ExportTraceServiceRequest, *, max_timeout_s: float | None
    ) -> Answer:
        """Send a request once."""
        with self._lock:  # a fork waits for it
            if self._exporter is None:
                self._exporter = OTLPSpanExporter()
                _watch_forks()
            # What follows is private in the exporter, and the same from 1.40 to 1.45.
            timeout_s = self._exporter._timeout
            if max_timeout_s is not None:
                timeout_s = min(timeout_s, max_timeout_s)
            try:
                with suppress_instrumentation():
                    self._call = self._exporter._client.Export.future(
                        request=request, metadata=self._exporter._headers, timeout=timeout_s
                    )
                    partial = self._call.result().partial_success
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                return self._read_error(error)
        return Answer(
            kind="taken", num_rejected=max(0, partial.rejected_spans), reason=partial.error_message
        )

    def close(self) -> None:
        """Close the channel."""
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.shutdown()

    def prepare_fork(self) -> None:
        """Let the call under way end, or end it, and close the channel."""
        if not self._lock.acquire(timeout=_FORK_PATIENCE_S):
            call = self._call
            if call is not None:
                call.cancel()
            if not self._lock.acquire(timeout=_FORK_PATIENCE_S):
                return
        self._is_held_for_fork = True
        self.close()

    def resume_after_fork(self) -> None:
        """Let the next request begin."""
        if self._is_held_for_fork:
            self._is_held_for_fork = False
            self._lock.release()

    def _read_error(self, error: Any) -> Answer:
        if isinstance(error, grpc.FutureCancelledError):
            return Answer(kind="later", reason="cancelled before a fork")
        code, details = error.code(), error.details() or ""
        reason = f"gRPC {code.name} {details[:200]}"
        pause_s = read_retry_info(error.trailing_metadata() or ())
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Receivers say the same of a request too large and of too many requests.
            is_size = pause_s is None and "larger than" in details
            return Answer(kind="too_large" if is_size else "later", reason=reason, pause_s=pause_s)
        if code is grpc.StatusCode.UNAVAILABLE:
            # A channel waits up to two minutes before it connects again; a new one does not.
            self.close()
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


_transports: "weakref.WeakSet[GrpcTransport]" = weakref.WeakSet()
_watching: list[bool] = []


def _watch_forks() -> None:
    # After gRPC has registered its own, at the first channel: what is registered last runs first.
    if not _watching and hasattr(os, "register_at_fork"):
        _watching.append(True)
        os.register_at_fork(
            before=_before_fork,
            after_in_parent=_after_fork_in_parent,
            after_in_child=_transports.clear,  # they are the parent's, and held
        )


def _before_fork() -> None:
    for transport in list(_transports):
        with Guard("preparing the OTLP connection for a fork"):
            transport.prepare_fork()


def _after_fork_in_parent() -> None:
    for transport in list(_transports):
        transport.resume_after_fork()
