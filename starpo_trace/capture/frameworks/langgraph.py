"""LangChain and LangGraph -> runs, graphs inside of graphs, tools, and states between nodes.

Their callbacks are told of a tool but cannot make a Context current for what it does, so the methods
that run graphs and tools are wrapped. Model calls are those of the SDK below.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.keys import AGENT_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import wrap_scope
from starpo_trace.capture.steps import state
from starpo_trace.guard import Guard

TESTED: Final = {"langgraph": ">=1.2,<1.3", "langchain-core": ">=1.7,<1.8"}
_NOT_IN_STATES: Final = {"response_metadata", "usage_metadata"}
"""Of a message: a model call's span has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """One run of a graph; a graph may run inside of itself."""

    name: str


class _GraphScope:
    """A scope that may be left for a while: an interrupt or a command to the parent is no error."""

    def __init__(self, scope: Scope) -> None:
        self.context: Context = scope.context
        self._scope = scope

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record how it ended."""
        errors = sys.modules.get("langgraph.errors")
        if errors is not None and isinstance(error, errors.GraphBubbleUp):
            error = None
        self._scope.finish(error, result)


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch the module `langgraph.pregel.main` or `langchain_core.tools.base`."""
    if module.__name__ == "langchain_core.tools.base":
        wrap_scope(patches, module.BaseTool, "run", _open_tool, _read_output)
        wrap_scope(patches, module.BaseTool, "arun", _open_tool, _read_output)
        return
    wrap_scope(patches, module.Pregel, "stream", _open_graph)
    wrap_scope(patches, module.Pregel, "astream", _open_graph)
    loop = sys.modules["langgraph.pregel._loop"].PregelLoop
    patches.wrap(loop, "_first", _record_state)
    patches.wrap(loop, "after_tick", _record_state)


def _open_graph(graph: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    given = args[1] if len(args) > 1 else kwargs.get("config")
    thread_id = None
    for config in (graph.config, given):
        thread_id = ((config or {}).get("configurable") or {}).get("thread_id", thread_id)
    name = graph.get_name()
    scope = begin_agent(
        AgentRun(
            name=name,
            owner=_Running(name=name),
            conversation_id=None if thread_id is None else str(thread_id),
        )
    )
    return None if scope is None else _GraphScope(scope)


def _record_state(
    wrapped: Callable[..., Any], loop: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Before the first nodes and after each that ran: the graph's state, as it gives it out."""
    result = wrapped(*args, **kwargs)
    with Guard("recording a graph's state"):
        running = otel_context.get_value(AGENT_KEY)
        if isinstance(running, _Running):
            read = sys.modules["langgraph.pregel._io"].read_channels
            state(_write_value(read(loop.channels, loop.output_keys)), running.name)
    return result


def _write_value(value: Any) -> Any:
    """Value of a state -> what JSON can hold.

    Messages are numbered, not listed: a merge patch would write the whole list again.
    """
    if isinstance(value, Mapping):
        return {key: _write_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        if any(_is_message(each) for each in value):
            return {str(index): _write_value(each) for index, each in enumerate(value)}
        return [_write_value(each) for each in value]
    if _is_message(value):
        told = value.model_dump(exclude=_NOT_IN_STATES, exclude_defaults=True)
        return {"type": value.type, **told}
    if hasattr(value, "model_dump"):
        return value.model_dump()
    return value


def _is_message(value: Any) -> bool:
    messages = sys.modules.get("langchain_core.messages")
    return messages is not None and isinstance(value, messages.BaseMessage)


def _open_tool(tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    arguments = args[0] if args else kwargs["tool_input"]
    if isinstance(arguments, dict):  # without the state, the store and what else is not the model's
        arguments = tool._filter_injected_args(arguments)
    scope = begin_tool(
        ToolRun(name=tool.name, arguments=arguments, call_id=kwargs.get("tool_call_id"))
    )
    return None if scope is None else _GraphScope(scope)


def _read_output(result: Any) -> Any:
    return result.content if _is_message(result) else _write_value(result)
