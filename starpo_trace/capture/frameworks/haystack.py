"""Haystack -> runs of agents and of pipelines that have one, sub-agents, tools, and states.

`Tool.invoke` knows no call id; the functions that make an invocation out of a tool call do, so what
they are given in the tool's place is watched. Model calls are the SDK's below.
"""

import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.keys import TOOL_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import ContextScope, wrap_scope
from starpo_trace.capture.states import record_fields
from starpo_trace.guard import Guard

TESTED: Final = {"haystack-ai": ">=3.4,<3.5"}


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch agents and their tools, once `haystack.components.agents.agent` has been imported."""
    agent_class = module.Agent

    def open_pipeline(pipeline: Any, _args: Any, _kwargs: Any) -> Scope | None:
        if not any(isinstance(component, agent_class) for _, component in pipeline.walk()):
            return None
        name = pipeline.metadata.get("name")
        return begin_agent(AgentRun(name=str(name) if name else "pipeline", owner=pipeline))

    wrap_scope(patches, agent_class, "run", _open_agent)
    wrap_scope(patches, agent_class, "run_async", _open_agent)
    for name in ("_run_step", "_run_step_async"):
        wrap_scope(patches, agent_class, name, _watch_state)
    pipelines = sys.modules["haystack.core.pipeline.pipeline"]
    for name in ("run", "run_async", "run_async_generator"):
        wrap_scope(patches, pipelines.Pipeline, name, open_pipeline)
    tools = sys.modules["haystack.components.agents.tool_calling"]
    patches.wrap(tools, "_make_context_bound_invoke", _watch_tool)
    patches.wrap(tools, "_make_bounded_invoke_async", _watch_tool)


def _open_agent(agent: Any, _args: Any, _kwargs: Any) -> Scope | None:
    """An agent has no name: it is its component's in a pipeline, or that of the tool that it is."""
    name = getattr(agent, "__component_name__", None)
    tool = otel_context.get_value(TOOL_KEY)
    if name is None and isinstance(tool, tuple):
        name = tool[0]
    return begin_agent(AgentRun(name=name, owner=agent))


def _watch_state(agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope:
    """A step: the state before it, and after it where it changed; without what every state has."""
    run = args[0] if args else kwargs["exe_context"]

    def record() -> None:
        told = {key: run.state.data.get(key) for key in agent.state_schema if key != "messages"}
        record_fields({key: each for key, each in told.items() if each is not None}, "state")

    record()
    return ContextScope(otel_context.get_current(), record)


class _WatchedTool:
    """A tool, for one call of it."""

    def __init__(self, tool: Any, call: Any) -> None:
        self._tool = tool
        self.invoke = tool.invoke
        self.invoke_async = tool.invoke_async
        run = ToolRun(name=call.tool_name, arguments=call.arguments, call_id=call.id)
        for name in ("invoke", "invoke_async"):
            wrap_scope(PatchSet(), self, name, lambda *_: begin_tool(run), _read_result)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tool, name)


def _watch_tool(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    with Guard("watching a tool"):
        kwargs = {**kwargs, "tool": _WatchedTool(kwargs["tool"], kwargs["tool_call"])}
    return wrapped(*args, **kwargs)


def _read_result(result: Any) -> Any:
    """What the tool gave, as plain data; of an agent, its last message."""
    last = result.get("last_message") if isinstance(result, dict) else None
    text = getattr(last, "text", None)
    if text:
        return text
    utils = sys.modules["haystack.tracing.utils"]
    return utils._serializable_value(value=result, use_placeholders=False)
