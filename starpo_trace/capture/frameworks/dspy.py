"""DSPy -> runs of modules, modules inside of them, tools, and retrievals.

Its callbacks are a setting that a program replaces, and are told after the Context is made; so the
methods that run modules and tools are wrapped. `LM.forward`, which it inspects, is left alone: model
calls are those of its own client (`capture.patches.lm15`) or of LiteLLM.
"""

import re
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from starpo_trace.capture.agents import (
    AgentRun,
    AgentScope,
    Scope,
    ToolRun,
    begin_agent,
    begin_tool,
)
from starpo_trace.capture.episode import current_trajectory
from starpo_trace.capture.keys import AGENT_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import ContextScope, wrap_scope
from starpo_trace.guard import Guard

TESTED: Final = {"dspy": ">=3.4,<3.5"}

_CALLS_KEY: Final = otel_context.create_key("starpo-dspy-calls")
"""Calls of one answer whose tools have not run yet."""
_MADE_UP_ID: Final = re.compile(r"call_\d+_\d+")
"""What `ReActV2` calls a tool call that the model wrote without an id."""
_LIMITS: Final = {"max_iters": "max iterations", "context_window_exceeded": "context window"}


def apply(patches: PatchSet, _dspy: ModuleType) -> None:
    """Patch the package `dspy`, once it has been imported."""
    module = sys.modules["dspy.primitives.module"].Module
    tool = sys.modules["dspy.adapters.types.tool"].Tool
    for name in ("__call__", "acall"):
        wrap_scope(patches, module, name, _open_module)
        wrap_scope(patches, tool, name, _open_tool)
    agent = sys.modules["dspy.predict.react_v2"].ReActV2
    for name in ("_execute_tool_calls", "_aexecute_tool_calls"):
        wrap_scope(patches, agent, name, _open_calls)
    for name in ("_forced_submit", "_aforced_submit"):
        patches.wrap(agent, name, _note_limit)
    retrievers: Any = sys.modules["dspy.retrievers"]
    for retriever in (retrievers.Retrieve, retrievers.Embeddings):
        wrap_scope(patches, retriever, "__call__", _open_retriever, _read_found)


class _Running:
    """One run of a module; a module may run inside of itself."""

    def __init__(self, module: Any, given: Mapping[str, Any]) -> None:
        self.max_iters = given.get("max_iters", getattr(module, "max_iters", None))
        self.scope: AgentScope | None = None

    def end_early(self, reason: str) -> None:
        """The agent stopped before its end."""
        if self.scope is not None:
            self.scope.end_early(reason)


class _RunScope:
    """A module that runs: what an agent gave tells whether its limit ended it."""

    def __init__(self, scope: Scope, running: _Running) -> None:
        self.context = scope.context
        self._scope = scope
        self._running = running

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it."""
        steps = getattr(result, "trajectory", None)
        limit = self._running.max_iters
        if isinstance(steps, dict) and limit:
            last = steps.get(f"tool_name_{limit - 1}")
            if last is not None and last != "finish":
                self._running.end_early(_LIMITS["max_iters"])
        self._scope.finish(error, result)


def _open_module(module: Any, _args: Any, kwargs: Mapping[str, Any]) -> Scope | None:
    """The outermost module is the run; inside of it one that only asks a model is no agent."""
    is_own = type(module).__module__.partition(".")[0] == "dspy"
    if is_own and not hasattr(module, "tools") and current_trajectory() is not None:
        return None
    running = _Running(module, kwargs)
    scope = running.scope = begin_agent(AgentRun(name=type(module).__name__, owner=running))
    return None if scope is None else _RunScope(scope, running)


def _note_limit(
    wrapped: Callable[..., Any], _agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Where an agent is made to answer; not because it failed to call a tool."""
    with Guard("noting an agent's limit"):
        reason = args[2] if len(args) > 2 else kwargs["break_reason"]
        running = otel_context.get_value(AGENT_KEY)
        if reason in _LIMITS and isinstance(running, _Running):
            running.end_early(_LIMITS[reason])
    return wrapped(*args, **kwargs)


def _open_calls(_agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope:
    calls = (args[0] if args else kwargs["tool_calls"]).tool_calls
    return ContextScope(otel_context.set_value(_CALLS_KEY, list(calls)))


def _open_tool(tool: Any, _args: Any, kwargs: Mapping[str, Any]) -> Scope | None:
    call_id = _take_id(str(tool.name), kwargs)
    return begin_tool(ToolRun(name=str(tool.name), arguments=dict(kwargs), call_id=call_id))


def _take_id(name: str, given: Mapping[str, Any]) -> str | None:
    """Id of the call that a tool runs for: they run one after another."""
    calls: Any = otel_context.get_value(_CALLS_KEY) or ()
    for index, call in enumerate(calls):
        if call.name == name and (call.args or {}) == given:
            del calls[index]
            is_made_up = call.id is None or _MADE_UP_ID.fullmatch(call.id)
            return None if is_made_up else str(call.id)
    return None


def _open_retriever(
    retriever: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Scope | None:
    query = args[0] if args else kwargs.get("query")
    return begin_tool(ToolRun(name=type(retriever).__name__, arguments=query, kind="retriever"))


def _read_found(prediction: Any) -> Any:
    return getattr(prediction, "passages", prediction)
