"""OpenAI Agents SDK -> runs, agents as tools, and function tools.

Its tracing processors see neither a tool call's id nor, where tracing is disabled, anything; so
the runner and the one function that runs a tool are wrapped. Model calls are the SDK's below.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import end_scope, find_homes, wrap_scope
from starpo_trace.guard import Guard

TESTED: Final = {"openai-agents": ">=0.24,<0.25"}


def apply(patches: PatchSet, run: ModuleType) -> None:
    """Patch the package `agents`, once its module `run` has been imported; not a program's own."""
    tools = sys.modules.get("agents.tool")
    if tools is None or not hasattr(tools, "FunctionTool"):
        return
    wrap_scope(patches, run.AgentRunner, "run", _open_run)
    patches.wrap(run.AgentRunner, "run_streamed", _run_streamed)
    name = "_invoke_function_tool_with_metadata"
    homes = find_homes(getattr(tools, name), name, tools)
    wrap_scope(patches, homes, name, _open_tool, _read_output)


def _open_run(_runner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    agent = args[0] if args else kwargs["starting_agent"]
    session = kwargs.get("session")
    conversation = kwargs.get("conversation_id") or getattr(session, "session_id", None)
    return begin_agent(
        AgentRun(name=getattr(agent, "name", None), owner=agent, conversation_id=conversation)
    )


def _run_streamed(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Its task begins here and ends on its own; the run ends with it."""
    scope = None
    with Guard("beginning an agent"):
        scope = _open_run(instance, args, kwargs)
    if scope is None:
        return wrapped(*args, **kwargs)
    attachment = Attachment(scope.context)
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        end_scope(scope, error)
        raise
    finally:
        attachment.detach()
    with Guard("watching an agent that streams"):
        result.run_loop_task.add_done_callback(lambda task: end_scope(scope, _error_of(task)))
    return result


def _error_of(task: "asyncio.Task[Any]") -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _open_tool(_instance: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    return begin_tool(
        ToolRun(
            name=kwargs["function_tool"].name,
            arguments=kwargs["arguments"],
            call_id=getattr(kwargs["context"], "tool_call_id", None),
        )
    )


def _read_output(result: Any) -> Any:
    return result.output
