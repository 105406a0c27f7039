"""Ended spans -> an OTLP endpoint, in requests of bounded size, kept until the endpoint took them.

While an endpoint does not answer, or asks for patience, spans wait in the queue: at most
`MAX_QUEUE_SPANS` of them and `MAX_QUEUE_BYTES`, beyond which whole trajectories are dropped and
counted. What an endpoint refuses for good is counted as rejected.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.trace import ReadableSpan

from starpo_trace.guard import Guard, warn_once
from starpo_trace.store.background import (
    BackgroundProcessor,
    Delivery,
    Settled,
    TooLarge,
    TryLater,
)
from starpo_trace.store.encoding import select_encodable
from starpo_trace.store.forking import inherits_grpc
from starpo_trace.store.spanqueue import MAX_QUEUE_BYTES, MAX_QUEUE_SPANS, SpanQueue
from starpo_trace.store.transport import Answer, Transport

_MAX_BATCH_BYTES: Final = 3 << 20
_SHUTDOWN_S: Final = 3.0
_HELPER_SHUTDOWN_S: Final = 10.0
"""In a child that forked, until its gRPC helper has answered for the first time."""


def build_otlp_processor(endpoint: str | None) -> "OtlpProcessor":
    """Endpoint, or None for the standard variables -> a processor that delivers there."""
    # Imported by the caller's thread: a fork in the middle of an import by ours would leave the
    # child with a lock that nobody holds any more.
    import encodings.idna  # noqa: F401
    import netrc  # noqa: F401 (`requests` would import both at its first request)

    if endpoint is None and _read_protocol() == "grpc":
        from starpo_trace.store.grpc_process import GrpcProcessTransport
        from starpo_trace.store.grpc_transport import GrpcTransport

        return OtlpProcessor(lambda: GrpcProcessTransport() if inherits_grpc() else GrpcTransport())
    from starpo_trace.store.transport import HttpTransport

    return OtlpProcessor(lambda: HttpTransport(endpoint))


def _read_protocol() -> str:
    protocol = (
        os.environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL)
        or os.environ.get(OTEL_EXPORTER_OTLP_PROTOCOL)
        or "http/protobuf"
    )
    return protocol.strip().lower()


class OtlpProcessor(BackgroundProcessor):
    """Delivers spans to an endpoint."""

    thread_name = "starpo-otlp"
    max_batch_bytes = _MAX_BATCH_BYTES
    shutdown_timeout_s = _SHUTDOWN_S
    is_flush_patient = True

    def __init__(
        self,
        build_transport: Callable[[], Transport],
        *,
        max_queue_spans: int = MAX_QUEUE_SPANS,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        flush_interval_s: float = 1.0,
        first_shutdown_timeout_s: float = _SHUTDOWN_S,
    ) -> None:
        """`build_transport` is called by the delivering thread, anew in a forked child.

        `first_shutdown_timeout_s` is what `shutdown` allows a forked child that had no answer yet.
        """
        self._first_shutdown_timeout_s = first_shutdown_timeout_s
        self._build_transport = build_transport
        self._transport: Transport | None = None
        self._parents_transports: list[Any] = []
        super().__init__(
            SpanQueue(max_spans=max_queue_spans, max_bytes=max_queue_bytes),
            flush_interval_s=flush_interval_s,
        )

    def _deliver(self, batch: Sequence[ReadableSpan]) -> Delivery:
        answer = self._send(batch)
        if answer.kind == "not_sent":
            good = select_encodable(batch)
            if not good:
                return Settled(num_acknowledged=0)
            if len(good) < len(batch):
                return self._judge(self._send(good), len(good))
        return self._judge(answer, len(batch))

    def _send(self, batch: Sequence[ReadableSpan]) -> Answer:
        max_timeout_s = None
        if self._end_s is not None:
            max_timeout_s = max(0.1, self._end_s - time.monotonic())
        try:
            if self._transport is None:
                self._transport = self._build_transport()
            answer = self._transport.send(batch, max_timeout_s=max_timeout_s)
        except Exception as error:  # noqa: BLE001 (a variable with a wrong value, mostly)
            return Answer(kind="later", reason=f"{type(error).__name__}: {error}")

        if self.shutdown_timeout_s != _SHUTDOWN_S:
            self.shutdown_timeout_s = _SHUTDOWN_S
            if self._end_s is not None:
                self._end_s = min(self._end_s, time.monotonic() + _SHUTDOWN_S)
        return answer

    def _judge(self, answer: Answer, num_spans: int) -> Delivery:
        if answer.kind == "taken":
            num_rejected = min(answer.num_rejected, num_spans)
            if num_rejected:
                self._warn("the endpoint rejected %d spans: %s", num_rejected, answer.reason)
            return Settled(num_acknowledged=num_spans - num_rejected)
        if answer.kind == "too_large":
            if num_spans > 1:
                return TooLarge()
            self._warn("one span is too large for a request and is lost: %s", answer.reason)
            return Settled(num_acknowledged=0)
        if answer.kind == "refused":
            self._warn("the endpoint refused %d spans for good: %s", num_spans, answer.reason)
            return Settled(num_acknowledged=0)
        self._warn(
            "the endpoint cannot be reached: %s. Spans wait in memory (at most %d MiB) and are "
            "dropped and counted when that is full",
            answer.reason,
            self._spans.max_bytes >> 20,
        )
        return TryLater(pause_s=answer.pause_s)

    def _warn(self, message: str, *args: object) -> None:
        warn_once(f"otlp {message}", f"starpo_trace's OTLP export: {message}", *args)

    def _close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            with Guard("closing the connection to the OTLP endpoint"):
                transport.close()

    def _leave_parents_destination(self) -> None:
        # Not closed, not even collected: its connection and its threads are the parent's.
        self._parents_transports.append(self._transport)
        self.shutdown_timeout_s = self._first_shutdown_timeout_s
        self._transport = None
