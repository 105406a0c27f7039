"""One run of an agent -> a root span that is current while it runs.

The trajectory in progress lives in the OpenTelemetry Context, so asyncio tasks and threads that
copy their context inherit it; its id also goes into W3C baggage, for other processes.
"""

import functools
import inspect
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind

from starpo_trace import semconv
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import TRAJECTORY_KEY, Trajectory
from starpo_trace.capture.runtime import get_runtime_or_warn
from starpo_trace.guard import Guard

_P = ParamSpec("_P")
_R = TypeVar("_R")


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
    runtime = get_runtime_or_warn("trajectory()")
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
    return begun, otel_context.set_value(TRAJECTORY_KEY, begun, context)


def _make_trajectory_id(span_context: SpanContext) -> str:
    if not span_context.is_valid:  # nothing is recorded
        return uuid.uuid4().hex
    return f"{span_context.trace_id:032x}-{span_context.span_id:016x}"
