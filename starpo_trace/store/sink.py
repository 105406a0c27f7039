"""Ended spans -> the local, crash-safe trace store.

The queue's thread encodes a batch, writes it, syncs it to disk, and only then counts its spans as
acknowledged. When the disk refuses, spans wait in the queue, and whole trajectories are dropped and
counted once it is full. When the folder holds `max_store_bytes`, new trajectories are refused and
counted; what is acknowledged is never deleted.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan

from starpo_trace.guard import Guard, warn_once
from starpo_trace.store.background import BackgroundProcessor, Delivery, Settled, TryLater
from starpo_trace.store.encoding import encode_batch
from starpo_trace.store.files import REAL_FILES, Files
from starpo_trace.store.rotation import SegmentedStore, StoreFull
from starpo_trace.store.segments import frame_record
from starpo_trace.store.spanqueue import MAX_QUEUE_BYTES, MAX_QUEUE_SPANS, SpanQueue

MAX_RECORD_BYTES: Final = 4 << 20
MAX_STORE_BYTES: Final = 10 << 30


class SpanSink(BackgroundProcessor):
    """Writes spans into segment files of one folder."""

    thread_name = "starpo-sink"
    max_batch_bytes = MAX_RECORD_BYTES

    def __init__(  # noqa: PLR0913 (bounds, each with a default)
        self,
        directory: Path,
        *,
        on_acknowledged: Callable[[Sequence[ReadableSpan]], None] | None = None,
        max_queue_spans: int = MAX_QUEUE_SPANS,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        max_store_bytes: int = MAX_STORE_BYTES,
        segment_bytes: int = 64 << 20,
        segment_age_s: float = 600.0,
        flush_interval_s: float = 0.2,
        files: Files = REAL_FILES,
    ) -> None:
        """Prepare a sink; nothing is created on disk before the first span.

        `on_acknowledged` is called from the writer thread with spans that are on disk for good.
        """
        self.directory = directory.absolute()
        self._on_acknowledged = on_acknowledged
        self._max_store_bytes = max_store_bytes
        self._store = SegmentedStore(
            self.directory,
            segment_bytes=segment_bytes,
            segment_age_s=segment_age_s,
            max_bytes=max_store_bytes,
            files=files,
        )
        super().__init__(
            SpanQueue(max_spans=max_queue_spans, max_bytes=max_queue_bytes),
            flush_interval_s=flush_interval_s,
        )

    def _deliver(self, batch: Sequence[ReadableSpan]) -> Delivery:
        try:
            self._store.check_room(1)  # before the work of encoding
            payload, good = encode_batch(batch)
            if good:
                self._store.append(frame_record(payload, len(good)))
        except StoreFull:
            self._warn_of_full_store()
            return Settled(num_acknowledged=0, is_refused=True)
        except OSError as error:
            self._warn_of_refusal(error)
            return TryLater()
        if self._on_acknowledged is not None:
            with Guard("reporting acknowledged spans"):
                self._on_acknowledged(good)
        return Settled(num_acknowledged=len(good))

    def _idle_in_s(self) -> float:
        return self._store.seal_in_s()

    def _do_idle_work(self) -> None:
        if self._store.seal_in_s() <= 0:
            self._store.seal()

    def _close(self) -> None:
        self._store.seal()

    def _leave_parents_destination(self) -> None:
        self._store.abandon()

    def _warn_of_refusal(self, error: OSError) -> None:
        warn_once(
            f"store {self.directory}",
            "starpo_trace cannot write its store %s: %s. Spans wait in memory (at most %d MiB) "
            "and are dropped and counted when that is full; free the disk or set STARPO_STORE.",
            self.directory,
            error,
            self._spans.max_bytes >> 20,
        )

    def _warn_of_full_store(self) -> None:
        warn_once(
            f"full store {self.directory}",
            "starpo_trace's store %s holds all it may, %d bytes: new trajectories are refused and "
            "counted. Export and remove its sealed segments, or raise STARPO_STORE_MAX_BYTES.",
            self.directory,
            self._max_store_bytes,
        )
