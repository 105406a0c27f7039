"""The run in progress: its step numbers, what its spans hold, its verdict."""

import os
import threading
import weakref
from typing import Any, Final, Literal, get_args

from opentelemetry import context as otel_context
from opentelemetry.trace import Span, SpanContext, Status, StatusCode

from starpo_trace import semconv
from starpo_trace.capture.history import History
from starpo_trace.config import HistoryMode
from starpo_trace.guard import Guard

EndKind = Literal["terminated", "truncated", "abandoned", "error"]

TRAJECTORY_KEY: Final = otel_context.create_key("starpo-trajectory")
_SFT_REASONS: Final = frozenset(
    {"token_ids_missing", "logprob_missing", "stream_incomplete", "unread_response"}
)
_open_trajectories: "weakref.WeakSet[Trajectory]" = weakref.WeakSet()


class Trajectory:
    """One run in progress: yielded by `trajectory()`."""

    def __init__(self, *, trajectory_id: str, span: Span, history_mode: HistoryMode) -> None:
        self.id = trajectory_id
        """What late rewards are sent to."""
        self.span = span
        """The root span."""
        self.history = History()
        """What its spans already hold."""
        self.states: dict[str, tuple[str, Any]] = {}
        """Per state name, hash and value of the latest state."""
        self.last_llm_step: int | None = None
        """Step of the latest model call."""
        self._history_mode: HistoryMode = history_mode
        self._lock = threading.RLock()
        self._step_contexts: list[SpanContext | None] = []
        self._num_calls = 0
        self._reasons: set[str] = set()
        self._end: tuple[EndKind, str | None] | None = None
        self._is_finished = False
        _open_trajectories.add(self)

    @property
    def num_steps(self) -> int:
        """Steps started so far: model calls, tools, retrievals, verifiers."""
        return len(self._step_contexts)

    def end(self, kind: EndKind, *, reason: str | None = None) -> None:
        """Say how the run ended; recorded when its block is left.

        Args:
            kind: `"terminated"` (came to its own end), `"truncated"` (stopped by a limit),
                `"abandoned"` or `"error"`.
            reason: Free text.
        """
        with Guard("ending a trajectory"):
            if kind not in get_args(EndKind):
                raise ValueError(
                    f"end kind {kind!r} of trajectory {self.id}: use one of "
                    f"{', '.join(get_args(EndKind))}"
                )
            self._end = (kind, reason)

    def take_step(self) -> int:
        """Number of a step that begins now."""
        with self._lock:
            self._step_contexts.append(None)
            return len(self._step_contexts) - 1

    def set_step_span(self, step: int, span: Span, *, is_llm: bool = False) -> None:
        """Remember a step's span, so that rewards can link to it."""
        with self._lock:
            self._step_contexts[step] = span.get_span_context()
            if is_llm:
                self.last_llm_step = step

    def get_step_context(self, step: int | None) -> SpanContext | None:
        """Span context of a step; None when there is no such step."""
        if step is None or not 0 <= step < len(self._step_contexts):
            return None
        return self._step_contexts[step]

    def note_call(self, reasons: set[str]) -> None:
        """Count a model call that ended, and why it is worth less than it might be."""
        with self._lock:
            self._num_calls += 1
            self._reasons |= reasons

    def after_fork_in_child(self) -> None:
        """Replace locks that threads of the parent may hold; the root span is the parent's."""
        self._lock = threading.RLock()
        self.history.after_fork_in_child()

    def finish(self, error: BaseException | None) -> None:
        """End the root span with how the run ended and what its recording is good for."""
        from starpo_trace.capture.invocation import finish_open_calls

        with self._lock:
            if self._is_finished:
                return
            self._is_finished = True
        finish_open_calls(self)
        kind, reason = self._end or (_end_kind_of(error), None)
        usable_for, reasons = judge_usability(self._num_calls, self._history_mode, self._reasons)
        span = self.span
        span.set_attribute(semconv.TRAJECTORY_END, kind)
        if reason is not None:
            span.set_attribute(semconv.TRAJECTORY_END_REASON, reason)
        span.set_attribute(semconv.TRAJECTORY_NUM_STEPS, self.num_steps)
        span.set_attribute(semconv.USABLE_FOR, usable_for)
        if reasons:
            span.set_attribute(semconv.USABLE_FOR_REASONS, reasons)
        if error is not None:
            mark_error(span, error, has_content=self._history_mode != "off")
        span.end()


def abandon_open_trajectories() -> None:
    """End the runs that the exiting process leaves unfinished."""
    for open_trajectory in list(_open_trajectories):
        open_trajectory.end("abandoned", reason="the process exited")
        open_trajectory.finish(None)


def judge_usability(
    num_calls: int, history_mode: HistoryMode, reasons: set[str]
) -> tuple[Literal["rl", "sft", "none"], list[str]]:
    """What a trajectory's recording is good for, and every reason against something better."""
    reasons = set(reasons)
    if history_mode == "off":
        reasons.add("history_off")
    if num_calls == 0:
        reasons.add("no_llm_call")
    if reasons & {"history_off", "no_llm_call"}:
        return "none", sorted(reasons)
    return ("sft" if reasons & _SFT_REASONS else "rl"), sorted(reasons)


def current_trajectory() -> Trajectory | None:
    """The run that this code belongs to, if any."""
    value = otel_context.get_value(TRAJECTORY_KEY)
    return value if isinstance(value, Trajectory) else None


def _end_kind_of(error: BaseException | None) -> EndKind:
    if error is None:
        return "terminated"
    return "error" if isinstance(error, Exception) else "abandoned"


def mark_error(span: Span, error: BaseException, *, has_content: bool) -> None:
    """Record on a span that it failed; the message only where content may be recorded."""
    kind = type(error)
    qualified = kind.__qualname__
    if kind.__module__ != "builtins":
        qualified = f"{kind.__module__}.{qualified}"
    span.set_attribute(semconv.ERROR_TYPE, qualified)
    description = f"{kind.__name__}: {error}" if has_content else kind.__name__
    span.set_status(Status(StatusCode.ERROR, description))


def _after_fork_in_child() -> None:
    for open_trajectory in list(_open_trajectories):
        open_trajectory.after_fork_in_child()
    _open_trajectories.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
