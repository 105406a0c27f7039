"""MCP -> tools that a program calls, and one run on both sides of a connection.

A client's tool call is a step, unless it is how a step's tool is reached. Requests carry the W3C
trace context and baggage in `_meta`, whatever the transport, and what a server does for one is
recorded as a part of the client's run. Version 2 sends both itself, but reads no baggage; and its
own spans may go where ours do not, so they are no parents of ours then.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from starpo_trace import semconv
from starpo_trace.capture.agents import Scope, ToolRun, begin_tool
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import Trajectory, current_trajectory
from starpo_trace.capture.keys import AGENT_KEY, CALL_KEY, TOOL_KEY, TRAJECTORY_KEY
from starpo_trace.capture.parts import forget_identity, receive_identity
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.own_spans import writes_where_we_write
from starpo_trace.capture.patches.scopes import wrap_scope
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.guard import Guard

TESTED: Final = {"mcp": ">=2.1,<2.4 or >=1.30,<1.31"}

_CARRIED: Final = ("traceparent", "tracestate", "baggage")
_PROPAGATORS: Final = (TraceContextTextMapPropagator(), W3CBaggagePropagator())


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch a module of `mcp`, once it has been imported."""
    name = module.__name__
    if name == "mcp.client.session":
        wrap_scope(patches, module.ClientSession, "call_tool", _open_tool)
        is_old = hasattr(module.ClientSession, "_received_request")
        answer = "_received_request" if is_old else "_on_request"  # what a server asks a client
        patches.wrap(module.ClientSession, answer, _answer_in_run)
    elif name == "mcp.client.client":
        wrap_scope(patches, module.Client, "call_tool", _open_tool)
    elif name == "mcp.shared.session":
        patches.wrap(module.BaseSession, "send_request", _send)
    elif name == "mcp.shared.jsonrpc_dispatcher":
        patches.wrap(module, "inject_trace_context", _inject)
        patches.wrap(module, "otel_span", _begin_own_span)
    elif name == "mcp.server._otel":
        patches.wrap(module, "otel_span", _begin_own_span)
    elif name == "mcp.server.runner":
        patches.wrap(module.ServerRunner, "_on_request", _answer_in_run)
    elif hasattr(module.Server, "_handle_request"):  # version 1
        patches.wrap(module.Server, "_handle_request", _answer_in_run)


class _ToolScope:
    """A tool of a server: whether it failed is in its result."""

    def __init__(self, scope: Scope) -> None:
        self.context = scope.context
        self._scope = scope

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record what it gave; `result` is a `CallToolResult`."""
        told = _read_content(result)
        is_error = getattr(result, "is_error", None) or getattr(result, "isError", None)
        if is_error:
            error = RuntimeError(told)
        self._scope.finish(error, told)


def _open_tool(_client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    name = args[0] if args else kwargs["name"]
    if _is_open(name):
        return None
    arguments = args[1] if len(args) > 1 else kwargs.get("arguments")
    scope = begin_tool(ToolRun(name=name, arguments=arguments))
    return None if scope is None else _ToolScope(scope)


def _is_open(name: str) -> bool:
    """Whether the call is how a tool in progress is reached; a framework may put more before a name."""
    open_tool = otel_context.get_value(TOOL_KEY)
    outer = str(open_tool[0]) if isinstance(open_tool, tuple) else ""
    if outer.endswith(name):
        before = outer.removesuffix(name)[-1:]
        return not before.isalnum()
    attributes = getattr(trace.get_current_span(), "attributes", None) or {}
    return attributes.get(semconv.TOOL_NAME) == name  # a `step()` of the program's


def _read_content(result: Any) -> Any:
    """What of a result the model is told."""
    content = getattr(result, "content", None)
    if content is None:
        dump = getattr(result, "model_dump", None)
        return None if dump is None else dump(mode="json", by_alias=True, exclude_none=True)
    if len(content) == 1 and content[0].type == "text":
        return content[0].text
    return [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in content]


def _send(
    wrapped: Callable[..., Any], _session: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Version 1: a request, sent with the run that it is from."""
    with Guard("sending a run's identity"):
        request, *more = args or (kwargs["request"],)
        if get_runtime() is not None and current_trajectory() is not None:
            more_kwargs = {name: value for name, value in kwargs.items() if name != "request"}
            args, kwargs = (_add_meta(request), *more), more_kwargs
    return wrapped(*args, **kwargs)


def _add_meta(request: Any) -> Any:
    """Request -> a copy of it that carries the current Context."""
    params = getattr(request.root, "params", None)
    if params is None:
        return request
    told = {} if params.meta is None else params.meta.model_dump(exclude_none=True)
    meta = sys.modules["mcp.types"].RequestParams.Meta(**told, **_write_context())
    root = request.root.model_copy(update={"params": params.model_copy(update={"meta": meta})})
    return request.model_copy(update={"root": root})


def _inject(
    wrapped: Callable[..., Any], _module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Version 2 does so by the propagators that the program has set."""
    result = wrapped(*args, **kwargs)
    with Guard("sending a run's identity"):
        if get_runtime() is not None and current_trajectory() is not None:
            meta = args[0] if args else kwargs["meta"]
            meta.update(_write_context())
    return result


def _write_context() -> dict[str, str]:
    carrier: dict[str, str] = {}
    for propagator in _PROPAGATORS:
        propagator.inject(carrier)
    return carrier


def _begin_own_span(
    wrapped: Callable[..., Any], _module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Version 2's own span of a request: current only if it goes where ours go."""
    manager = wrapped(*args, **kwargs)
    with Guard("beginning a span of mcp's"):
        tracer = sys.modules["mcp.shared._otel"]._tracer
        if current_trajectory() is not None and not writes_where_we_write(tracer):
            return _stay(manager, otel_context.get_current())
    return manager


@contextmanager
def _stay(manager: AbstractContextManager[Any], context: Context) -> Iterator[Any]:
    with manager as span:
        attachment = Attachment(context)
        try:
            yield span
        finally:
            attachment.detach()


async def _answer_in_run(
    wrapped: Callable[..., Any], _peer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What is done for a request belongs to the run that it came from."""
    context = None
    with Guard("reading a run's identity"):
        if get_runtime() is not None:
            context = _read_context([*args, *kwargs.values()])
    if context is None:
        return await wrapped(*args, **kwargs)
    attachment = Attachment(context)
    try:
        return await wrapped(*args, **kwargs)
    finally:
        attachment.detach()


def _read_context(arguments: list[Any]) -> Context | None:
    """Arguments of a handler -> Context of the run that its request names."""
    meta: Any = None
    if hasattr(arguments[0], "request_meta"):  # version 1
        meta = getattr(arguments[0].request_meta, "model_extra", None)
    else:  # version 2: a context, the method, its parameters
        params = next((each for each in arguments if isinstance(each, Mapping)), {})
        meta = params.get("_meta")
    if not isinstance(meta, Mapping):
        return None
    carrier = {name: meta[name] for name in _CARRIED if isinstance(meta.get(name), str)}
    context = forget_identity(otel_context.get_current())
    for propagator in _PROPAGATORS:
        context = propagator.extract(carrier, context)
    arrival = receive_identity(context)
    if arrival is None:
        return None
    for key in (AGENT_KEY, TOOL_KEY, CALL_KEY):  # of a client in this very process
        context = otel_context.set_value(key, None, context)
    around = otel_context.get_value(TRAJECTORY_KEY, context)
    if isinstance(around, Trajectory) and around.id != arrival.trajectory_id:
        context = otel_context.set_value(TRAJECTORY_KEY, None, context)
    return context
