"""Threads that a run starts -> threads that belong to it.

asyncio tasks inherit the Context, threads do not: a model called in a worker thread would belong to
no run. What `ThreadPoolExecutor.submit` and `Thread.start` are given inside a run therefore gets
the Context of there. Outside of a run nothing is touched, and a thread that outlives its run leaves
it at its end.
"""

from collections.abc import Callable, Mapping
from threading import Thread
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace

from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.keys import CALL_KEY, INHERITED_KEY, TRAJECTORY_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.guard import Guard

TESTED: Final[dict[str, tuple[str, str]]] = {}
"""Of the standard library."""
_NOT_FOR_RUNS: Final = (
    *("asyncio.", "concurrent.futures.", "multiprocessing."),
    *("opentelemetry.", "starpo_trace."),
)
"""Modules whose threads serve many runs: a pool's get the Context with each piece of work."""


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch the module `threading` or `concurrent.futures.thread`."""
    if module.__name__ == "threading":
        patches.wrap(module.Thread, "start", _start_thread)
    else:
        patches.wrap(module.ThreadPoolExecutor, "submit", _submit_work)


def _submit_work(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    is_ours = otel_context.get_value(TRAJECTORY_KEY) is not None
    # Routers call the SDK below them from a pool, outside of a run too.
    if args and (is_ours or otel_context.get_value(CALL_KEY) is not None):
        with Guard("giving a piece of work its run"):
            args = (_carry_context(args[0]), *args[1:])
    return wrapped(*args, **kwargs)


def _start_thread(
    wrapped: Callable[..., Any], instance: Thread, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    if otel_context.get_value(TRAJECTORY_KEY) is not None:
        with Guard("giving a thread its run"):
            _wrap_run(instance)
    return wrapped(*args, **kwargs)


def _wrap_run(thread: Thread) -> None:
    target = getattr(thread, "_target", None) or type(thread).run
    if str(getattr(target, "__module__", "")).startswith(_NOT_FOR_RUNS) or "run" in vars(thread):
        return
    carried = _carry_context(thread.run)

    def run() -> None:
        vars(thread).pop("run", None)  # the object is as it was before its own code runs
        carried()

    vars(thread)["run"] = run


def _carry_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Function -> the same in the Context of here, wherever it is called."""
    context = otel_context.set_value(INHERITED_KEY, trace.get_current_span())

    def call(*args: Any, **kwargs: Any) -> Any:
        attachment = Attachment(context)
        try:
            return function(*args, **kwargs)
        finally:
            attachment.detach()

    return call
