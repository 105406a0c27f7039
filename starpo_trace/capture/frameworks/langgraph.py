"""LangChain and LangGraph -> runs, graphs inside of graphs, tools, and states between nodes.

Their callbacks are told of a tool but cannot make a Context current for what it does, so the methods
that run graphs and tools are wrapped. Model calls are those of the SDK below.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from starpo_trace.capture.agents import (
    AgentRun,
    AgentScope,
    Scope,
    ToolRun,
    begin_agent,
    begin_tool,
)
from starpo_trace.capture.keys import AGENT_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import wrap_scope
from starpo_trace.capture.steps import state
from starpo_trace.guard import Guard

TESTED: Final = {
    "langgraph": ">=1.2,<1.3 or >=1.0,<1.1",
    "langchain-core": ">=1.7,<1.9 or >=1.1,<1.2",
}
_NOT_IN_STATES: Final = {"response_metadata", "usage_metadata"}
"""Of a message: a model call's span has them."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Running:
    """One run of a graph; a graph may run inside of itself."""

    name: str
    scope: AgentScope | None = None


class _GraphScope:
    """A scope that a graph may leave for a while: an interrupt or a command is no error."""

    def __init__(self, scope: Scope, *, is_graph: bool) -> None:
        self.context: Context = scope.context
        self._scope = scope
        self._is_graph = is_graph

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record how it ended."""
        errors = sys.modules.get("langgraph.errors")
        if errors is not None and isinstance(error, errors.GraphBubbleUp):
            error = None
        elif errors and self._is_graph and isinstance(error, errors.GraphRecursionError):
            _end_early(self.context, "recursion limit")
        self._scope.finish(error, result)


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch one of the modules that have a graph's, a tool's or a retriever's class."""
    if module.__name__ == "langchain_core.tools.base":
        wrap_scope(patches, module.BaseTool, "run", _open_tool, _read_output)
        wrap_scope(patches, module.BaseTool, "arun", _open_tool, _read_output)
    elif module.__name__ == "langchain_core.retrievers":
        wrap_scope(patches, module.BaseRetriever, "invoke", _open_retriever, _read_output)
        wrap_scope(patches, module.BaseRetriever, "ainvoke", _open_retriever, _read_output)
    else:
        wrap_scope(patches, module.Pregel, "stream", _open_graph)
        wrap_scope(patches, module.Pregel, "astream", _open_graph)
        loop = sys.modules["langgraph.pregel._loop"].PregelLoop
        patches.wrap(loop, "_first", _record_first_state)
        patches.wrap(loop, "after_tick", _record_next_state)
        patches.wrap(module.SyncPregelLoop, "__exit__", _record_interrupt)
        patches.wrap(module.AsyncPregelLoop, "__aexit__", _record_interrupt)


def _open_graph(graph: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    given = args[1] if len(args) > 1 else kwargs.get("config")
    thread_id = None
    for config in (graph.config, given):
        thread_id = ((config or {}).get("configurable") or {}).get("thread_id", thread_id)
    running = _Running(name=graph.get_name())
    conversation = None if thread_id is None else str(thread_id)
    scope = begin_agent(AgentRun(name=running.name, owner=running, conversation_id=conversation))
    running.scope = scope
    return None if scope is None else _GraphScope(scope, is_graph=True)


def _end_early(context: Context, reason: str) -> None:
    """The graph stopped before its end."""
    running = otel_context.get_value(AGENT_KEY, context)
    if isinstance(running, _Running) and running.scope is not None:
        running.scope.end_early(reason)


def _record_first_state(
    wrapped: Callable[..., Any], loop: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Where a graph goes on from; an input becomes its state with the first tick."""
    is_resumed = loop.input is None or type(loop.input).__name__ == "Command"
    result = wrapped(*args, **kwargs)
    if is_resumed:
        _record_state(loop)
    return result


def _record_next_state(
    wrapped: Callable[..., Any], loop: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    result = wrapped(*args, **kwargs)
    _record_state(loop)
    return result


def _record_state(loop: Any) -> None:
    """What nodes see that run next, as the graph gives it out."""
    with Guard("recording a graph's state"):
        running = otel_context.get_value(AGENT_KEY)
        if isinstance(running, _Running):
            read = sys.modules["langgraph.pregel._io"].read_channels
            state(_write_value(read(loop.channels, loop.output_keys)), running.name)


def _record_interrupt(
    wrapped: Callable[..., Any], loop: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Where an interrupt goes no further, the graph ends for now."""
    with Guard("recording an interrupt"):
        interrupt = sys.modules["langgraph.errors"].GraphInterrupt
        if isinstance(args[1], interrupt) and not loop.is_nested:
            _end_early(otel_context.get_current(), "interrupt")
    return wrapped(*args, **kwargs)


def _write_value(value: Any) -> Any:
    """Value of a state -> what JSON can hold.

    Messages are numbered, not listed: a merge patch would write the whole list again.
    """
    if isinstance(value, Mapping):
        return {key: _write_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        told = [_write_value(each) for each in value]
        is_numbered = any(_is_message(each) for each in value)
        return {str(index): each for index, each in enumerate(told)} if is_numbered else told
    if _is_message(value):
        return _write_message(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _write_value(getattr(value, field.name)) for field in fields(value)}
    dump = getattr(value, "model_dump", None)  # Pydantic's; a class has it too
    return value if dump is None or isinstance(value, type) else dump()


def _write_message(message: Any) -> dict[str, Any]:
    """What a model is told of a message; without nulls, which a merge patch cannot hold."""
    told = {"type": message.type}
    told |= message.model_dump(exclude=_NOT_IN_STATES, exclude_defaults=True)
    extra = told.pop("additional_kwargs", {})
    extra = {key: each for key, each in extra.items() if each is not None}
    return told | ({"additional_kwargs": extra} if extra else {})


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
    return None if scope is None else _GraphScope(scope, is_graph=False)


def _open_retriever(
    retriever: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Scope | None:
    query = args[0] if args else kwargs["input"]
    return begin_tool(ToolRun(name=retriever.get_name(), arguments=query, kind="retriever"))


def _read_output(result: Any) -> Any:
    return result.content if _is_message(result) else _write_value(result)
