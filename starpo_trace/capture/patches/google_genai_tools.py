"""Functions that the Google GenAI SDK calls by itself -> recorded tool steps."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.capture.steps import step
from starpo_trace.guard import Guard

TESTED: Final = {"google-genai": ">=3.4,<4"}

_pending: ContextVar[list[tuple[Any, str, str | None]] | None] = ContextVar(
    "starpo_google_genai_calls", default=None
)
"""Function, name and call id of the calls of the answer whose functions are being called."""


def apply(patches: PatchSet, extra_utils: ModuleType) -> None:
    """Patch the module `google.genai._extra_utils`."""
    patches.wrap(extra_utils, "get_function_response_parts", _note_calls)
    patches.wrap(extra_utils, "get_function_response_parts_async", _note_calls_async)
    patches.wrap(extra_utils, "invoke_function_from_dict_args", _record_call)
    patches.wrap(extra_utils, "invoke_function_from_dict_args_async", _record_call_async)


@contextmanager
def _expect_calls(args: tuple[Any, ...]) -> Iterator[None]:
    token = None
    with Guard("reading which functions are called"):
        if get_runtime() is not None and is_instrumentation_enabled():
            response, functions = args[:2]
            content = response.candidates[0].content if response.candidates else None
            parts = (content.parts if content is not None else None) or ()
            calls = [part.function_call for part in parts if part.function_call]
            token = _pending.set(
                [(functions.get(call.name), str(call.name), call.id) for call in calls]
            )
    try:
        yield
    finally:
        if token is not None:
            _pending.reset(token)


def _note_calls(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    with _expect_calls(args):
        return wrapped(*args, **kwargs)


async def _note_calls_async(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    with _expect_calls(args):
        return await wrapped(*args, **kwargs)


def _record_call(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    known = _take_call(args)
    if known is None:
        return wrapped(*args, **kwargs)
    name, call_id = known
    with step("tool", name, call_id=call_id, arguments=args[0]) as recorded:
        result = wrapped(*args, **kwargs)
        recorded.result(result)
    return result


async def _record_call_async(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    known = _take_call(args)
    if known is None:
        return await wrapped(*args, **kwargs)
    name, call_id = known
    with step("tool", name, call_id=call_id, arguments=args[0]) as recorded:
        result = await wrapped(*args, **kwargs)
        recorded.result(result)
    return result


def _take_call(args: tuple[Any, ...]) -> tuple[str, str | None] | None:
    """Arguments of an invocation -> name and id of the call it is for; None: not to be recorded."""
    pending = _pending.get()
    if pending is None:
        return None
    with Guard("finding the call of a function"):
        for position, (function, name, call_id) in enumerate(pending):
            if function is args[1]:
                del pending[position]
                return name, call_id
    return None
