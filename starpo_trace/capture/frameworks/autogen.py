"""AutoGen -> runs of agents, tools, and what memories gave; teams are in `autogen_teams`.

It has no callbacks, and its own spans hold no content; so what runs agents and tools is wrapped.
Model calls are the SDK's below.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context, create_key

from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.episode import current_trajectory
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.own_spans import writes_where_we_write
from starpo_trace.capture.patches.scopes import wrap_scope
from starpo_trace.guard import Guard

TESTED: Final = {"autogen-agentchat": ">=0.7.5,<0.8", "autogen-core": ">=0.7.5,<0.8"}

_CALL_KEY: Final = create_key("starpo-autogen-call")
_RUNNERS: Final = {"run", "run_stream", "on_messages", "on_messages_stream"}


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch the package that has tools, or the one that has agents, once it has been imported."""
    if module.__name__ == "autogen_core.tools":
        patches.wrap(sys.modules[module.BaseTool.__module__], "trace_tool_span", leave_out)
        wrap_scope(patches, module.BaseTool, "run_json", _open_tool)
        wrap_scope(patches, module.BaseStreamTool, "run_json_stream", _open_tool)
        return
    agents = sys.modules[module.BaseChatAgent.__module__]
    patches.wrap(agents, "trace_invoke_agent_span", leave_out)
    assistant = module.AssistantAgent
    wrap_scope(patches, assistant, "_execute_tool_call", _open_call)
    wrap_scope(
        patches, assistant, "_update_model_context_with_memory", _open_memory, _read_memories
    )
    for agent in list(vars(module).values()):
        if isinstance(agent, type) and issubclass(agent, module.BaseChatAgent):
            for name in _RUNNERS & vars(agent).keys() - agent.__abstractmethods__:
                wrap_scope(patches, agent, name, open_agent)


class _CallScope:
    """A tool call of an assistant, whose workbench makes a text of a tool's exception."""

    def __init__(self, scope: Scope, call_id: str) -> None:
        self.context: Context = otel_context.set_value(_CALL_KEY, self, scope.context)
        self.call_id = call_id
        self.error: BaseException | None = None
        self._scope = scope

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it; `result` is the call and what the model is told."""
        if error is not None or result is None:
            self._scope.finish(error)
            return
        told = result[1]
        if told.is_error:
            error = self.error or RuntimeError(told.content)
        self._scope.finish(error, told.content)


class _ToolOfCall:
    """The tool that a tool call runs: its exception is the call's."""

    def __init__(self, call: _CallScope) -> None:
        self.context = otel_context.get_current()
        self._call = call

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Note how it failed."""
        del result
        self._call.error = error


class _ToolScope:
    """A tool that something else than an assistant runs."""

    def __init__(self, scope: Scope, tool: Any) -> None:
        self.context = scope.context
        self._scope = scope
        self._tool = tool

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it, with the text of its result."""
        told = None
        with Guard("reading a tool's result"):
            told = None if result is None else self._tool.return_value_as_string(result)
        self._scope.finish(error, told)


def leave_out(
    wrapped: Callable[..., Any], _module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """AutoGen's span of an agent or tool, where ours stands in the same place."""
    with Guard("leaving out a span of AutoGen's"):
        tracer = trace.get_tracer("autogen-core")
        if current_trajectory() is not None and writes_where_we_write(tracer):
            return nullcontext(trace.get_current_span())
    return wrapped(*args, **kwargs)


def open_agent(agent: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope | None:
    """An agent that is run, or given messages."""
    return begin_agent(AgentRun(name=agent.name, owner=agent))


def _open_call(_agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    call = args[0] if args else kwargs["tool_call"]
    scope = begin_tool(ToolRun(name=call.name, arguments=call.arguments, call_id=call.id))
    return None if scope is None else _CallScope(scope, call.id)


def _open_tool(tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    call_id = args[2] if len(args) > 2 else kwargs.get("call_id")
    call = otel_context.get_value(_CALL_KEY)
    if isinstance(call, _CallScope) and call.call_id == call_id:
        return _ToolOfCall(call)
    given = args[0] if args else kwargs["args"]
    scope = begin_tool(ToolRun(name=tool.name, arguments=given, call_id=call_id))
    return None if scope is None else _ToolScope(scope, tool)


def _open_memory(_agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    memories = args[0] if args else kwargs["memory"]
    return begin_tool(ToolRun(name="memory", kind="retriever")) if memories else None


def _read_memories(events: Any) -> list[Any]:
    return [found.content for event in events for found in event.content]
