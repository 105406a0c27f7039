"""Strands Agents -> runs of agents, swarms and graphs, sub-agents, tools, and states.

Hooks see what happens but can make no Context current for it, so what runs agents and tools is
wrapped; how a run ended, and its state, the hooks' events tell. Model calls are the SDK's below.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan

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
from starpo_trace.capture.patches.own_spans import writes_where_we_write
from starpo_trace.capture.patches.scopes import relay_async, wrap_scope
from starpo_trace.capture.states import record_change
from starpo_trace.guard import Guard

TESTED: Final = {"strands-agents": ">=1.62,<1.63"}
_EARLY_STOPS: Final = ("interrupt", "checkpoint")
_STATE_EVENTS: Final = (
    "BeforeInvocationEvent",
    "BeforeModelCallEvent",
    "AfterToolCallEvent",
    "AfterInvocationEvent",
    "BeforeNodeCallEvent",
    "AfterNodeCallEvent",
)


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch agents and tools, swarms, or graphs, once their module has been imported."""
    if module.__name__ != "strands.agent.agent":
        kind = "Swarm" if module.__name__.endswith("swarm") else "Graph"
        wrap_scope(patches, vars(module)[kind], "stream_async", _open_team)
        patches.wrap(vars(module)[f"{kind}State"], "should_continue", _note_limit)
        return
    wrap_scope(patches, module.Agent, "stream_async", _open_agent)
    wrap_scope(patches, module.Agent, "structured_output_async", _open_agent)
    patches.wrap(module.HookRegistry, "invoke_callbacks_async", _watch_event)
    patches.wrap(sys.modules["strands.tools.executors._executor"], "_run_tool", _run_tool)
    tracer = sys.modules["strands.telemetry.tracer"].Tracer
    patches.wrap(tracer, "start_tool_call_span", _start_span)


class _Run:
    """A run of an agent, a swarm or a graph; the hooks' events tell how it ends."""

    context: Context
    scope: AgentScope

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.early_stop: str | None = None
        self.error: BaseException | None = None

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record how it ended; it may fail, or stop before its end, and raise nothing."""
        error = error or self.error
        if error is None and self.early_stop:
            self.scope.end_early(self.early_stop)
        self.scope.finish(error, result)


def _open_agent(agent: Any, _args: Any, _kwargs: Any) -> Scope | None:
    return _open_run(agent, agent.name, agent.session_id)


def _open_team(team: Any, _args: Any, _kwargs: Any) -> Scope | None:
    return _open_run(team, team.id, None)


def _open_run(runner: Any, name: str, conversation_id: str | None) -> Scope | None:
    run = _Run(runner)
    scope = begin_agent(AgentRun(name=name, owner=run, conversation_id=conversation_id))
    if scope is None:
        return None
    run.scope, run.context = scope, scope.context
    return run


async def _watch_event(
    wrapped: Callable[..., Any], _registry: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What the program's hooks have seen and changed."""
    result = await wrapped(*args, **kwargs)
    with Guard("reading a hook's event"):
        event = args[0] if args else kwargs["event"]
        runner: Any = getattr(event, "agent", None) or getattr(event, "source", None)
        run = otel_context.get_value(AGENT_KEY)
        if isinstance(run, _Run) and run.runner is runner:
            kind = type(event).__name__
            if kind in _STATE_EVENTS:
                _read_state(run)
            if kind == "AfterInvocationEvent":
                _read_agent_end(run, event.result)
            elif kind == "AfterMultiAgentInvocationEvent":
                _read_team_end(run, runner.state)
    return result


def _read_state(run: _Run) -> None:
    """Record the agent's state, or what a swarm shares."""
    runner = run.runner
    if hasattr(runner, "shared_context"):
        name, now = runner.id, runner.shared_context.context
    elif hasattr(runner, "event_loop_metrics"):
        name, now = runner.name, runner.state.get()
    else:  # a graph shares nothing
        return
    record_change(now, name)


def _read_agent_end(run: _Run, result: Any) -> None:
    """How a pass of an agent ended; a hook may have it go on, and the last one counts."""
    reason = getattr(result, "stop_reason", None) or ""
    run.early_stop = reason if reason in _EARLY_STOPS or reason.startswith("limit_") else None
    is_aborted = reason == "cancelled" and run.runner.cancel_signal.is_set()  # not by a tool's wish
    run.error = asyncio.CancelledError("cancelled") if is_aborted else None


def _read_team_end(run: _Run, told: Any) -> None:
    status = getattr(told, "completion_status", None) or told.status
    if status.name == "INTERRUPTED":
        run.early_stop = "interrupt"
    elif status.name == "FAILED" and run.early_stop is None:
        results = [each.result for each in told.results.values()]
        errors = [each for each in results if isinstance(each, Exception)]
        run.error = errors[-1] if errors else asyncio.CancelledError("a node was cancelled")


def _note_limit(
    wrapped: Callable[..., Any], _state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    may_go_on, reason = wrapped(*args, **kwargs)
    run = otel_context.get_value(AGENT_KEY)
    if not may_go_on and isinstance(run, _Run):
        run.early_stop = reason
    return may_go_on, reason


class _Tool:
    """A tool in progress; its last event tells its result."""

    context: Context
    scope: Scope

    def __init__(self, call: Any) -> None:
        self._call = call
        self._result: Any = None

    def begin(self) -> Scope | None:
        """Begin its step; a tool that is unknown does not run."""
        with Guard("beginning a tool"):
            asked = self._call.tool_use
            tool = ToolRun(
                name=asked["name"], arguments=asked["input"], call_id=asked.get("toolUseId")
            )
            scope = None if self._call.tool is None else begin_tool(tool)
            if scope is not None:
                self.scope, self.context = scope, scope.context
                return self
        return None

    async def watch(self, events: Any) -> AsyncIterator[Any]:
        """Keep the event that has the result."""
        async with aclosing(events):
            async for event in events:
                if type(event).__name__ == "ToolResultEvent":
                    self._result = event
                yield event

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record what the tool gave, or why it failed; an interrupt is no error."""
        if type(error).__name__ == "InterruptException":
            error = None
        if error is None and self._result is not None:
            told = self._result.tool_result
            result, error = _read_content(told.get("content")), self._result.exception
            if error is None and told.get("status") == "error":
                error = RuntimeError(result)
        self.scope.finish(error, result)


def _run_tool(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    tool = _Tool(args[0] if args else kwargs["ctx"])
    return relay_async(tool.begin, tool.watch(wrapped(*args, **kwargs)))


def _read_content(content: Any) -> Any:
    """Content blocks -> their text, where it is all they are."""
    if isinstance(content, list) and all(set(block) == {"text"} for block in content):
        return "\n".join(block["text"] for block in content)
    return content


def _start_span(
    wrapped: Callable[..., Any], tracer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """No span of its own for a tool whose step goes to the same provider: it would be counted twice."""
    with Guard("looking at the framework's own telemetry"):
        if current_trajectory() is not None and writes_where_we_write(tracer.tracer):
            return NonRecordingSpan(trace.get_current_span().get_span_context())
    return wrapped(*args, **kwargs)
