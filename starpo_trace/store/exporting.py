"""Ended spans -> an OTLP endpoint, in requests of bounded size, every span accounted for."""

import threading
from collections.abc import Iterator, Sequence
from typing import Final

from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from starpo_trace.store.forking import watch_forks
from starpo_trace.store.spansize import estimate_bytes

MAX_REQUEST_BYTES: Final = 3 << 20
"""Receivers refuse requests beyond 4 MiB by default."""
_MAX_QUEUE_SPANS: Final = 8192
_SHUTDOWN_MILLIS: Final = 3000


def build_otlp_processor(endpoint: str | None) -> "OtlpProcessor":
    """Endpoint, or None for the standard variables -> a batching processor."""
    return OtlpProcessor(_SplittingExporter(_build_exporter(endpoint)))


def _build_exporter(endpoint: str | None) -> SpanExporter:
    import os

    protocol = (
        os.environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL)
        or os.environ.get(OTEL_EXPORTER_OTLP_PROTOCOL)
        or "http/protobuf"
    )
    if endpoint is None and protocol.strip().lower() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint)


class OtlpProcessor(BatchSpanProcessor):
    """The SDK's batch processor, with honest counts and bounded waits."""

    def __init__(self, exporter: "_SplittingExporter") -> None:
        super().__init__(exporter, max_queue_size=_MAX_QUEUE_SPANS, schedule_delay_millis=1000)
        self._counted = exporter
        self._count_lock = threading.RLock()
        self._num_accepted = 0
        self._num_dropped = 0
        watch_forks(self)

    def after_fork_in_child(self) -> None:
        """Count anew: what was queued is the parent's to export."""
        self._count_lock = threading.RLock()
        self._num_accepted = self._num_dropped = 0
        self._counted.num_exported = self._counted.num_failed = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, or count it as dropped when the queue is full."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._count_lock:
            if self._count_waiting() >= _MAX_QUEUE_SPANS:
                self._num_dropped += 1
                return
            self._num_accepted += 1
        super().on_end(span)

    def force_flush(self, timeout_millis: int | None = None) -> bool:
        """Export what waits; True only when the endpoint took every span since the start."""
        worker = threading.Thread(target=super().force_flush, name="starpo-flush", daemon=True)
        worker.start()
        worker.join((timeout_millis or 30_000) / 1000)
        counts = self.read_stats()
        return counts["acknowledged"] == counts["accepted"] and not counts["dropped"]

    def shutdown(self) -> None:
        """Export what waits, for a few seconds at most."""
        inner = getattr(self, "_batch_processor", None)
        if inner is None:
            super().shutdown()
        else:  # the public method waits half a minute for a dead endpoint
            inner.shutdown(timeout_millis=_SHUTDOWN_MILLIS)

    def read_stats(self) -> dict[str, int]:
        """Counts of spans; rejected ones were refused by the endpoint."""
        with self._count_lock:
            return {
                "accepted": self._num_accepted,
                "acknowledged": self._counted.num_exported,
                "rejected": self._counted.num_failed,
                "waiting": self._count_waiting(),
                "dropped": self._num_dropped,
            }

    def _count_waiting(self) -> int:
        return self._num_accepted - self._counted.num_exported - self._counted.num_failed


class _SplittingExporter(SpanExporter):
    """Splits batches by size, because a refused request loses all of its spans."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.num_exported = 0
        self.num_failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export every part; the result is that of the worst."""
        worst = SpanExportResult.SUCCESS
        for part in _split_by_size(spans):
            result = SpanExportResult.FAILURE
            try:
                result = self._exporter.export(part)
            finally:
                if result is SpanExportResult.SUCCESS:
                    self.num_exported += len(part)
                else:
                    self.num_failed += len(part)
                    worst = result
        return worst

    def shutdown(self) -> None:
        """Shut the wrapped exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped exporter."""
        return self._exporter.force_flush(timeout_millis)


def _split_by_size(spans: Sequence[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    part: list[ReadableSpan] = []
    num_bytes = 0
    for span in spans:
        size = estimate_bytes(span)
        if part and num_bytes + size > MAX_REQUEST_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(span)
        num_bytes += size
    if part:
        yield part
