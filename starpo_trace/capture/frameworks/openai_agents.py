"""OpenAI Agents SDK -> runs, agents as tools, handoffs, function tools, and the run's context.

Its tracing processors see neither a tool call's id nor, where tracing is disabled, anything; so
the runner, its turns and the functions that run a tool or a handoff are wrapped. A handed-off agent
has the turns that follow: its scope is open from its first to the next handoff or the run's end.
Model calls are the SDK's below.
"""

import asyncio
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
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.keys import AGENT_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import (
    ContextScope,
    FollowedScope,
    end_scope,
    find_homes,
    wrap_scope,
)
from starpo_trace.capture.states import record_data
from starpo_trace.guard import Guard

TESTED: Final = {"openai-agents": ">=0.24,<0.25 or >=0.6.9,<0.7"}


def apply(patches: PatchSet, run: ModuleType) -> None:
    """Patch the package `agents`, once its module `run` has been imported; not a program's own."""
    tools = sys.modules.get("agents.tool")
    if tools is None or not hasattr(tools, "FunctionTool"):
        return
    wrap_scope(patches, run.AgentRunner, "run", _open_run)
    patches.wrap(run.AgentRunner, "run_streamed", _run_streamed)
    if "agents._run_impl" in sys.modules:  # older versions
        steps = sys.modules["agents._run_impl"].RunImpl
        wrap_scope(patches, run.AgentRunner, "_run_single_turn", _open_turn)
        wrap_scope(patches, run.AgentRunner, "_run_single_turn_streamed", _open_turn)
        wrap_scope(patches, steps, "execute_handoffs", _open_handoff)
        wrap_scope(patches, steps, "_execute_tool_with_hooks", _open_tool, _read_output)
        return
    metadata = "_invoke_function_tool_with_metadata"
    run_tool = metadata if hasattr(tools, metadata) else "invoke_function_tool"
    for module, name, open_scope, read in (
        ("run_internal.run_loop", "run_single_turn", _open_turn, None),
        ("run_internal.run_loop", "run_single_turn_streamed", _open_turn, None),
        ("run_internal.turn_resolution", "execute_handoffs", _open_handoff, None),
        ("tool", run_tool, _open_tool, _read_output),
    ):
        home: Any = sys.modules.get(f"agents.{module}")
        homes = find_homes(getattr(home, name), name, home)
        wrap_scope(patches, homes, name, open_scope, read)


class _Run:
    """A run in progress: whose turn it is, in a scope of its own once there was a handoff."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self.scope: Scope | None = None

    def give_turn(self, agent: Any) -> None:
        """Begin the scope of a handed-off agent."""
        if agent is self.agent:
            return
        self.end_turns(None)
        self.agent = agent
        self.scope = begin_agent(AgentRun(name=agent.name, owner=object()))

    def end_turns(self, error: BaseException | None) -> None:
        """End the scope of the handed-off agent whose turn it is."""
        scope, self.scope = self.scope, None
        if scope is not None:
            scope.finish(error)


class _RunScope:
    """The scope of a run, and of what was handed off in it."""

    def __init__(self, scope: AgentScope, run: _Run) -> None:
        self.context = scope.context
        self._scope = scope
        self._run = run

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End both; a limit on turns cuts the run short."""
        if isinstance(error, sys.modules["agents"].MaxTurnsExceeded):
            self._scope.end_early("max turns")
        self._run.end_turns(error)
        self._scope.finish(error, result)


class _HandoffScope:
    """A handoff, whose result is what the model is told of it."""

    def __init__(self, scope: Scope, handoff: Any) -> None:
        self.context = scope.context
        self._scope = scope
        self._handoff = handoff

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it; `result` is the turn's."""
        if result is not None:
            result = self._handoff.get_transfer_message(result.next_step.new_agent)
        self._scope.finish(error, result)


def _begin_step(tool: ToolRun, run_context: Any) -> Scope | None:
    """A tool or a handoff, after which the run's context may be another."""
    scope = begin_tool(tool)
    if scope is None:
        return None
    return FollowedScope(scope, lambda: record_data(run_context.context, "context"))


def _open_run(_runner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    agent = args[0] if args else kwargs["starting_agent"]
    session = kwargs.get("session")
    conversation = kwargs.get("conversation_id") or getattr(session, "session_id", None)
    run = _Run(agent)
    name = getattr(agent, "name", None)
    scope = begin_agent(AgentRun(name=name, owner=run, conversation_id=conversation))
    return None if scope is None else _RunScope(scope, run)


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
        task = getattr(result, "run_loop_task", None) or result._run_impl_task
        task.add_done_callback(lambda task: end_scope(scope, _error_of(task, result)))
    return result


def _error_of(task: "asyncio.Task[Any]", result: Any) -> BaseException | None:
    """What ended a run that streams; its limit on turns is raised later, to who reads it."""
    if task.cancelled():
        return asyncio.CancelledError()
    exceeded: Any = sys.modules["agents"].MaxTurnsExceeded
    is_handled = getattr(result, "_max_turns_handled", False)  # by the program, or told the reader
    is_beyond = result.max_turns is not None and result.current_turn > result.max_turns
    if isinstance(result._stored_exception, exceeded) or (is_beyond and not is_handled):
        return exceeded("max turns")
    return task.exception()


def _open_turn(_runner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    run = otel_context.get_value(AGENT_KEY)
    if not isinstance(run, _Run):
        return None
    bindings = kwargs.get("bindings") or kwargs.get("agent") or args[1]
    run.give_turn(getattr(bindings, "public_agent", bindings))
    run_context = kwargs.get("context_wrapper") or args[3]
    record_data(run_context.context, "context")
    return None if run.scope is None else ContextScope(run.scope.context)


def _open_tool(_home: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    context = kwargs.get("context") or kwargs["tool_context"]  # of older versions
    call = kwargs.get("tool_call")
    tool = ToolRun(
        name=(kwargs.get("function_tool") or kwargs["func_tool"]).name,
        arguments=kwargs["arguments"] if call is None else call.arguments,
        call_id=getattr(context, "tool_call_id", None),
    )
    return _begin_step(tool, context)


def _read_output(result: Any) -> Any:
    is_wrapped = type(result).__name__ == "_FunctionToolInvocationResult"
    return result.output if is_wrapped else result


def _open_handoff(_home: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    asked = kwargs["run_handoffs"][0]  # others are refused
    call = asked.tool_call
    tool = ToolRun(name=call.name, arguments=call.arguments, call_id=call.call_id)
    scope = _begin_step(tool, kwargs["context_wrapper"])
    return None if scope is None else _HandoffScope(scope, asked.handoff)
