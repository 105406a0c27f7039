"""One run of an agent -> a root span that is current while it runs.

The trajectory in progress lives in the OpenTelemetry Context, so asyncio tasks and threads that
copy their context inherit it; its id also goes into W3C baggage, for other processes.
"""

import functools
import inspect
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast, overload

from opentelemetry import trace

from starpo_trace import semconv
from starpo_trace.capture.attachment import Entry, OpenEntries
from starpo_trace.capture.episode import Trajectory, leave_finished_run
from starpo_trace.capture.roots import DEFAULT_NAME, begin_trajectory
from starpo_trace.guard import Guard, warn_once

_P = ParamSpec("_P")
_R = TypeVar("_R")


@overload
def trajectory(name: Callable[_P, _R], /) -> Callable[_P, _R]: ...
@overload
def trajectory(
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
) -> "TrajectoryScope": ...
def trajectory(  # noqa: PLR0913 (one keyword per part of a run's identity)
    name: str | Callable[..., Any] = DEFAULT_NAME,
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
) -> Any:
    """Record a run: `with` / `async with` a `Trajectory`, or a decorator of a (async) function.

    The run counts as terminated unless `Trajectory.end` says otherwise; when an exception leaves
    it, as error (`KeyboardInterrupt`, cancellation, a closed generator, and `SystemExit` with
    another code than 0: abandoned), and the exception goes on.

    What a task or thread does after the end of the run that it was begun in is no part of the run.

    Args:
        name: Name of the agent. As `@trajectory` without parentheses: the function, whose name is
            the agent's.
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
    if callable(name):
        return trajectory(getattr(name, "__name__", DEFAULT_NAME))(name)
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
        self._open: OpenEntries[Trajectory] = OpenEntries()

    def __enter__(self) -> Trajectory:
        with Guard("beginning a trajectory"):
            begun, context = begin_trajectory(self._name, self._identity, self._resume)
            self._open.add(Entry(context), begun)
            return begun
        given_id = self._identity[semconv.TRAJECTORY_ID]
        return Trajectory(
            trajectory_id=given_id if isinstance(given_id, str) and given_id else uuid.uuid4().hex,
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
            opened = self._open.take()
            if opened is None:
                return
            entry, begun = opened
            is_in_order = entry is None or entry.leave()
            begun.finish(error)
            leave_finished_run()
            if not is_in_order:
                warn_once(
                    "trajectory left out of order",
                    "the run %s was left while another one was current, or in another Context than "
                    "it was entered in. What was done meanwhile may count for the wrong run. A "
                    "generator that holds `with trajectory()` over a yield does this; hold it in "
                    "the code that drives the generator",
                    begun.id,
                )

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
        if _is_any(function, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
            raise TypeError(
                f"trajectory() cannot decorate the generator {_name_function(function)}(); "
                "write `with starpo_trace.trajectory(...)` inside it"
            )
        if _is_any(function, inspect.iscoroutinefunction):
            call = cast("Callable[_P, Awaitable[Any]]", function)

            @functools.wraps(function)
            async def run_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with TrajectoryScope(self._name, self._identity, self._resume):
                    return await call(*args, **kwargs)

            return cast("Callable[_P, _R]", run_async)

        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with TrajectoryScope(self._name, self._identity, self._resume):
                result = function(*args, **kwargs)
                if inspect.iscoroutine(result) or inspect.isgenerator(result):
                    _warn_of_deferred_work(function, result)
                return result

        return run


def _is_any(function: Callable[..., Any], *tests: Callable[[object], bool]) -> bool:
    """Whether a test holds for a function, or for what an object does when it is called."""
    called = function if inspect.isroutine(function) else type(function).__call__
    return any(test(function) or test(called) for test in tests)


def _name_function(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _warn_of_deferred_work(function: Callable[..., Any], result: object) -> None:
    with Guard("looking at what a decorated function gave"):
        warn_once(
            "trajectory of deferred work",
            "%s(), decorated with trajectory(), returned a %s: what that does happens after the run "
            "and is no part of it. Decorate an `async def`, or write `with starpo_trace."
            "trajectory(...)` where the work is done",
            _name_function(function),
            type(result).__name__,
        )
