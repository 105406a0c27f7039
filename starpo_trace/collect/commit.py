"""Payloads of concurrent requests -> one synced write each time the disk is free.

A sync takes milliseconds however much it covers, so requests that arrive during one share the next.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starpo_trace.collect.refusals import Reason, RefusedError
from starpo_trace.store.segments import SegmentWriter, frame_record, list_segments

_MAX_WRITE_BYTES: Final = 32 << 20
_RECOUNT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Pending:
    record: bytes
    num_spans: int
    done: "Future[None]" = field(default_factory=Future)


class CommitLog:
    """Writes records into segments of one store, on a thread of its own."""

    def __init__(
        self,
        directory: Path,
        *,
        max_store_bytes: int | None = None,
        segment_bytes: int = 64 << 20,
        segment_age_s: float = 600.0,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start the thread; the first record makes the first file.

        `on_trouble` is told when writing begins to fail, and with an empty text when it works
        again.
        """
        self.directory = directory
        self.num_stored = 0
        """Spans on disk."""
        self.num_commits = 0
        """Synced writes."""
        self.trouble = ""
        """Why the last write failed; empty when it worked."""
        self._max_store_bytes = max_store_bytes
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._on_trouble = on_trouble
        self._segment: SegmentWriter | None = None
        self._other_bytes = 0
        self._counted_s = 0.0
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="starpo-commit", daemon=True)
        self._thread.start()

    def submit(self, payload: bytes, num_spans: int) -> "Future[None]":
        """Payload -> a future that is done when it is on disk, or fails with `RefusedError`."""
        pending = _Pending(frame_record(payload, num_spans), num_spans)
        self._queue.put(pending)
        return pending.done

    def close(self) -> None:
        """Write what was submitted, then seal the segment."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closing:
            batch = self._take_batch()
            if batch:
                self._commit(batch)
            if self._segment is not None and self._seal_in_s(self._segment) <= 0:
                self._seal()
        self._seal()

    def _take_batch(self) -> list[_Pending]:
        """Wait for a record, or for the segment's age; take all that came until then."""
        timeout_s = None if self._segment is None else max(0.0, self._seal_in_s(self._segment))
        batch: list[_Pending] = []
        num_bytes = 0
        try:
            item = self._queue.get(timeout=timeout_s)
            while item is not None:
                batch.append(item)
                num_bytes += len(item.record)
                if num_bytes >= _MAX_WRITE_BYTES:
                    return batch
                item = self._queue.get_nowait()
            self._is_closing = True
        except queue.Empty:
            pass
        return batch

    def _commit(self, batch: list[_Pending]) -> None:
        data = b"".join(pending.record for pending in batch)
        refusal = RefusedError(Reason.UNAVAILABLE, "the store failed; see the receiver's log")
        try:
            self._append(data)
        except OSError as error:
            # The client learns that it should come back; paths and details stay here.
            refusal = RefusedError(
                Reason.UNAVAILABLE, f"the store cannot be written now: {error.strerror or error}"
            )
            self._report(f"{self.directory}: {error.strerror or error}")
            self._seal()  # the next attempt begins a new file
        else:
            self.num_commits += 1
            self.num_stored += sum(pending.num_spans for pending in batch)
            self._report("")
            for pending in batch:
                pending.done.set_result(None)
        finally:
            for pending in batch:
                if not pending.done.done():
                    pending.done.set_exception(refusal)

    def _append(self, data: bytes) -> None:
        segment = self._segment
        if segment is not None and segment.num_bytes >= self._segment_bytes:
            self._seal()
            segment = None
        self._check_quota(len(data))
        if segment is None:
            segment = self._segment = SegmentWriter(self.directory)
        segment.append(data)

    def _check_quota(self, num_bytes: int) -> None:
        if self._max_store_bytes is None:
            return
        if time.monotonic() - self._counted_s > _RECOUNT_S or self._is_over(num_bytes):
            self._other_bytes = self._count_other_bytes()
            self._counted_s = time.monotonic()
        if self._is_over(num_bytes):
            raise OSError(0, f"it has reached --max-store-bytes {self._max_store_bytes:,}")

    def _is_over(self, num_bytes: int) -> bool:
        own_bytes = self._segment.num_bytes if self._segment is not None else 0
        return self._other_bytes + own_bytes + num_bytes > (self._max_store_bytes or 0)

    def _count_other_bytes(self) -> int:
        """Size of all segments but the one being written, other processes' included."""
        own = self._segment.path if self._segment is not None else None
        num_bytes = 0
        for path in list_segments(self.directory):
            if path != own:
                try:
                    num_bytes += path.stat().st_size
                except FileNotFoundError:  # sealed or removed since it was listed
                    continue
        return num_bytes

    def _seal_in_s(self, segment: SegmentWriter) -> float:
        return segment.created_s + self._segment_age_s - time.monotonic()

    def _seal(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        self._counted_s = 0.0
        try:
            segment.seal()
        except OSError as error:  # it stays readable under its `.open` name
            self._report(f"{segment.path}: cannot be sealed: {error.strerror or error}")

    def _report(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._on_trouble(trouble)
