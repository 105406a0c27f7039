"""OpenTelemetry's tracers -> tracers of several providers whose spans stay apart."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from starpo_trace.capture.apart import choose_parent
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.guard import handle_failure

TESTED: Final[dict[str, str]] = {}
"""Starpo itself needs the SDK, in the versions that it was tested with."""


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch the module `opentelemetry.sdk.trace`."""
    patches.wrap(module.Tracer, "start_span", _start_span)


def _start_span(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    runtime = get_runtime()
    if runtime is not None and runtime.sdk_tracer is not None:
        try:  # a Guard, without its cost on every span
            given = args[1] if len(args) > 1 else kwargs.get("context")
            context = choose_parent(runtime, instance, given)
        except Exception as error:  # noqa: BLE001 (as in `Guard`)
            handle_failure("keeping spans of other providers apart", error)
            context = None
        if context is not None:
            args, kwargs = args[:1] + args[2:], {**kwargs, "context": context}
    return wrapped(*args, **kwargs)
