"""Pydantic AI -> runs, agents that a tool asks, function tools, and the dependencies as a state.

Every way to run an agent goes through `Agent.iter`, and every function tool through the tool
manager, whatever its own instrumentation is set to. Model calls are the SDK's below.
"""

import asyncio
import sys
from collections.abc import Mapping
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
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import (
    ContextScope,
    FollowedScope,
    wrap_context,
    wrap_scope,
)
from starpo_trace.capture.states import record_data

TESTED: Final = {"pydantic-ai-slim": ">=2.68,<2.69 or >=1.32,<1.33"}

_CALL_KEY: Final = otel_context.create_key("starpo-pydantic-ai-call")


def apply(patches: PatchSet, agent: ModuleType) -> None:
    """Patch the package, once its module `agent` has been imported."""
    wrap_context(patches, agent.Agent, "iter", _open_run)
    manager = agent.ToolManager
    if hasattr(manager, "execute_tool_call"):
        wrap_scope(patches, manager, "execute_tool_call", _open_tool, _read_output)
        return
    # Older versions check a call's arguments and run the tool in one method, which has the call.
    wrap_scope(patches, manager, "_call_function_tool", _open_call)
    toolset = sys.modules["pydantic_ai.toolsets.combined"].CombinedToolset
    wrap_scope(patches, toolset, "call_tool", _open_checked_tool, _read_output)


class _RunScope:
    """An agent that its program may cancel: what the framework raises then is no error."""

    def __init__(self, scope: AgentScope) -> None:
        self.context = scope.context
        self._scope = scope

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End the run; one that took too long has failed, one beyond its limits was cut short."""
        exceptions: Any = sys.modules["pydantic_ai.exceptions"]
        if isinstance(error, exceptions.UsageLimitExceeded):
            self._scope.end_early("usage limit")
        cancelled = getattr(exceptions, "RunCancelled", ())
        if isinstance(error, cancelled) and not isinstance(error, TimeoutError):
            error = asyncio.CancelledError(str(error))
        self._scope.finish(error, result)


def _open_run(agent: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    conversation = kwargs.get("conversation_id")
    if conversation is None:
        conversation = getattr(kwargs.get("conversation"), "conversation_id", None)
    # Entered once for each run: an agent that asks itself, by a tool, runs twice.
    scope = begin_agent(AgentRun(name=agent.name, owner=object(), conversation_id=conversation))
    if scope is None:
        return None
    record_data(kwargs.get("deps"), "deps", scope.context)
    return _RunScope(scope)


def _open_tool(manager: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    validated = args[0] if args else kwargs["validated"]
    if not validated.args_valid or validated.deferral is not None:
        return None  # raised again there; the tool does not run
    return _begin_tool(validated.call, manager.ctx.deps)


def _open_call(_manager: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope:
    return ContextScope(otel_context.set_value(_CALL_KEY, args[0] if args else kwargs["call"]))


def _open_checked_tool(
    _toolset: Any, args: tuple[Any, ...], _kwargs: Mapping[str, Any]
) -> Scope | None:
    call = otel_context.get_value(_CALL_KEY)
    context = args[2]
    is_asked = getattr(call, "tool_call_id", None) == context.tool_call_id  # no output tool
    return _begin_tool(call, context.deps) if is_asked else None


def _begin_tool(call: Any, deps: Any) -> Scope | None:
    run = ToolRun(name=call.tool_name, arguments=call.args, call_id=call.tool_call_id)
    scope = begin_tool(run)
    return None if scope is None else FollowedScope(scope, lambda: record_data(deps, "deps"))


def _read_output(result: Any) -> str:
    """What the model is told of a result; what is for the program only is left out."""
    messages = sys.modules["pydantic_ai.messages"]
    content = result.return_value if isinstance(result, messages.ToolReturn) else result
    return messages.ToolReturnPart(tool_name="", content=content).model_response_str()
