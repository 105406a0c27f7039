"""Anthropic SDK -> recorded messages, on all the platforms it speaks to.

Since version 2 the SDK writes spans of its own. While Starpo records a call into the same tracer
provider, the SDK's span of that call is left out; the trace context that the SDK sends along is
then that of Starpo's span.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from starpo_trace.capture.patches.anthropic_events import MessageEvents
from starpo_trace.capture.patches.anthropic_messages import (
    read_messages_request,
    read_messages_response,
)
from starpo_trace.capture.patches.base import PatchSet, make_async_recorder, make_recorder
from starpo_trace.capture.patches.own_spans import writes_where_we_write
from starpo_trace.capture.patches.stainless import Endpoint, make_steps
from starpo_trace.guard import Guard

TESTED: Final = {"anthropic": ">=0.125,<3"}

_MESSAGES: Final = Endpoint(
    read_request=read_messages_request,
    read_response=read_messages_response,
    make_accumulator=MessageEvents,
    answer_field="content",
)


def apply(patches: PatchSet, base_client: ModuleType) -> None:
    """Patch the module `anthropic._base_client`."""
    # `_request` gets the body as it is sent; `request` gets what the program gave, which may hold
    # iterators that can be read only once.
    method = "_request" if hasattr(base_client.SyncAPIClient, "_request") else "request"
    begin, end = make_steps(_find_endpoint, "anthropic")
    patches.wrap(base_client.SyncAPIClient, method, make_recorder(begin, end))
    patches.wrap(base_client.AsyncAPIClient, method, make_async_recorder(begin, end))
    if hasattr(base_client, "start_api_call_span"):
        patches.wrap(base_client, "start_api_call_span", _start_api_call_span)


def _find_endpoint(method: str, path: str) -> Endpoint | None:
    if method == "post" and path.partition("?")[0].endswith("/v1/messages"):
        return _MESSAGES
    return None


def _start_api_call_span(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    with Guard("leaving out an SDK's own span"):
        tracer, _, options = args[:3]
        if (
            options.span_name
            and _find_endpoint(options.method.lower(), options.url) is not None
            and writes_where_we_write(tracer)
        ):
            return _StandIn()
    return wrapped(*args, **kwargs)


class _StandIn(NonRecordingSpan):
    """In place of the SDK's span: is nothing itself, and names the current span as the context."""

    def __init__(self) -> None:
        super().__init__(trace.get_current_span().get_span_context())

    def get_span_context(self) -> SpanContext:
        current = trace.get_current_span()
        return super().get_span_context() if current is self else current.get_span_context()
