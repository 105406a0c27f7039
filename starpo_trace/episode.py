"""One run of an agent -> a root span, and numbered steps below it.

The trajectory in progress lives in the OpenTelemetry Context, so asyncio tasks and threads that
copy their context inherit it; its id also goes into W3C baggage, for other processes.
"""

import functools
import inspect
import threading
import uuid
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast, get_args

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode

from starpo_trace import semconv
from starpo_trace.config import HistoryMode
from starpo_trace.guard import Guard
from starpo_trace.history import History
from starpo_trace.runtime import get_runtime

EndKind = Literal["terminated", "truncated", "abandoned", "error"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_TRAJECTORY_KEY: Final = otel_context.create_key("starpo-trajectory")
_SFT_REASONS: Final = frozenset(
    {"token_ids_missing", "logprob_missing", "stream_incomplete", "unread_response"}
)
_open_trajectories: "weakref.WeakSet[Trajectory]" = weakref.WeakSet()
_attachment: ContextVar[object] = ContextVar("starpo_attachment", default=None)


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
                    f"end kind {kind!r} of trajectory {self.id}: use one of {get_args(EndKind)}"
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

    def finish(self, error: BaseException | None) -> None:
        """End the root span with how the run ended and what its recording is good for."""
        from starpo_trace.invocation import finish_open_calls

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


def trajectory(  # noqa: PLR0913 (one keyword per part of a run's identity)
    name: str = "agent",
    *,
    task_id: str | None = None,
    attempt: int | None = None,
    seed: int | None = None,
    policy_id: str | None = None,
    environment_name: str | None = None,
    environment_version: str | None = None,
    cohort: str | None = None,
    conversation_id: str | None = None,
    trajectory_id: str | None = None,
) -> "TrajectoryScope":
    """Record a run: `with` / `async with` a `Trajectory`, or a decorator of a (async) function.

    The run counts as terminated unless `Trajectory.end` says otherwise; when an exception leaves
    it, as error (`KeyboardInterrupt` and cancellation: abandoned), and the exception goes on.

    Args:
        name: Name of the agent.
        task_id: The task; runs of the same task are compared with each other.
        attempt: Which try of the task this is.
        seed: Random seed of the run.
        policy_id: Which checkpoint or prompt version acts; default from `instrument()`.
        environment_name: Where the agent acts.
        environment_version: Which version of that.
        cohort: Slice of the tasks that a release gate watches separately.
        conversation_id: The conversation the run belongs to.
        trajectory_id: Id to use; by default one is made from the root span, so that another
            process can link to it.
    """
    identity: dict[str, str | int | None] = {
        semconv.AGENT_NAME: name,
        semconv.TASK_ID: task_id,
        semconv.ATTEMPT: attempt,
        semconv.SEED: seed,
        semconv.POLICY_ID: policy_id,
        semconv.ENVIRONMENT_NAME: environment_name,
        semconv.ENVIRONMENT_VERSION: environment_version,
        semconv.COHORT: cohort,
        semconv.CONVERSATION_ID: conversation_id,
        semconv.TRAJECTORY_ID: trajectory_id,
    }
    return TrajectoryScope(name, identity)


def current_trajectory() -> Trajectory | None:
    """The run that this code belongs to, if any."""
    value = otel_context.get_value(_TRAJECTORY_KEY)
    return value if isinstance(value, Trajectory) else None


class Attachment:
    """A Context made current, and put back only where that is possible.

    A generator or task may leave its block in another Context than it entered; OpenTelemetry's
    own detach then logs an error, so it is skipped.
    """

    __slots__ = ("_mark", "_token")

    def __init__(self, context: Context) -> None:
        self._mark: Token[object] = _attachment.set(self)
        self._token = otel_context.attach(context)

    def detach(self) -> None:
        """Make the Context before current again."""
        try:
            _attachment.reset(self._mark)
        except (ValueError, RuntimeError):  # we are in another Context, or were here before
            return
        otel_context.detach(self._token)


class TrajectoryScope:
    """Context manager and decorator made by `trajectory()`."""

    def __init__(self, name: str, identity: dict[str, str | int | None]) -> None:
        self._name = name
        self._identity = identity
        self._trajectory: Trajectory | None = None
        self._attachment: Attachment | None = None

    def __enter__(self) -> Trajectory:
        with Guard("beginning a trajectory"):
            self._trajectory, context = _begin_trajectory(self._name, self._identity)
            self._attachment = Attachment(context)
            return self._trajectory
        return Trajectory(
            trajectory_id=str(self._identity[semconv.TRAJECTORY_ID] or uuid.uuid4().hex),
            span=trace.INVALID_SPAN,
            history_mode="off",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with Guard("ending a trajectory"):
            if self._attachment is not None:
                self._attachment.detach()
            if self._trajectory is not None:
                self._trajectory.finish(error)
            self._trajectory = self._attachment = None

    async def __aenter__(self) -> Trajectory:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorate a function: each call of it is one trajectory.

        Raises:
            TypeError: it is a generator, which may be resumed anywhere; use `with` inside it.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"trajectory() cannot decorate the generator {function.__qualname__}(); "
                "write `with starpo_trace.trajectory(...)` inside it"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with TrajectoryScope(self._name, self._identity):
                    return await function(*args, **kwargs)

            return cast("Callable[_P, _R]", run_async)

        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with TrajectoryScope(self._name, self._identity):
                return function(*args, **kwargs)

        return run


def _begin_trajectory(
    name: str, identity: dict[str, str | int | None]
) -> tuple[Trajectory, Context]:
    runtime = get_runtime()
    tracer = runtime.get_tracer() if runtime is not None else trace.NoOpTracer()
    policy_id = identity[semconv.POLICY_ID]
    if policy_id is None and runtime is not None:
        policy_id = runtime.config.policy_id
    attributes: dict[str, str | int | None] = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "trajectory",
        semconv.OPERATION_NAME: "invoke_agent",
        **identity,
        semconv.POLICY_ID: policy_id,
    }
    span = tracer.start_span(
        f"invoke_agent {name}",
        kind=SpanKind.INTERNAL,
        attributes={key: value for key, value in attributes.items() if value is not None},
    )
    trajectory_id = identity[semconv.TRAJECTORY_ID] or _make_trajectory_id(span.get_span_context())
    span.set_attribute(semconv.TRAJECTORY_ID, trajectory_id)
    begun = Trajectory(
        trajectory_id=str(trajectory_id),
        span=span,
        history_mode=runtime.history_mode if runtime is not None else "off",
    )
    context = trace.set_span_in_context(span)
    context = baggage.set_baggage(semconv.TRAJECTORY_ID, begun.id, context)
    return begun, otel_context.set_value(_TRAJECTORY_KEY, begun, context)


def _make_trajectory_id(span_context: SpanContext) -> str:
    if not span_context.is_valid:  # nothing is recorded
        return uuid.uuid4().hex
    return f"{span_context.trace_id:032x}-{span_context.span_id:016x}"


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
