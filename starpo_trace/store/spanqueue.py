"""Ended spans -> a bounded queue that keeps whole trajectories and counts every span.

When there is no room for a span, the trajectory it belongs to is broken: its waiting spans leave
the queue and its later ones are refused at the door, because half a trajectory is worth nothing
and its room lets others stay whole. At every moment

    sent = accepted + rejected + dropped        accepted = acknowledged + waiting

where `dropped` spans found no room (or lost it with their trajectory) and `rejected` ones were
refused for good by the disk, the endpoint or the encoder.
"""

import threading
from collections import OrderedDict, deque
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan

from starpo_trace import semconv
from starpo_trace.store.spansize import estimate_bytes, read_attributes

MAX_QUEUE_SPANS: Final = 65_536
MAX_QUEUE_BYTES: Final = 128 << 20
MAX_BROKEN: Final = 16_384
"""How many broken trajectories are remembered; spans of one forgotten may enter again."""
_MIN_COMPACTION: Final = 1024


class SpanQueue:
    """Spans that wait for the one thread that delivers them.

    `take` hands out a batch, which stays counted as waiting until `settle` says what became of it
    or `put_back` returns it. Everything else may be called from any thread.
    """

    def __init__(
        self, *, max_spans: int = MAX_QUEUE_SPANS, max_bytes: int = MAX_QUEUE_BYTES
    ) -> None:
        self.max_spans = max_spans
        self.max_bytes = max_bytes
        self.reset()

    def reset(self) -> None:
        """Begin with nothing; also replaces the lock, which a thread of a parent may hold."""
        # Re-entrant: the collector may end a dropped stream's span inside any allocation, also
        # inside `put` of the same thread.
        self._lock = threading.RLock()
        self._entries: deque[_Entry] = deque()
        self._in_flight: list[_Entry] = []
        self._groups: dict[object, deque[_Entry]] = {}
        self._broken: OrderedDict[object, None] = OrderedDict()
        self._num_live = 0
        self._num_bytes = 0
        self._last_number = 0
        self._num_sent = self._num_acknowledged = self._num_rejected = self._num_dropped = 0
        self.is_closed = False

    def is_locked_here(self) -> bool:
        """Whether this very thread was interrupted while it changed the queue."""
        is_owned = getattr(self._lock, "_is_owned", None)
        return is_owned is not None and is_owned()

    def put(self, span: ReadableSpan) -> int | None:
        """Accept a span; returns how many wait now, None when it was dropped."""
        num_bytes = estimate_bytes(span)
        key = _read_key(span)
        with self._lock:
            self._num_sent += 1
            if self.is_closed or key in self._broken:
                self._num_dropped += 1
                return None
            num_waiting = self._num_live + len(self._in_flight)
            if num_waiting >= self.max_spans or (
                num_waiting and self._num_bytes + num_bytes > self.max_bytes
            ):
                self._num_dropped += 1
                self._break(key)
                return None
            self._last_number += 1
            entry = _Entry(span, num_bytes, key, self._last_number)
            self._entries.append(entry)
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = deque()
            group.append(entry)
            self._num_live += 1
            self._num_bytes += num_bytes
            return num_waiting + 1

    def take(self, max_spans: int, max_bytes: int) -> list[ReadableSpan]:
        """Oldest waiting spans for one delivery; at least one when there is any."""
        batch: list[_Entry] = []
        num_bytes = 0
        with self._lock:
            while self._entries and len(batch) < max_spans:
                entry = self._entries[0]
                if entry.span is not None:
                    if batch and num_bytes + entry.num_bytes > max_bytes:
                        break
                    num_bytes += entry.num_bytes
                    batch.append(entry)
                    self._leave_group(entry)
                    self._num_live -= 1
                self._entries.popleft()
            self._in_flight = batch
            return [entry.span for entry in batch if entry.span is not None]

    def settle(self, num_acknowledged: int, *, is_refused: bool = False) -> None:
        """The batch is dealt with; what is not acknowledged of it was rejected.

        `is_refused` says that the rest of the refused spans' trajectories is refused too.
        """
        with self._lock:
            batch, self._in_flight = self._in_flight, []
            self._num_bytes -= sum(entry.num_bytes for entry in batch)
            self._num_acknowledged += num_acknowledged
            self._num_rejected += len(batch) - num_acknowledged
            if is_refused:
                for entry in batch:
                    self._break(entry.key)

    def put_back(self) -> None:
        """The batch was not delivered; spans of trajectories that broke meanwhile are dropped."""
        with self._lock:
            batch, self._in_flight = self._in_flight, []
            for entry in reversed(batch):
                if entry.key in self._broken:
                    self._num_bytes -= entry.num_bytes
                    self._num_dropped += 1
                    continue
                self._entries.appendleft(entry)
                self._groups.setdefault(entry.key, deque()).appendleft(entry)
                self._num_live += 1

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._num_live and not self._in_flight

    def last_number(self) -> int:
        """Number of the span accepted last; the first is 1."""
        return self._last_number

    def has_waiting_up_to(self, number: int) -> bool:
        """Whether a span accepted with this number or before it still waits."""
        with self._lock:
            if self._in_flight:
                return self._in_flight[0].number <= number
            while self._entries and self._entries[0].span is None:
                self._entries.popleft()
            return bool(self._entries) and self._entries[0].number <= number

    def count_lost(self) -> int:
        """Spans dropped or rejected so far."""
        with self._lock:
            return self._num_dropped + self._num_rejected

    def read_stats(self) -> dict[str, int]:
        """Counts of spans, as in the module's docstring."""
        with self._lock:
            num_waiting = self._num_live + len(self._in_flight)
            return {
                "sent": self._num_sent,
                "accepted": self._num_acknowledged + num_waiting,
                "acknowledged": self._num_acknowledged,
                "rejected": self._num_rejected,
                "waiting": num_waiting,
                "dropped": self._num_dropped,
            }

    def _break(self, key: object) -> None:
        """Refuse a trajectory from now on and let its waiting spans go."""
        self._broken[key] = None
        if len(self._broken) > MAX_BROKEN:
            self._broken.popitem(last=False)
        group = self._groups.pop(key, None)
        while group:
            entry = group.popleft()
            entry.span = None  # its place in the queue is passed over
            self._num_live -= 1
            self._num_bytes -= entry.num_bytes
            self._num_dropped += 1
        if len(self._entries) > 2 * self._num_live + _MIN_COMPACTION:
            self._compact()

    def _compact(self) -> None:
        kept: deque[_Entry] = deque()
        while self._entries:  # not a comprehension: the collector may `put` in between
            entry = self._entries.popleft()
            if entry.span is not None:
                kept.append(entry)
        self._entries = kept

    def _leave_group(self, entry: "_Entry") -> None:
        group = self._groups[entry.key]
        group.popleft()  # both are first in, first out
        if not group:
            del self._groups[entry.key]


class _Entry:
    __slots__ = ("key", "num_bytes", "number", "span")

    def __init__(self, span: ReadableSpan | None, num_bytes: int, key: object, number: int) -> None:
        self.span = span
        self.num_bytes = num_bytes
        self.key = key
        self.number = number


def _read_key(span: ReadableSpan) -> object:
    """Trajectory of a span; one outside of any belongs to its trace."""
    key = read_attributes(span).get(semconv.TRAJECTORY_ID)
    if key is None and span.context is not None:
        return span.context.trace_id
    return key
