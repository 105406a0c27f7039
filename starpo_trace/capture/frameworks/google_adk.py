"""Google ADK -> runs, their agents, tools, and the session's state as it changes.

Its plugins are told of all this but cannot make a Context current for what runs below, so what runs
an agent and a tool is wrapped. A runner begins a run, and its root agent is that run; what it hands
over to, or has inside, is an agent of it. Model calls are LiteLLM's or the Google GenAI SDK's.
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
from starpo_trace.capture.keys import AGENT_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import find_homes, wrap_scope
from starpo_trace.capture.steps import state
from starpo_trace.guard import Guard
from starpo_trace.messages import dump_json

TESTED: Final = {"google-adk": ">=2.13,<2.14 or >=1.14,<1.15"}
_RUNNING_KEY: Final = otel_context.create_key("starpo-google-adk-run")
_CALLER: Final = "google.adk.flows.llm_flows.tools._caller"
_OWN_ID: Final = "adk-"
"""Begins the ids that ADK makes up, and shows no model, where a call has none."""


class _Running:
    """One run of a runner."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._last_event_id: str | None = None
        self._last_state: str | None = None

    def may_change_state(self, event: Any) -> bool:
        """Whether an event changes the state, or is the first; versions 1 add each one twice."""
        if event.id == self._last_event_id:
            return False
        self._last_event_id = event.id
        return self._last_state is None or bool(event.actions and event.actions.state_delta)

    def record_state(self, session: Any) -> None:
        """Record a session's state, where it is another than before; the first, though it be empty."""
        told = dump_json(session.state)
        if told != self._last_state:
            self._last_state = told
            state(session.state, self.name)


class _RunScope:
    """A run that its program may abort, and that may reach a limit."""

    def __init__(
        self, scope: AgentScope, running: _Running, abort_signal: asyncio.Event | None
    ) -> None:
        self.context = otel_context.set_value(_RUNNING_KEY, running, scope.context)
        self._scope = scope
        self._abort_signal = abort_signal

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it."""
        if error is None and self._abort_signal is not None and self._abort_signal.is_set():
            error = asyncio.CancelledError("aborted")
        limit = sys.modules["google.adk.agents.invocation_context"].LlmCallsLimitExceededError
        if isinstance(error, limit):
            self._scope.end_early("max_llm_calls")
        self._scope.finish(error, result)


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch one of the modules of `google.adk`, once it has been imported."""
    match module.__name__:
        case "google.adk.runners":
            wrap_scope(patches, module.Runner, "run_async", _open_run)
        case "google.adk.agents.base_agent":
            wrap_scope(patches, module.BaseAgent, "run_async", _open_agent)
        case "google.adk.sessions.base_session_service":
            patches.wrap(module.BaseSessionService, "append_event", _append_event)
        case name if name == _CALLER:
            _wrap_tools(patches, module, "_call_tool_async")
        case _ if _CALLER not in sys.modules:  # versions 1
            _wrap_tools(patches, module, "__call_tool_async")
        case _:
            pass


def _wrap_tools(patches: PatchSet, module: ModuleType, name: str) -> None:
    homes = find_homes(getattr(module, name), name, module)
    wrap_scope(patches, homes, name, _open_tool, _read_result)


def _open_run(runner: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    running = _Running(runner.agent.name)
    conversation = kwargs.get("session_id")
    scope = begin_agent(AgentRun(name=running.name, owner=running, conversation_id=conversation))
    return None if scope is None else _RunScope(scope, running, kwargs.get("abort_signal"))


def _open_agent(agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    running = otel_context.get_value(AGENT_KEY)
    if isinstance(running, _Running) and running.name == agent.name:
        return None  # the run itself; versions 2 run a copy of the runner's agent
    parent = args[0] if args else kwargs["parent_context"]
    return begin_agent(AgentRun(name=agent.name, owner=agent, conversation_id=parent.session.id))


def _open_tool(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    tool = args[0] if args else kwargs["tool"]
    call_id = kwargs["tool_context"].function_call_id
    if call_id is not None and call_id.startswith(_OWN_ID):
        call_id = None
    return begin_tool(ToolRun(name=tool.name, arguments=kwargs["args"], call_id=call_id))


def _read_result(result: Any) -> Any:
    """What the model is told: an object."""
    return result if isinstance(result, dict) else {"result": result}


async def _append_event(
    wrapped: Callable[..., Any], _service: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Every event of a run is added to its session here; some change its state."""
    running = otel_context.get_value(_RUNNING_KEY)
    may_change = False
    with Guard("reading an event"):
        if isinstance(running, _Running):
            event = args[1] if len(args) > 1 else kwargs["event"]
            may_change = running.may_change_state(event)  # what it changes is trimmed below
    result = await wrapped(*args, **kwargs)
    with Guard("recording a session's state"):
        if may_change and isinstance(running, _Running):
            running.record_state(args[0] if args else kwargs["session"])
    return result
