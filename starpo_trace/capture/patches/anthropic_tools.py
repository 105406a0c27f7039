"""Tools that Anthropic's tool runner runs -> recorded tool steps."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, Final

from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import StatusCode

from starpo_trace import semconv
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.own_spans import writes_where_we_write
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.capture.steps import Step, step
from starpo_trace.guard import Guard

TESTED: Final = {"anthropic": ">=2.12,<3"}


def apply(patches: PatchSet, beta_runner: ModuleType) -> None:
    """Patch the module `anthropic.lib.tools._beta_runner`."""

    def tool_use_span(
        wrapped: Callable[..., Any], runner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if get_runtime() is None or not is_instrumentation_enabled():
            return wrapped(*args, **kwargs)
        with Guard("beginning a tool run"):
            client, _, tool_use = args
            if writes_where_we_write(client._tracer):  # one span of a run is enough
                return _record_run(_as_context(beta_runner.ToolRun()), tool_use)
            return _record_run(wrapped(*args, **kwargs), tool_use)
        return wrapped(*args, **kwargs)

    patches.wrap(beta_runner.BaseToolRunner, "_tool_use_span", tool_use_span)


@contextmanager
def _as_context(run: Any) -> Iterator[Any]:
    yield run


@contextmanager
def _record_run(theirs: AbstractContextManager[Any], tool_use: Any) -> Iterator[Any]:
    with (
        step("tool", tool_use.name, call_id=tool_use.id, arguments=tool_use.input) as recorded,
        theirs as run,
    ):
        try:
            yield run
        finally:
            _record_result(recorded, run.result)


def _record_result(recorded: Step, result: Any) -> None:
    with Guard("recording a tool's result"):
        if result is None:
            return
        recorded.result(result.get("content"))
        if result.get("is_error"):
            recorded.span.set_status(StatusCode.ERROR)
            recorded.span.set_attribute(semconv.ERROR_TYPE, "tool_error")
