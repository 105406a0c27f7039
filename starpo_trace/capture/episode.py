"""The run in progress: its step numbers, what its spans hold, its verdict."""

import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from typing import Any, Final, get_args

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, TraceFlags
from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.capture.history import History
from starpo_trace.capture.keys import AROUND_KEY, INHERITED_KEY, LAYER_KEY, TRAJECTORY_KEY
from starpo_trace.capture.lineage import list_alive
from starpo_trace.capture.outcome import (
    EndKind,
    end_kind_of,
    judge_usability,
    mark_error,
    redact_text,
)
from starpo_trace.capture.parts import (
    Arrival,
    Checkpoint,
    Identity,
    Part,
    copy_identity,
    make_part,
    receive_identity,
    write_token,
)
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.capture.tally import Ended, Tally
from starpo_trace.config import HistoryMode
from starpo_trace.guard import Guard

__all__ = [
    "EndKind",
    "Trajectory",
    "abandon_open_trajectories",
    "close_remote_parts",
    "current_trajectory",
    "find_open_trajectory",
    "judge_usability",
    "leave_finished_run",
    "mark_error",
]

_GENERATED_ID: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")
_MAX_REMOTE_TRAJECTORIES: Final = 256


class Trajectory:
    """One run in progress: yielded by `trajectory()`."""

    def __init__(
        self,
        *,
        trajectory_id: str,
        span: Span,
        history_mode: HistoryMode,
        identity: Identity | None = None,
        part: Part | None = None,
        is_sampled: bool = True,
        parent_context: SpanContext | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.id = trajectory_id
        """What late rewards are sent to."""
        self.span = span
        """The root span; where another process has it, a span that records nothing."""
        self.history = History()
        """What its spans already hold."""
        self.states: dict[str, tuple[str, Any]] = {}
        """Per state name, hash and value of the latest state."""
        self.last_states: dict[str, str] = {}
        """Per state name, what a framework's state was last, in JSON."""
        self.identity: Identity = identity or {}
        """Attributes that say whose run it is."""
        self.part = part
        """What this process records of it; None where the run began."""
        self.is_sampled = is_sampled
        """Whether the trajectory is recorded."""
        self.tally = tally
        """What it used and earned so far; None where it is not measured here."""
        self.last_llm_step: int | None = None
        """Step of the latest model call."""
        self._history_mode: HistoryMode = history_mode
        self._lock = threading.RLock()
        self._step_contexts: list[SpanContext | None] = []
        self._first_step = 0 if part is None else part.base
        self._parent_context = parent_context or span.get_span_context()
        self._num_calls = 0
        self._reasons: set[str] = set()
        self._end: tuple[EndKind, str | None] | None = None
        self._is_finished = False
        _open_trajectories[id(self)] = self
        if part is None or part.kind == "resume":
            _rooted_trajectories[trajectory_id] = self

    @property
    def num_steps(self) -> int:
        """Steps started so far: model calls, tools, retrievals, verifiers."""
        return self._first_step + len(self._step_contexts)

    @property
    def task_id(self) -> str | None:
        """The task that it is an attempt at, where it is known."""
        task_id = self.identity.get(semconv.TASK_ID)
        return None if task_id is None else str(task_id)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended here."""
        return self._is_finished

    def end(self, kind: EndKind, *, reason: object = None) -> None:
        """Say how the run ended; recorded when its block is left.

        In a process that only records a part of the run it says how that part ended.

        Args:
            kind: `"terminated"` (came to its own end), `"truncated"` (stopped by a limit),
                `"abandoned"` or `"error"`.
            reason: Free text, or the exception that it was.
        """
        with Guard("ending a trajectory"):
            if kind not in get_args(EndKind):
                raise ValueError(
                    f"end kind {kind!r} of trajectory {self.id}: use one of "
                    f"{', '.join(get_args(EndKind))}"
                )
            self._end = (kind, None)
            if reason is not None:
                self._end = (kind, redact_text(reason))

    def checkpoint(self) -> str:
        """Token with which `trajectory(resume=...)` continues this run, later or elsewhere.

        ASCII text of a few hundred characters without secrets: ids, the number of steps, and
        hashes of the latest history.
        """
        with Guard("making a resume token"):
            context = self.span.get_span_context()
            return write_token(
                Checkpoint(
                    trajectory_id=self.id,
                    trace_id=context.trace_id,
                    span_id=context.span_id,
                    is_sampled=self.is_sampled,
                    num_steps=self.num_steps,
                    part=None if self.part is None else self.part.id,
                    identity=self.identity,
                    tail=self.history.read_tail(),
                )
            )
        return ""

    def take_step(self) -> int:
        """Number of a step that begins now."""
        with self._lock:
            self._step_contexts.append(None)
            return self.num_steps - 1

    def set_step_span(self, step: int, span: Span, *, is_llm: bool = False) -> None:
        """Remember a step's span, so that rewards can link to it."""
        with self._lock:
            self._step_contexts[step - self._first_step] = span.get_span_context()
            if is_llm:
                self.last_llm_step = step
        if self.part is not None:
            span.set_attributes(self.describe_part())

    def get_step_context(self, step: int | None) -> SpanContext | None:
        """Span context of a step; None when there is no such step here."""
        if step is None or not self._first_step <= step < self.num_steps:
            return None
        return self._step_contexts[step - self._first_step]

    def describe_part(self) -> dict[str, AttributeValue]:
        """Attributes that tell this part's spans from others'; none where the run began."""
        part = self.part
        if part is None:
            return {}
        attributes = part.describe()
        if part.kind == "remote":
            attributes.update(self.identity)
            arrival = receive_identity()
            if arrival is not None and arrival.trajectory_id == self.id:
                attributes[semconv.PART_AFTER] = arrival.num_steps
        return attributes

    def is_trace_of(self, span: Span) -> bool:
        """Whether a span is in the trace of the root span, below which it would join the run."""
        own = self.span.get_span_context()
        is_recorded = self.is_sampled and own.is_valid
        return is_recorded and span.get_span_context().trace_id == own.trace_id

    def note_call(self, reasons: set[str]) -> None:
        """Count a model call that ended, and why it is worth less than it might be."""
        with self._lock:
            self._num_calls += 1
            self._reasons |= reasons

    def note_reason(self, reason: str) -> None:
        """Remember why the recording is worth less than it might be."""
        with self._lock:
            self._reasons.add(reason)

    def after_fork_in_child(self) -> None:
        """Become a part of the trajectory: the root span and the numbers are the parent's.

        Locks are replaced, which threads of the parent may hold.
        """
        self._lock = threading.RLock()
        self.history.after_fork_in_child()
        parent = None if self.part is None else self.part.id
        self.part = make_part("fork", base=self.num_steps, parent=parent)
        self.span = NonRecordingSpan(self.span.get_span_context())
        self.tally = None
        self._num_calls, self._reasons, self._end = 0, set(), None

    def finish(self, error: BaseException | None) -> None:
        """End the root span with how the run ended and what its recording is good for.

        Where another process has the root span, a span of its own says how this part ended.
        """
        from starpo_trace.capture.invocation import finish_open_calls

        with self._lock:
            if self._is_finished:
                return
            self._is_finished = True
        with Guard("ending the streams of a trajectory"):
            finish_open_calls(self)
        with Guard("measuring a trajectory"):
            self._measure(error)
        span = self.span
        if self.part is not None and self.part.kind != "resume":
            begun = self._begin_closing_span(self.part)
            if begun is None:
                return
            span = begun
        try:
            self._describe_end(span, error)
        finally:  # a span that never ends takes the run with it
            span.end()
        # A thread that outlives the run may hold this object for long.
        tail = self.history.read_tail()
        self.history, self.states, self.last_states = History(), {}, {}
        self.history.restore_tail(tail)

    def _measure(self, error: BaseException | None) -> None:
        """Count the run, also one that is not recorded."""
        tally, runtime = self.tally, get_runtime()
        meters = None if tally is None or runtime is None else runtime.get_meters()
        if tally is None or meters is None:
            return
        meters.put(
            Ended(
                trajectory_id=self.id,
                identity=self.identity,
                end=self._end[0] if self._end else end_kind_of(error),
                duration_s=time.perf_counter() - tally.started_s,
                num_steps=len(self._step_contexts),
                num_tokens=tally.read_tokens(),
                rewards=tuple(tally.rewards.values()),
            )
        )

    def _describe_end(self, span: Span, error: BaseException | None) -> None:
        kind, reason = self._end or (end_kind_of(error), None)
        span.set_attribute(semconv.TRAJECTORY_END, kind)
        if reason is not None:
            span.set_attribute(semconv.TRAJECTORY_END_REASON, reason)
        span.set_attribute(semconv.TRAJECTORY_NUM_STEPS, self.num_steps)
        usable_for, reasons = judge_usability(self._num_calls, self._history_mode, self._reasons)
        span.set_attribute(semconv.USABLE_FOR, usable_for)
        if reasons:
            span.set_attribute(semconv.USABLE_FOR_REASONS, reasons)
        if error is not None and end_kind_of(error) != "terminated":
            mark_error(span, error, has_content=self._history_mode != "off")

    def _begin_closing_span(self, part: Part) -> Span | None:
        runtime = get_runtime()
        if runtime is None or not self.is_sampled or self.num_steps == part.base:
            return None
        return runtime.get_tracer().start_span(
            "trajectory part",
            context=trace.set_span_in_context(NonRecordingSpan(self._parent_context)),
            links=[Link(self._parent_context)] if self._parent_context.is_valid else (),
            attributes={
                semconv.SCHEMA: semconv.SCHEMA_VERSION,
                semconv.RECORD: "part",
                semconv.TRAJECTORY_ID: self.id,
                **part.describe(),
                **(self.identity if part.kind == "remote" else {}),
            },
        )


_open_trajectories: "weakref.WeakValueDictionary[int, Trajectory]" = weakref.WeakValueDictionary()
_rooted_trajectories: "weakref.WeakValueDictionary[str, Trajectory]" = weakref.WeakValueDictionary()
_remote_trajectories: "OrderedDict[str, Trajectory]" = OrderedDict()
_remote_lock = threading.Lock()


def abandon_open_trajectories(reason: str = "the process exited") -> None:
    """End the runs that nobody will end: the process exits, or records no longer."""
    close_remote_parts()
    for open_trajectory in list_alive(_open_trajectories):
        if not open_trajectory.is_finished:
            open_trajectory.end("abandoned", reason=reason)
            open_trajectory.finish(None)


def close_remote_parts() -> None:
    """End what this process records of runs that began elsewhere."""
    with _remote_lock:
        remote = list(_remote_trajectories.values())
        _remote_trajectories.clear()
    for each in remote:
        each.finish(None)


def current_trajectory() -> Trajectory | None:
    """The run that this code belongs to, if any; never one that has ended.

    In a process that was called by a run's (its baggage arrived with the request) it is what this
    process records of that run; its `end` is not the run's.
    """
    value = otel_context.get_value(TRAJECTORY_KEY)
    if isinstance(value, Trajectory):
        if not value.is_finished:
            return value
        outer = leave_finished_run()
        if outer is not None:
            return outer
    arrival = receive_identity()
    return None if arrival is None else _join_trajectory(arrival)


def leave_finished_run() -> Trajectory | None:
    """Take this Context out of a run that has ended: what is done now is no part of it.

    Threads, tasks and suspended generators may live on in the Context of their run. They come
    back to the run around it, if that goes on.

    Returns:
        The run that they are in then.
    """
    run = otel_context.get_value(TRAJECTORY_KEY)
    if not isinstance(run, Trajectory) or not run.is_finished:
        return run if isinstance(run, Trajectory) else None
    context = otel_context.get_current()
    around, outer = context, run
    while isinstance(outer, Trajectory) and outer.is_finished:
        value = otel_context.get_value(AROUND_KEY, around)
        around = value if isinstance(value, Context) else Context()
        outer = otel_context.get_value(TRAJECTORY_KEY, around)
    span = trace.get_current_span()
    if span is otel_context.get_value(INHERITED_KEY) or run.is_trace_of(span):
        context = trace.set_span_in_context(trace.get_current_span(around), context)
    for key in (TRAJECTORY_KEY, AROUND_KEY, INHERITED_KEY, LAYER_KEY):
        context = otel_context.set_value(key, otel_context.get_value(key, around), context)
    # Whoever detaches the Context around this one ends it too.
    otel_context.attach(copy_identity(around, context))
    return outer if isinstance(outer, Trajectory) else None


def find_open_trajectory(trajectory_id: str) -> Trajectory | None:
    """Run with this id that began in this process and goes on."""
    found = _rooted_trajectories.get(trajectory_id)
    return None if found is None or found.is_finished else found


def _join_trajectory(arrival: Arrival) -> Trajectory:
    """What this process records of a run that began elsewhere; one part for all its requests."""
    rooted = find_open_trajectory(arrival.trajectory_id)
    if rooted is not None:
        return rooted  # the request came from this very process
    evicted: list[Trajectory] = []
    with _remote_lock:
        joined = _remote_trajectories.get(arrival.trajectory_id)
        if joined is None:
            joined = _begin_remote_part(arrival)
            _remote_trajectories[arrival.trajectory_id] = joined
            while len(_remote_trajectories) > _MAX_REMOTE_TRAJECTORIES:
                evicted.append(_remote_trajectories.popitem(last=False)[1])
        else:
            _remote_trajectories.move_to_end(arrival.trajectory_id)
    for each in evicted:
        each.finish(None)
    return joined


def _begin_remote_part(arrival: Arrival) -> Trajectory:
    runtime = get_runtime()
    if runtime is not None:
        runtime.get_tracer()  # decides the history mode
        if not arrival.is_sampled:
            runtime.follow_trajectories()
    parts = _GENERATED_ID.fullmatch(arrival.trajectory_id)
    root = trace.INVALID_SPAN_CONTEXT
    if parts is not None:
        flags = TraceFlags(TraceFlags.SAMPLED if arrival.is_sampled else TraceFlags.DEFAULT)
        root = SpanContext(int(parts[1], 16), int(parts[2], 16), is_remote=True, trace_flags=flags)
    return Trajectory(
        trajectory_id=arrival.trajectory_id,
        span=NonRecordingSpan(root),
        history_mode=runtime.history_mode if runtime is not None else "off",
        identity=arrival.identity,
        part=make_part("remote", base=arrival.num_steps, parent=arrival.part),
        is_sampled=arrival.is_sampled,
        parent_context=trace.get_current_span().get_span_context(),
    )


def _after_fork_in_child() -> None:
    global _remote_lock  # noqa: PLW0603 (a thread of the parent may hold it)
    _remote_lock = threading.Lock()
    for open_trajectory in list_alive(_open_trajectories):
        if not open_trajectory.is_finished:
            open_trajectory.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
