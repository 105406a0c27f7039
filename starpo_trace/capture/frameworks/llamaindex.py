"""LlamaIndex -> runs of agents and workflows, handoffs, and states between steps.

Its instrumentation swallows what a handler does wrong and is not told how a run ended, so the loop
that runs a workflow is wrapped; every agent is one. Model calls are the SDK's below.
"""

import sys
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from starpo_trace.capture.agents import AgentRun, AgentScope, Scope, begin_agent
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.frameworks.llamaindex_store import read_store, write_state
from starpo_trace.capture.frameworks.llamaindex_tools import CALL_KEY, open_agent_tool
from starpo_trace.capture.keys import AGENT_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import ContextScope, end_scope, wrap_scope
from starpo_trace.capture.states import record_change
from starpo_trace.guard import Guard

TESTED: Final = {
    "llama-index-core": ">=0.14.10,<0.15",
    "llama-index-workflows": ">=2.26,<2.27 or >=2.11,<2.12",
}
_AGENTS: Final = "llama_index.core.agent.workflow"


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch the loop of workflows, or the agents, once their module has been imported."""
    if module.__name__ == _AGENTS:
        wrap_scope(patches, module.AgentWorkflow, "run_agent_step", _open_turn)
        for owner in (module.AgentWorkflow, module.BaseWorkflowAgent):
            wrap_scope(patches, owner, "call_tool", _open_call)
            wrap_scope(patches, owner, "_call_tool", open_agent_tool)
        return
    loop: Any = sys.modules.get("workflows.runtime.control_loop.runner", module)
    wrap_scope(patches, loop._ControlLoopRunner, "run", _open_run)
    patches.wrap(loop._ControlLoopRunner, "run_worker", _record_state)


class _Running:
    """One run of a workflow: what is known of it until it ends."""

    def __init__(self, workflow: Any, store: Any) -> None:
        self.workflow = workflow
        self.store = store
        self.name = _find_name(workflow)
        self.turn: tuple[str, Scope] | None = None

    def enter_agent(self, name: str) -> Context:
        """An agent of the workflow has its turn, until another one has -> its Context."""
        if self.turn is not None and self.turn[0] != name:
            self.leave_agent(None)
        if self.turn is None:
            begun = begin_agent(AgentRun(name=name, owner=object()))
            if begun is None:
                return otel_context.get_current()
            self.turn = name, begun
        return self.turn[1].context

    def leave_agent(self, error: BaseException | None) -> None:
        """The agent's turn is over."""
        if self.turn is not None:
            (_, scope), self.turn = self.turn, None
            end_scope(scope, error)

    def find_agent(self) -> Any:
        """The agent that has its turn; the workflow itself where it is one."""
        agents = _get_agents(self.workflow)
        return agents.get(self.turn[0] if self.turn else next(iter(agents), ""), self.workflow)

    def record_state(self) -> None:
        """Record what the store holds, where that has changed."""
        told = write_state(self.store, is_agent=_is_agent(self.workflow))
        if told is not None:
            record_change(told, self.name)


class _RunScope:
    """A workflow that runs: how it ended is told by its error and by its store."""

    def __init__(self, scope: AgentScope, running: _Running) -> None:
        self.context = scope.context
        self._scope = scope
        self._running = running

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record the last state, and end it."""
        errors = sys.modules["workflows.errors"]
        running = self._running
        attachment = Attachment(self.context)
        with Guard("recording a workflow's state"):
            running.record_state()
        attachment.detach()
        if isinstance(error, errors.WorkflowCancelledByUser):
            error = CancelledError(str(error))
        elif isinstance(error, errors.WorkflowTimeoutError):
            self._scope.end_early("timeout")
        elif _has_used_its_iterations(running):
            self._scope.end_early("max iterations")
        running.leave_agent(error)
        self._scope.finish(error, result)


def _open_run(runner: Any, _args: Any, kwargs: Mapping[str, Any]) -> Scope | None:
    try:
        store = runner.context.store
    except RuntimeError:  # a runtime that has none
        store = None
    running = _Running(runner.workflow, store)
    start: Any = kwargs.get("start_event")
    memory = None if start is None else start.get("memory")
    memory = memory or (read_store(running.store) or {}).get("memory")
    session = getattr(memory, "session_id", None)
    scope = begin_agent(AgentRun(name=running.name, owner=running, conversation_id=session))
    return None if scope is None else _RunScope(scope, running)


def _find_name(workflow: Any) -> str:
    agents = _get_agents(workflow)
    if len(agents) == 1:
        return next(iter(agents))
    given = getattr(workflow, "name", None) or getattr(workflow, "_workflow_name", None)
    return given if isinstance(given, str) else type(workflow).__name__


def _get_agents(workflow: Any) -> dict[str, Any]:
    """Agents of a workflow that hands off between them."""
    module: Any = sys.modules.get(_AGENTS)
    is_of_agents = module is not None and isinstance(workflow, module.AgentWorkflow)
    return workflow.agents if is_of_agents else {}


def _is_agent(workflow: Any) -> bool:
    module: Any = sys.modules.get(_AGENTS)
    return module is not None and isinstance(
        workflow, module.BaseWorkflowAgent | module.AgentWorkflow
    )


def _has_used_its_iterations(running: _Running) -> bool:
    held: Any = read_store(running.store) or {}
    used, limit = held.get("num_iterations"), held.get("max_iterations")
    return _is_agent(running.workflow) and None not in (used, limit) and used >= limit


def _record_state(
    wrapped: Callable[..., Any], runner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a step sees that is about to run."""
    with Guard("recording a workflow's state"):
        running = otel_context.get_value(AGENT_KEY)
        if isinstance(running, _Running) and running.workflow is runner.workflow:
            running.record_state()
    return wrapped(*args, **kwargs)


def _open_turn(workflow: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    """A step of an agent in a workflow of several."""
    running = otel_context.get_value(AGENT_KEY)
    if not isinstance(running, _Running) or len(workflow.agents) < 2:
        return None
    event = kwargs["ev"] if "ev" in kwargs else args[1]
    return ContextScope(running.enter_agent(event.current_agent_name))


def _open_call(workflow: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    """The step around a tool, which knows the call's id; agents that write text make one up."""
    running = otel_context.get_value(AGENT_KEY)
    if not isinstance(running, _Running):
        return None
    event = kwargs["ev"] if "ev" in kwargs else args[1]
    context = running.turn[1].context if running.turn else otel_context.get_current()
    module: Any = sys.modules[_AGENTS]
    writes_text = isinstance(running.find_agent(), module.ReActAgent | module.CodeActAgent)
    call_id = None if writes_text else event.tool_id
    return ContextScope(otel_context.set_value(CALL_KEY, call_id, context))
