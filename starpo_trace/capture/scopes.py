"""One run of an agent -> a root span that is current while it runs.

The trajectory in progress lives in the OpenTelemetry Context, so asyncio tasks and threads that
copy their context inherit it; its id also goes into W3C baggage, for other processes.
"""

import functools
import inspect
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from starpo_trace import semconv
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import Trajectory
from starpo_trace.capture.keys import TRAJECTORY_KEY
from starpo_trace.capture.outcome import redact_text
from starpo_trace.capture.parts import Checkpoint, Part, make_part, read_token, send_identity
from starpo_trace.capture.runtime import Runtime, get_runtime_or_warn
from starpo_trace.guard import Guard, warn_once

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

DEFAULT_NAME: Final = "agent"
_P = ParamSpec("_P")
_R = TypeVar("_R")


def trajectory(  # noqa: PLR0913 (one keyword per part of a run's identity)
    name: str = DEFAULT_NAME,
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
    resume: str | None = None,
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
        resume: Token of `Trajectory.checkpoint()`: go on with that run, here and now. Its id,
            identity, step numbers and history continue; what is given beside it is replaced.
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
    return TrajectoryScope(name, identity, resume)


class TrajectoryScope:
    """Context manager and decorator made by `trajectory()`."""

    def __init__(
        self, name: str, identity: dict[str, str | int | None], resume: str | None
    ) -> None:
        self._name = name
        self._identity = identity
        self._resume = resume
        self._trajectory: Trajectory | None = None
        self._attachment: Attachment | None = None

    def __enter__(self) -> Trajectory:
        with Guard("beginning a trajectory"):
            self._trajectory, context = _begin_trajectory(self._name, self._identity, self._resume)
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
                with TrajectoryScope(self._name, self._identity, self._resume):
                    return await function(*args, **kwargs)

            return cast("Callable[_P, _R]", run_async)

        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with TrajectoryScope(self._name, self._identity, self._resume):
                return function(*args, **kwargs)

        return run


def _begin_trajectory(
    name: str, given: dict[str, str | int | None], resume: str | None
) -> tuple[Trajectory, Context]:
    runtime = get_runtime_or_warn("trajectory()")
    if not is_instrumentation_enabled():
        runtime = None
    checkpoint = None if resume is None else _read_checkpoint(resume)
    identity = _complete_identity(name, given, checkpoint, runtime)
    part = None
    if checkpoint is not None:
        part = make_part("resume", base=checkpoint.num_steps, parent=checkpoint.part)
    trajectory_id = checkpoint.trajectory_id if checkpoint else given[semconv.TRAJECTORY_ID]
    span = _start_root_span(runtime, identity, part, checkpoint)
    trajectory_id = _mask_id(str(trajectory_id)) if trajectory_id else _make_trajectory_id(span)
    span.set_attribute(semconv.TRAJECTORY_ID, trajectory_id)
    begun = Trajectory(
        trajectory_id=str(trajectory_id),
        span=span,
        history_mode=runtime.history_mode if runtime is not None else "off",
        identity=identity,
        part=part,
        is_sampled=span.is_recording(),
    )
    if checkpoint is not None:
        begun.history.restore_tail(checkpoint.tail)
    context = otel_context.set_value(TRAJECTORY_KEY, begun)
    if runtime is None:
        return begun, context
    context = trace.set_span_in_context(span, context)
    return begun, send_identity(
        context, begun.id, begun, identity=identity, part=part, is_sampled=begun.is_sampled
    )


def _read_checkpoint(resume: str) -> Checkpoint | None:
    """Token -> checkpoint; a run whose token cannot be read begins anew."""
    with Guard("reading a resume token"):
        return read_token(resume)
    return None


def _complete_identity(
    name: str,
    given: dict[str, str | int | None],
    checkpoint: Checkpoint | None,
    runtime: Runtime | None,
) -> dict[str, str | int]:
    identity: dict[str, str | int] = {}
    if runtime is not None and runtime.config.policy_id is not None:
        identity[semconv.POLICY_ID] = runtime.config.policy_id
    if checkpoint is not None:
        identity.update(checkpoint.identity)
        if name == DEFAULT_NAME:
            name = str(identity.get(semconv.AGENT_NAME, name))
    identity.update({key: value for key, value in given.items() if value is not None})
    identity.pop(semconv.TRAJECTORY_ID, None)
    identity[semconv.AGENT_NAME] = name
    return {
        key: redact_text(value) if isinstance(value, str) else value
        for key, value in identity.items()
    }


def _start_root_span(
    runtime: Runtime | None,
    identity: Mapping[str, str | int],
    part: Part | None,
    checkpoint: Checkpoint | None,
) -> Span:
    if runtime is None:
        return trace.INVALID_SPAN
    first = None
    if checkpoint is not None and checkpoint.trace_id:
        first = SpanContext(
            checkpoint.trace_id,
            checkpoint.span_id,
            is_remote=True,
            trace_flags=TraceFlags(
                TraceFlags.SAMPLED if checkpoint.is_sampled else TraceFlags.DEFAULT
            ),
        )
    tracer = runtime.get_tracer()
    if checkpoint is not None and not checkpoint.is_sampled:
        runtime.follow_trajectories()
        return NonRecordingSpan(first or trace.INVALID_SPAN_CONTEXT)
    attributes: dict[str, AttributeValue] = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "trajectory",
        semconv.OPERATION_NAME: "invoke_agent",
        **identity,
    }
    if part is not None:
        attributes.update(part.describe())
    return tracer.start_span(
        f"invoke_agent {identity[semconv.AGENT_NAME]}",
        kind=SpanKind.INTERNAL,
        attributes=attributes,
        links=() if first is None else (Link(first),),
    )


def _mask_id(trajectory_id: str) -> str:
    masked = redact_text(trajectory_id)
    if masked != trajectory_id:
        warn_once(
            "masked trajectory id",
            "a trajectory_id holds what is masked and is recorded as %r; runs whose ids differ only "
            "there become one. Give ids without secrets, or leave them out",
            masked,
        )
    return masked


def _make_trajectory_id(span: Span) -> str:
    own = span.get_span_context()
    around = trace.get_current_span().get_span_context()
    if not own.is_valid or own.span_id == around.span_id:  # nothing is recorded
        return uuid.uuid4().hex
    return f"{own.trace_id:032x}-{own.span_id:016x}"
