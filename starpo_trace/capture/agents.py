"""What an agent framework does -> the run, its sub-agents and its tools, on the spans of the user's own.

A framework's module says where agents and tools run; what that means is decided here, once. The
outermost agent is a run, unless the program is inside one that it named itself; an agent inside of
a run is a span of it, without a number: what it does counts. A framework's methods call each other,
so an agent or a tool that is entered again from inside of itself is not begun a second time.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Span, SpanKind

from starpo_trace import semconv
from starpo_trace.capture.apart import set_current
from starpo_trace.capture.episode import (
    EndKind,
    Trajectory,
    current_trajectory,
    leave_finished_run,
    mark_error,
)
from starpo_trace.capture.keys import AGENT_KEY, TOOL_KEY
from starpo_trace.capture.lineage import Lineage
from starpo_trace.capture.outcome import redact_text
from starpo_trace.capture.roots import begin_trajectory
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.capture.steps import Step, StepKind, begin_step

_UNNAMED: Final = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRun:
    """An agent that begins to run."""

    name: str | None
    """Its name."""
    owner: object
    """The object that runs; entered again from inside of itself it is still the same run."""
    conversation_id: str | None = None
    """The thread or session that the run belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """A tool that begins to run."""

    name: str
    """Its name, as the model knows it."""
    arguments: Any = None
    """What it was given: text as the model wrote it, or an object."""
    call_id: str | None = None
    """Id of the tool call that asked for it."""
    kind: StepKind = "tool"
    """`retriever` where it looks something up for the prompt."""


class Scope(Protocol):
    """An agent or a tool in progress."""

    context: Context
    """Context to make current while its code runs."""

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record how it ended; once."""
        ...


class AgentScope(Scope, Protocol):
    """An agent in progress."""

    def end_early(self, reason: str, end: EndKind = "truncated") -> None:
        """It stops before its end. Where it is the run, so does that; else the run may go on."""
        ...


class _RunScope:
    """The outermost agent: a trajectory."""

    def __init__(self, run: Trajectory, context: Context) -> None:
        self.context = context
        self._run = run
        self._is_over = False

    def end_early(self, reason: str, end: EndKind = "truncated") -> None:
        """Say how the run ends."""
        self._run.end(end, reason=reason)

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End the run."""
        del result  # the last model call has it
        if self._is_over:
            return
        self._is_over = True
        self._run.finish(error)
        leave_finished_run()


class _AgentScope:
    """An agent inside of a run."""

    def __init__(self, span: Span, context: Context, *, has_content: bool) -> None:
        self.context = context
        self._span = span
        self._has_content = has_content
        self._num_forks = Lineage.num_forks
        self._is_over = False

    def end_early(self, reason: str, end: EndKind = "truncated") -> None:
        """Nothing: it is not the run that ends."""

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End its span."""
        del result
        if self._is_over or self._num_forks != Lineage.num_forks:
            return
        self._is_over = True
        try:
            if error is not None:
                mark_error(self._span, error, has_content=self._has_content)
        finally:
            self._span.end()


class _ToolScope:
    """A tool: a step of the run."""

    def __init__(self, step: Step, context: Context) -> None:
        self.context = context
        self._step = step
        self._is_over = False

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record what it gave, and end the step."""
        if self._is_over:
            return
        self._is_over = True
        try:
            if result is not None and (error is None or result != ""):
                self._step.result(result)
        finally:
            self._step.end(error)


def begin_agent(agent: AgentRun) -> AgentScope | None:
    """An agent that runs -> its scope; None where it is not recorded, or runs already."""
    runtime = get_runtime()
    if runtime is None or not is_instrumentation_enabled():
        return None
    around = current_trajectory()
    if around is not None and otel_context.get_value(AGENT_KEY) is agent.owner:
        return None
    if around is None:
        identity = {semconv.CONVERSATION_ID: agent.conversation_id}
        begun, context = begin_trajectory(agent.name or _UNNAMED, identity, None)
        return _RunScope(begun, otel_context.set_value(AGENT_KEY, agent.owner, context))
    name = redact_text(agent.name or _UNNAMED)
    span = runtime.get_tracer().start_span(
        f"invoke_agent {name}",
        kind=SpanKind.INTERNAL,
        attributes={
            semconv.SCHEMA: semconv.SCHEMA_VERSION,
            semconv.RECORD: "agent",
            semconv.OPERATION_NAME: "invoke_agent",
            semconv.AGENT_NAME: name,
            semconv.TRAJECTORY_ID: around.id,
            **around.describe_part(),
        },
    )
    context = otel_context.set_value(AGENT_KEY, agent.owner, set_current(span))
    return _AgentScope(span, context, has_content=runtime.history_mode != "off")


def begin_tool(tool: ToolRun) -> Scope | None:
    """A tool that runs -> its scope; None where it is not recorded, or runs already.

    Outside of a run a tool is no part of a trajectory and is left alone.
    """
    if get_runtime() is None or not is_instrumentation_enabled() or current_trajectory() is None:
        return None
    key = (tool.name, tool.call_id)
    outer = otel_context.get_value(TOOL_KEY)
    if isinstance(outer, tuple) and outer[0] == tool.name and tool.call_id in (None, outer[1]):
        return None
    step, context = begin_step(tool.kind, tool.name, tool.call_id, tool.arguments)
    if context is None:
        return None
    return _ToolScope(step, otel_context.set_value(TOOL_KEY, key, context))
