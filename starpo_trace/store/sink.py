"""Ended spans -> the local, crash-safe trace store.

`on_end` appends to a bounded queue and returns. One daemon thread per process encodes the queue,
writes it, syncs it to disk, and only then counts its spans as acknowledged. When the disk refuses,
spans wait in the queue and are dropped, counted, once it is full; the agent never waits.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from starpo_trace.guard import Guard, report_failure, warn_once
from starpo_trace.store.forking import watch_forks
from starpo_trace.store.segments import SegmentWriter, frame_record
from starpo_trace.store.spansize import estimate_bytes

MAX_RECORD_SPANS: Final = 512
MAX_RECORD_BYTES: Final = 4 << 20
_MAX_BACKOFF_S: Final = 30.0


class SpanSink(SpanProcessor):
    """Writes spans into segment files of one folder."""

    def __init__(
        self,
        directory: Path,
        *,
        on_acknowledged: Callable[[Sequence[ReadableSpan]], None] | None = None,
        max_queue_spans: int = 65_536,
        max_queue_bytes: int = 128 << 20,
        segment_bytes: int = 64 << 20,
        segment_age_s: float = 600.0,
        flush_interval_s: float = 0.2,
    ) -> None:
        """Prepare a sink; nothing is created on disk before the first span.

        `on_acknowledged` is called from the writer thread with spans that are on disk for good.
        """
        self.directory = directory.absolute()
        self._on_acknowledged = on_acknowledged
        self._max_queue_spans = max_queue_spans
        self._max_queue_bytes = max_queue_bytes
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._flush_interval_s = flush_interval_s
        self._reset()
        watch_forks(self)

    def _reset(self) -> None:
        """Set the state of a process that has recorded nothing yet."""
        # Re-entrant, and a SimpleQueue to wake the writer: the collector may end a dropped
        # stream's span inside any allocation, also inside `on_end` of the same thread.
        self._lock = threading.RLock()
        self._messages: queue.SimpleQueue[_Flush | bool] = queue.SimpleQueue()
        self._queue: deque[tuple[ReadableSpan, int]] = deque()
        self._queue_bytes = 0
        self._num_accepted = 0
        self._num_acknowledged = 0
        self._num_dropped = 0
        self._num_rejected = 0
        self._num_dropped_at_flush = 0
        self._segment: SegmentWriter | None = None
        self._thread: threading.Thread | None = None
        self._is_shut_down = False
        self._backoff_s = 0.0
        self._waiting: list[_Flush] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Accept a span, or count it as dropped when the queue is full."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        num_bytes = estimate_bytes(span)
        with self._lock:
            num_waiting = len(self._queue)
            if (
                self._is_shut_down
                or num_waiting >= self._max_queue_spans
                or (num_waiting and self._queue_bytes + num_bytes > self._max_queue_bytes)
            ):
                self._num_dropped += 1
                return
            self._queue.append((span, num_bytes))
            self._queue_bytes += num_bytes
            self._num_accepted += 1
            if self._thread is None:
                self._start_thread()
        if num_waiting == 0:
            self._messages.put(False)  # begins the interval
        elif num_waiting == MAX_RECORD_SPANS:
            self._messages.put(True)  # ends it early

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until everything accepted so far is on disk.

        False when that took longer, the disk refused, or spans were dropped since the last flush.
        """
        with self._lock:
            num_dropped = self._num_dropped
            has_dropped = num_dropped > self._num_dropped_at_flush
            self._num_dropped_at_flush = num_dropped
            if not self._queue:
                return not has_dropped
            thread = self._thread
        if thread is None or not thread.is_alive():
            return self._write_pending() and not has_dropped
        request = _Flush()
        self._messages.put(request)
        request.done.wait(timeout_millis / 1000)
        return request.is_written and not has_dropped

    def shutdown(self, timeout_s: float = 5.0) -> None:
        """Write what waits, seal the segment, and accept no more spans."""
        with self._lock:
            if self._is_shut_down:
                return
            self._is_shut_down = True
            thread = self._thread
        if thread is not None and thread.is_alive():
            self._messages.put(True)
            thread.join(timeout_s)
            return
        with Guard("closing the trace store"):
            self._write_pending()
            self._seal()

    def read_stats(self) -> dict[str, int]:
        """Counts of spans: accepted = acknowledged + rejected + waiting; dropped never entered."""
        with self._lock:
            return {
                "accepted": self._num_accepted,
                "acknowledged": self._num_acknowledged,
                "rejected": self._num_rejected,
                "waiting": len(self._queue),
                "dropped": self._num_dropped,
            }

    def after_fork_in_child(self) -> None:
        """Begin anew: what was queued is the parent's to write, and its thread is not here."""
        segment, was_shut_down = self._segment, self._is_shut_down
        self._reset()
        self._is_shut_down = was_shut_down
        if segment is not None:
            with Guard("leaving the parent's trace segment"):
                segment.abandon()

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="starpo-sink", daemon=True)
        with Guard("starting the trace store's writer thread"):  # refused at interpreter exit
            self._thread.start()

    def _run(self) -> None:
        while not self._is_shut_down:
            self._await_work()
            is_written = False
            with Guard("writing the trace store"):
                is_written = self._write_pending()
                self._seal_if_due()
            for request in self._waiting:
                request.is_written = is_written
                request.done.set()
            self._waiting.clear()
        with Guard("closing the trace store"):
            self._write_pending()
            self._seal()

    def _await_work(self) -> None:
        """Return when a batch is due, a flush was asked for, or the segment is to be sealed."""
        is_urgent = self._take_message(self._seal_in_s() if not self._queue else 0.0)
        pause_s = self._backoff_s or self._flush_interval_s
        deadline_s = time.monotonic() + pause_s
        while not is_urgent and (left_s := deadline_s - time.monotonic()) > 0:
            if not self._queue and self._segment is not None and self._seal_in_s() <= 0:
                return
            is_urgent = self._take_message(left_s)
            if self._backoff_s and not self._waiting and not self._is_shut_down:
                is_urgent = False  # more spans are no reason to try a full disk sooner

    def _take_message(self, timeout_s: float) -> bool:
        """Wait for one message; True when the writer should not wait any longer."""
        try:
            message = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return False
        if isinstance(message, _Flush):
            self._waiting.append(message)
            return True
        return message

    def _seal_in_s(self) -> float:
        if self._segment is None:
            return 3600.0
        return max(0.0, self._segment.created_s + self._segment_age_s - time.monotonic())

    def _write_pending(self) -> bool:
        """Queue -> disk; True when nothing waits any more."""
        while batch := self._peek_batch():
            record, num_rejected = encode_batch(batch)
            try:
                if record:
                    self._open_segment().append(record)
            except OSError as error:
                self._handle_refusal(error)
                return False
            self._backoff_s = 0.0
            self._acknowledge(batch, num_rejected)
            if self._segment is not None and self._segment.num_bytes >= self._segment_bytes:
                self._seal()
        return True

    def _peek_batch(self) -> list[ReadableSpan]:
        """Take spans for one record; they stay in the queue until they are on disk."""
        with self._lock:
            candidates = list(islice(self._queue, MAX_RECORD_SPANS))
        batch: list[ReadableSpan] = []
        total_bytes = 0
        for span, num_bytes in candidates:
            total_bytes += num_bytes
            if total_bytes > MAX_RECORD_BYTES and batch:
                break
            batch.append(span)
        return batch

    def _acknowledge(self, batch: list[ReadableSpan], num_rejected: int) -> None:
        with self._lock:
            for _ in batch:
                self._queue_bytes -= self._queue.popleft()[1]
            self._num_acknowledged += len(batch) - num_rejected
            self._num_rejected += num_rejected
        if self._on_acknowledged is not None:
            with Guard("reporting acknowledged spans"):
                self._on_acknowledged(batch)

    def _handle_refusal(self, error: OSError) -> None:
        self._backoff_s = min(_MAX_BACKOFF_S, max(0.5, 2 * self._backoff_s))
        warn_once(
            f"store {self.directory}",
            "starpo_trace cannot write its store %s: %s. Spans wait in memory (at most %d MiB) "
            "and are dropped and counted when that is full; free the disk or set STARPO_STORE.",
            self.directory,
            error,
            self._max_queue_bytes >> 20,
        )
        with Guard("leaving a segment that cannot be written"):
            self._seal()  # the next attempt begins a new file

    def _open_segment(self) -> SegmentWriter:
        if self._segment is None:
            self._segment = SegmentWriter(self.directory)
        return self._segment

    def _seal_if_due(self) -> None:
        if self._segment is not None and self._seal_in_s() <= 0:
            self._seal()

    def _seal(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            segment.seal()
        except OSError as error:  # it stays readable under its `.open` name
            report_failure("sealing a trace segment", error)


class _Flush:
    """A request to write now, and its answer."""

    __slots__ = ("done", "is_written")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.is_written = False


def encode_batch(batch: Sequence[ReadableSpan]) -> tuple[bytes, int]:
    """Spans -> one framed record, and how many spans could not be encoded."""
    try:
        return frame_record(encode_spans(batch).SerializeToString(), len(batch)), 0
    except (ValueError, TypeError):  # one span holds text that is no UTF-8, say: find it
        good = [span for span in batch if _is_encodable(span)]
    if not good:
        return b"", len(batch)
    record = frame_record(encode_spans(good).SerializeToString(), len(good))
    return record, len(batch) - len(good)


def _is_encodable(span: ReadableSpan) -> bool:
    try:
        encode_spans([span]).SerializeToString()
    except (ValueError, TypeError) as error:
        report_failure("encoding a span", error)
        return False
    return True
