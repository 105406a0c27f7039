"""Ended spans -> a queue -> one daemon thread that delivers them, whatever the destination is.

`on_end` never waits. A batch that is refused stays in the queue and is tried again after a growing
pause; what a process that leaves or forks still has waiting is dealt with in `shutdown` and
`after_fork_in_child`.
"""

import queue
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from starpo_trace.guard import Guard, handle_failure
from starpo_trace.store.forking import watch_forks
from starpo_trace.store.spanqueue import SpanQueue

_MIN_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
_FLUSH_BACKOFF_S: Final = 0.5
"""Longest pause of ours while somebody waits in `force_flush`."""
_FOREVER_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A batch that is dealt with."""

    num_acknowledged: int
    """Spans that have arrived; the others of the batch are rejected for good."""
    is_refused: bool = False
    """Whether later spans of the same trajectories are refused too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TryLater:
    """A batch that did not arrive and may the next time."""

    pause_s: float | None = None
    """How long the other side asked to be left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    """A batch of several spans that may arrive in smaller ones."""


Delivery = Settled | TryLater | TooLarge


class BackgroundProcessor(SpanProcessor):
    """A span processor with a bounded queue and a delivering thread."""

    thread_name: str = "starpo-delivery"
    max_batch_spans: int = 512
    max_batch_bytes: int = 4 << 20
    shutdown_timeout_s: float = 5.0
    is_flush_patient: bool = False
    """Whether `force_flush` goes on trying after a refusal, until its time is over."""

    def __init__(self, spans: SpanQueue, *, flush_interval_s: float) -> None:
        self._spans = spans
        self._flush_interval_s = flush_interval_s
        self._reset()
        watch_forks(self)

    def _reset(self) -> None:
        """Set the state of a process that has delivered nothing yet."""
        self._spans.reset()
        self._start_lock = threading.Lock()
        self._delivery_lock = threading.Lock()
        # A SimpleQueue, because its `put` may interrupt itself (the collector, signal handlers).
        self._messages: queue.SimpleQueue[_Flush | bool] = queue.SimpleQueue()
        self._flushes: list[_Flush] = []
        self._thread: threading.Thread | None = None
        self._num_lost_at_flush = 0
        self._batch_spans = self.max_batch_spans
        self._due_s: float | None = None
        self._backoff_s = 0.0
        self._retry_at_s = 0.0
        self._is_asked_to_wait = False
        self._end_s: float | None = None
        self._is_over_for_good = threading.Event()
        """The last spans were delivered, or given up."""
        self._finishing: int | None = None
        """Thread of the program's that delivers them, where ours does not run."""

    # What a destination implements.

    def _deliver(self, batch: Sequence[ReadableSpan]) -> Delivery:
        """Bring a batch to its destination; raises nothing that it can foresee."""
        raise NotImplementedError

    def _idle_in_s(self) -> float:
        """When `_do_idle_work` is due."""
        return _FOREVER_S

    def _do_idle_work(self) -> None:
        """What has to be done from time to time, spans or not."""

    def _close(self) -> None:
        """Release the destination."""

    def _leave_parents_destination(self) -> None:
        """Let go of what belongs to the process that this one was forked from."""

    # What the SDK and the program call.

    def on_end(self, span: ReadableSpan) -> None:
        """Accept a span, or count it as dropped when the queue is full."""
        try:
            self._accept(span)
        except Exception as error:  # noqa: BLE001 (the SDK calls this from the program's own code)
            handle_failure("accepting a span", error)

    def _accept(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        num_waiting = self._spans.put(span)
        if num_waiting is None:
            return
        if self._thread is None or (
            num_waiting % self.max_batch_spans == 0 and not self._has_thread()
        ):
            self._start_thread()
        if num_waiting == 1:
            self._messages.put(False)  # begins the interval
        elif num_waiting == self.max_batch_spans:
            self._messages.put(True)  # ends it early

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until everything accepted so far has arrived.

        False when that took longer, or when spans were refused or dropped since the last flush.
        """
        request = _Flush(self._spans.last_number(), time.monotonic() + timeout_millis / 1000)
        if self._spans.has_waiting_up_to(request.number):
            if self._has_thread():
                self._messages.put(request)
                request.done.wait(timeout_millis / 1000)
            else:
                self._deliver_until(request.deadline_s)
        has_arrived = not self._spans.has_waiting_up_to(request.number)
        num_lost = self._spans.count_lost()
        has_lost = num_lost > self._num_lost_at_flush
        self._num_lost_at_flush = num_lost
        return has_arrived and not has_lost

    def shutdown(self, timeout_s: float | None = None) -> None:
        """Deliver what waits, within bounds, and accept no more spans."""
        if timeout_s is None:
            timeout_s = self.shutdown_timeout_s
        if self._spans.is_closed:  # a signal handler may ask while an exit is delivering
            self._is_over_for_good.wait(timeout_s)
            return
        self._spans.is_closed = True
        self._end_s = time.monotonic() + timeout_s
        thread = self._thread
        try:
            if thread is not None and thread.is_alive():
                self._messages.put(True)
                thread.join(timeout_s)
            else:
                self._finishing = threading.get_ident()
                self._finish()
        finally:
            self._finishing = None
            self._is_over_for_good.set()

    def read_stats(self) -> dict[str, int]:
        """Counts of spans: sent, accepted, acknowledged, rejected, waiting, dropped."""
        return self._spans.read_stats()

    def is_interrupted_here(self) -> bool:
        """Whether this thread was interrupted, by a signal say, inside `on_end` or `shutdown`."""
        return self._spans.is_locked_here() or self._finishing == threading.get_ident()

    def after_fork_in_child(self) -> None:
        """Begin anew: what was queued is the parent's to deliver, and its thread is not here."""
        was_closed = self._spans.is_closed
        self._reset()
        self._spans.is_closed = was_closed
        if was_closed:
            self._is_over_for_good.set()
        with Guard("leaving what belongs to the parent process"):
            self._leave_parents_destination()

    # The thread.

    def _has_thread(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start_thread(self) -> None:
        if not self._start_lock.acquire(blocking=False):
            return  # somebody is starting it
        try:
            if not self._has_thread():
                thread = threading.Thread(target=self._work, name=self.thread_name, daemon=True)
                self._thread = thread
                with Guard("starting the thread that delivers spans"):  # refused at exit
                    thread.start()
        finally:
            self._start_lock.release()

    def _work(self) -> None:
        with Guard("working the queue of spans off"):  # a later span starts another thread
            self._run()

    def _run(self) -> None:
        while self._end_s is None:
            self._await_work()
            if self._end_s is not None:
                break
            with Guard("delivering spans"):
                self._deliver_waiting()
            self._answer_flushes()
            with Guard("keeping the span destination in order"):
                self._do_idle_work()
        self._finish()

    def _finish(self) -> None:
        with Guard("delivering the last spans"):
            self._deliver_until(self._end_s or 0.0)
        self._answer_flushes()
        with Guard("closing the span destination"):
            self._close()
        self._is_over_for_good.set()

    def _await_work(self) -> None:
        """Return when a delivery or idle work is due."""
        while self._end_s is None:
            now_s = time.monotonic()
            wait_s = min(self._work_in_s(now_s), self._idle_in_s())
            if wait_s <= 0:
                return
            try:
                message = self._messages.get(timeout=wait_s)
            except queue.Empty:
                self._drop_late_flushes()
                continue
            self._note_message(message)

    def _work_in_s(self, now_s: float) -> float:
        if self._spans.is_empty():
            self._due_s = None
            return 0.0 if self._flushes else _FOREVER_S
        if self._due_s is None:
            self._due_s = now_s + self._flush_interval_s
        return max(self._due_s, self._retry_at_s) - now_s

    def _note_message(self, message: "_Flush | bool") -> None:
        if isinstance(message, _Flush):
            self._flushes.append(message)
            self._due_s = 0.0
            if not self._is_asked_to_wait:
                self._retry_at_s = 0.0  # a pause of our own choice is cut short
        elif message:
            self._due_s = 0.0

    def _deliver_waiting(self) -> bool:
        """Queue -> destination; False when it refused."""
        self._due_s = None
        with self._delivery_lock:
            while batch := self._spans.take(self._batch_spans, self.max_batch_bytes):
                delivery: Delivery = TooLarge()  # an unforeseen fault costs the span that has it
                try:
                    delivery = self._deliver(batch)
                finally:
                    is_settled = self._apply(delivery, len(batch))
                if not is_settled or self._is_over():
                    return False
                self._drop_late_flushes()
        return True

    def _is_over(self) -> bool:
        return self._end_s is not None and time.monotonic() >= self._end_s

    def _apply(self, delivery: Delivery, num_spans: int) -> bool:
        """Count what became of a batch; False when there is no use in trying the next now."""
        if isinstance(delivery, TooLarge) and num_spans > 1:
            self._spans.put_back()
            self._batch_spans = max(1, num_spans // 2)
            return True
        if isinstance(delivery, TryLater):
            self._spans.put_back()
            self._note_refusal(delivery.pause_s)
            return False
        self._backoff_s = self._retry_at_s = 0.0
        self._is_asked_to_wait = False
        self._batch_spans = min(self.max_batch_spans, 2 * self._batch_spans)
        if isinstance(delivery, Settled):
            self._spans.settle(delivery.num_acknowledged, is_refused=delivery.is_refused)
        else:
            self._spans.settle(0)
        if self._flushes:
            self._answer_flushes()
        return True

    def _note_refusal(self, asked_pause_s: float | None) -> None:
        self._backoff_s = min(MAX_BACKOFF_S, max(_MIN_BACKOFF_S, 2 * self._backoff_s))
        self._is_asked_to_wait = asked_pause_s is not None
        if asked_pause_s is not None:
            pause_s = asked_pause_s
        else:  # jitter, so that a fleet does not return all at once
            pause_s = self._backoff_s * random.uniform(0.7, 1.0)  # noqa: S311 (no secret)
            if self.is_flush_patient and self._flushes:
                pause_s = min(pause_s, _FLUSH_BACKOFF_S)
        self._retry_at_s = time.monotonic() + pause_s
        if not self.is_flush_patient:
            self._answer_flushes(is_final=True)

    def _deliver_until(self, deadline_s: float) -> None:
        """Last attempts: until the queue is empty, the destination is hopeless, or time is up."""
        while not self._deliver_waiting() and self.is_flush_patient:
            pause_s = max(0.0, self._retry_at_s - time.monotonic())
            if not self._is_asked_to_wait:
                pause_s = min(pause_s, _FLUSH_BACKOFF_S)
            if time.monotonic() + pause_s >= deadline_s:
                return
            time.sleep(pause_s)

    def _answer_flushes(self, *, is_final: bool = False) -> None:
        still_waiting = []
        for request in self._flushes:
            if is_final or not self._spans.has_waiting_up_to(request.number):
                request.done.set()
            else:
                still_waiting.append(request)
        self._flushes = still_waiting

    def _drop_late_flushes(self) -> None:
        now_s = time.monotonic()
        self._flushes = [request for request in self._flushes if request.deadline_s > now_s]


class _Flush:
    """A request to deliver now, and its answer."""

    __slots__ = ("deadline_s", "done", "number")

    def __init__(self, number: int, deadline_s: float) -> None:
        self.number = number
        """Last span that it waits for."""
        self.deadline_s = deadline_s
        self.done = threading.Event()
