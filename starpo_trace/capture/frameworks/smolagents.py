"""smolagents -> runs, managed agents, tools, called by the model or by its code, and variables.

The one method that runs a tool call is not told its id; the model's message, which has it, is kept
in the Context while its calls are processed. Model calls are the SDK's below.
"""

import sys
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import ContextScope, relay, wrap_scope
from starpo_trace.capture.states import record_fields

TESTED: Final = {"smolagents": ">=1.26,<1.27"}

_CALLS_KEY: Final = otel_context.create_key("starpo-smolagents-calls")


def apply(patches: PatchSet, agents: ModuleType) -> None:
    """Patch the package `smolagents`, once its module `agents` has been imported."""
    wrap_scope(patches, agents.MultiStepAgent, "run", _open_run)
    patches.wrap(agents.ToolCallingAgent, "process_tool_calls", _process_tool_calls)
    wrap_scope(patches, agents.ToolCallingAgent, "execute_tool_call", _open_call)
    wrap_scope(patches, sys.modules["smolagents.tools"].Tool, "__call__", _open_tool)
    executor = sys.modules["smolagents.local_python_executor"].LocalPythonExecutor
    wrap_scope(patches, executor, "send_variables", _watch_variables)
    wrap_scope(patches, executor, "__call__", _watch_variables)


class _RunScope:
    """An agent that runs: what leaves it once `interrupt()` was called is its cancellation."""

    def __init__(self, scope: Scope, agent: Any) -> None:
        self.context = scope.context
        self._scope = scope
        self._agent = agent

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it."""
        if error is not None and self._agent.interrupt_switch:
            error = CancelledError(*error.args)
        self._scope.finish(error, result)


def _open_run(agent: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope | None:
    scope = begin_agent(AgentRun(name=agent.name or type(agent).__name__, owner=agent))
    return None if scope is None else _RunScope(scope, agent)


def _watch_variables(executor: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope:
    """What an agent gives its code, or its code runs: the variables may be others then."""
    return ContextScope(
        otel_context.get_current(), lambda: record_fields(executor.state, "variables")
    )


def _process_tool_calls(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    message = args[0] if args else kwargs.get("chat_message")
    calls = getattr(message, "tool_calls", None)
    generator = wrapped(*args, **kwargs)
    return relay(lambda: ContextScope(otel_context.set_value(_CALLS_KEY, calls)), generator)


def _open_call(_agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    name = args[0] if args else kwargs["tool_name"]
    arguments = args[1] if len(args) > 1 else kwargs.get("arguments")
    return begin_tool(ToolRun(name=name, arguments=arguments, call_id=_find_id(name, arguments)))


def _find_id(name: str, arguments: Any) -> str | None:
    """Id of the call whose arguments, the very object, are run; none where two could be meant."""
    calls: Any = otel_context.get_value(_CALLS_KEY) or ()
    ids = [
        call.id
        for call in calls
        if call.function.name == name
        and (call.function.arguments is arguments or not (call.function.arguments or arguments))
    ]
    return ids[0] if len(ids) == 1 else None


def _open_tool(tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    """A tool that is called by the code of a `CodeAgent`; below `execute_tool_call`, the same."""
    named = {key: value for key, value in kwargs.items() if key != "sanitize_inputs_outputs"}
    arguments = {**dict(zip(tool.inputs, args, strict=False)), **named}
    return begin_tool(ToolRun(name=tool.name, arguments=arguments))
