"""CrewAI -> runs of crews, flows and agents, states of flows, and tools (`crewai_tools`).

Its event bus calls handlers in a thread pool, where no Context can be made current for what runs;
so the methods that run are wrapped. Model calls are the SDK's below.
"""

import sys
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from starpo_trace.capture.agents import AgentRun, AgentScope, Scope, begin_agent
from starpo_trace.capture.frameworks import crewai_tools
from starpo_trace.capture.keys import AGENT_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import wrap_scope
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.capture.states import record_change
from starpo_trace.guard import Guard

TESTED: Final = {"crewai": ">=1.15,<1.16 or >=1.6,<1.7"}

_RUN_KEY: Final = otel_context.create_key("starpo-crewai-run")
_CALLER_KEY: Final = otel_context.create_key("starpo-crewai-caller")


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch the package `crewai`, or one of its modules with an agent's loop."""
    if module.__name__ == "crewai":
        _patch_package(patches, module)
        crewai_tools.patch_package(patches)
        return
    crewai_tools.patch_loop(patches, module)
    if module.__name__ != "crewai.agents.step_executor":
        patches.wrap(module, "handle_max_iterations_exceeded", _note_limit)
    if module.__name__ == "crewai.lite_agent":
        wrap_scope(patches, module.LiteAgent, "kickoff", _open_agent)
        wrap_scope(patches, module.LiteAgent, "kickoff_async", _open_caller)


def _patch_package(patches: PatchSet, crewai: ModuleType) -> None:
    wrap_scope(patches, crewai.Crew, "kickoff", _open_crew)
    wrap_scope(patches, crewai.Crew, "kickoff_async", _open_caller)
    wrap_scope(patches, crewai.Agent, "execute_task", _open_agent)
    flow = sys.modules.get("crewai.flow.runtime", crewai).Flow
    wrap_scope(patches, flow, "kickoff_async", _open_flow)
    patches.wrap(flow, "_execute_method", _record_states)
    if "crewai.agents.agent_executor" not in sys.modules:  # a `LiteAgent` does the rest
        return
    wrap_scope(patches, crewai.Crew, "akickoff", _open_crew)
    wrap_scope(patches, crewai.Agent, "aexecute_task", _open_agent)
    wrap_scope(patches, crewai.Agent, "kickoff", _open_agent)
    wrap_scope(patches, crewai.Agent, "kickoff_async", _open_agent)
    wrap_scope(patches, flow, "resume_async", _open_flow)


class _Caller:
    """Who waits for a run that goes on in a thread: cancelled, it is the run's end nevertheless."""

    def __init__(self) -> None:
        self.context = otel_context.set_value(_CALLER_KEY, self)
        self.error: CancelledError | None = None

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Note a cancellation; the thread ends the run."""
        del result
        if isinstance(error, CancelledError):
            self.error = error


class _RunScope:
    """A crew, a flow or an agent that runs, and what stopped it."""

    def __init__(self, scope: AgentScope, *, is_agent: bool) -> None:
        self.is_agent = is_agent
        self.stopped_by: str | None = None
        self._scope = scope
        self._around = otel_context.get_value(_RUN_KEY)
        self._caller = otel_context.get_value(_CALLER_KEY)
        self.context = otel_context.set_value(_RUN_KEY, self, scope.context)

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it; a crew or a flow was stopped by what stopped the agent that ended last."""
        if type(result).__name__ == "HumanFeedbackPending":
            self.stopped_by = "human feedback"
        if error is None and isinstance(self._caller, _Caller):
            error = self._caller.error
        if isinstance(self._around, _RunScope) and not self._around.is_agent:
            self._around.stopped_by = self.stopped_by
        if error is None and self.stopped_by is not None:
            self._scope.end_early(self.stopped_by)
        self._scope.finish(error)


@dataclass(slots=True, kw_only=True, eq=False)
class _FlowRun:
    """One run of a flow."""

    flow: Any
    name: str


def _begin(run: AgentRun, *, is_agent: bool = False) -> Scope | None:
    scope = begin_agent(run)
    return None if scope is None else _RunScope(scope, is_agent=is_agent)


def _open_crew(crew: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope | None:
    """A crew that streams is entered again, in a thread or task of its own."""
    return None if crew.stream else _begin(AgentRun(name=crew.name or "crew", owner=crew))


def _open_agent(agent: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope | None:
    owner = getattr(agent, "original_agent", None) or agent
    return _begin(AgentRun(name=agent.role.strip(), owner=owner), is_agent=True)


def _open_flow(flow: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    """A flow of the program's: one that streams is entered again; CrewAI's own are no runs."""
    if flow.stream or getattr(type(flow), "is_crewai_internal", False):
        return None
    inputs = args[0] if args else kwargs.get("inputs")
    thread = inputs.get("id") if isinstance(inputs, dict) else None
    name = flow.name or type(flow).__name__
    return _begin(
        AgentRun(
            name=name,
            owner=_FlowRun(flow=flow, name=name),
            conversation_id=str(thread or flow.flow_id),
        )
    )


def _open_caller(_owner: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope | None:
    return None if get_runtime() is None else _Caller()


def _note_limit(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """An agent that reached `max_iter` is asked for its answer, and ends with that."""
    run = otel_context.get_value(_RUN_KEY)
    if isinstance(run, _RunScope):
        run.stopped_by = "max_iter"
    return wrapped(*args, **kwargs)


async def _record_states(
    wrapped: Callable[..., Any], flow: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """A flow's state before and after each of its methods, where it changed."""
    _record_state(flow)
    try:
        return await wrapped(*args, **kwargs)
    finally:
        _record_state(flow)


def _record_state(flow: Any) -> None:
    with Guard("recording a flow's state"):
        running = otel_context.get_value(AGENT_KEY)
        if isinstance(running, _FlowRun) and running.flow is flow:
            record_change(flow._copy_and_serialize_state(), running.name)
