"""Payloads of concurrent requests -> one synced write each time the disk is free.

A sync takes milliseconds however much it covers, so requests that arrive during one share the next.
"""

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starpo_trace.collect.refusals import Reason, RefusedError
from starpo_trace.guard import Guard
from starpo_trace.store.rotation import SegmentedStore, StoreFull
from starpo_trace.store.segments import frame_record

_MAX_WRITE_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class _Pending:
    record: bytes
    num_records: int
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
        """Records on disk."""
        self.num_commits = 0
        """Synced writes."""
        self.trouble = ""
        """Why the last write failed, without the path, which is nobody's who sends; empty when it
        worked."""
        self._on_trouble = on_trouble
        self._max_store_bytes = max_store_bytes
        self._store = SegmentedStore(
            directory,
            segment_bytes=segment_bytes,
            segment_age_s=segment_age_s,
            max_bytes=sys.maxsize if max_store_bytes is None else max_store_bytes,
        )
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="starpo-commit", daemon=True)
        self._thread.start()

    def submit(self, payload: bytes, num_records: int) -> "Future[None]":
        """Payload -> a future that is done when it is on disk, or fails with `RefusedError`."""
        pending = _Pending(frame_record(payload, num_records), num_records)
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
                with Guard("writing what was received"):
                    self._commit(batch)
            if self._store.seal_in_s() <= 0:
                self._store.seal()
        self._store.seal()

    def _take_batch(self) -> list[_Pending]:
        """Wait for a record, or for the segment's age; take all that came until then."""
        batch: list[_Pending] = []
        num_bytes = 0
        try:
            item = self._queue.get(timeout=self._store.seal_in_s())
            while item is not None:
                if item.done.set_running_or_notify_cancel():  # else its client has left
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
        # The client learns that it should come back; paths stay here.
        refusal = RefusedError(Reason.UNAVAILABLE, "the store failed; see the receiver's log")
        try:
            self._store.append(b"".join(pending.record for pending in batch))
        except StoreFull:
            refusal = self._build_refusal(f"it holds --max-store-bytes {self._max_store_bytes:,}")
        except OSError as error:
            refusal = self._build_refusal(error.strerror or str(error))
        else:
            self.num_commits += 1
            self.num_stored += sum(pending.num_records for pending in batch)
            for pending in batch:
                pending.done.set_result(None)
            self._report("")
        finally:
            for pending in batch:
                if not pending.done.done():
                    pending.done.set_exception(refusal)

    def _build_refusal(self, problem: str) -> RefusedError:
        self._report(problem)
        return RefusedError(Reason.UNAVAILABLE, f"the store cannot be written now: {problem}")

    def _report(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._on_trouble(trouble and f"{self.directory}: {trouble}")
