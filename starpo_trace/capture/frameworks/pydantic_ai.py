"""Pydantic AI -> runs, agents that a tool asks, and function tools.

Every way to run an agent goes through `Agent.iter`, and every function tool through the tool
manager, whatever its own instrumentation is set to. Model calls are the SDK's below.
"""

import asyncio
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import wrap_context, wrap_scope

TESTED: Final = {"pydantic-ai-slim": ">=2.68,<2.69"}


def apply(patches: PatchSet, agent: ModuleType) -> None:
    """Patch the package, once its module `agent` has been imported."""
    wrap_context(patches, agent.Agent, "iter", _open_run)
    wrap_scope(patches, agent.ToolManager, "execute_tool_call", _open_tool, _read_output)


class _CancellableScope:
    """An agent that its program may cancel: what the framework raises then is no error."""

    def __init__(self, scope: Scope) -> None:
        self.context = scope.context
        self._scope = scope

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End the run; one that took too long has failed."""
        cancelled = sys.modules["pydantic_ai.exceptions"].RunCancelled
        if isinstance(error, cancelled) and not isinstance(error, TimeoutError):
            error = asyncio.CancelledError(str(error))
        self._scope.finish(error, result)


def _open_run(agent: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    conversation = kwargs.get("conversation_id")
    if conversation is None:
        conversation = getattr(kwargs.get("conversation"), "conversation_id", None)
    # Entered once for each run: an agent that asks itself, by a tool, runs twice.
    scope = begin_agent(AgentRun(name=agent.name, owner=object(), conversation_id=conversation))
    return None if scope is None else _CancellableScope(scope)


def _open_tool(_manager: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    validated = args[0] if args else kwargs["validated"]
    if not validated.args_valid or validated.deferral is not None:
        return None  # raised again there; the tool does not run
    call = validated.call
    return begin_tool(ToolRun(name=call.tool_name, arguments=call.args, call_id=call.tool_call_id))


def _read_output(result: Any) -> str:
    """What the model is told of a result; what is for the program only is left out."""
    messages = sys.modules["pydantic_ai.messages"]
    content = result.return_value if isinstance(result, messages.ToolReturn) else result
    return messages.ToolReturnPart(tool_name="", content=content).model_response_str()
