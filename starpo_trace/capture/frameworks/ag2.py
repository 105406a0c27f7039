"""AG2 -> runs of agents, agents that they delegate to, tools, and context variables.

Its middleware is given to one agent at a time and sees neither how a turn ended nor every tool; so
what every turn and every tool call goes through is wrapped. Model calls are the SDK's below.
"""

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import ModuleType, TracebackType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context, create_key

from starpo_trace.capture.agents import (
    AgentRun,
    AgentScope,
    Scope,
    ToolRun,
    begin_agent,
    begin_tool,
)
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import current_trajectory
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.own_spans import writes_where_we_write
from starpo_trace.capture.patches.scopes import end_scope, wrap_scope
from starpo_trace.capture.states import record_change
from starpo_trace.guard import Guard

TESTED: Final = {"ag2": ">=1.2,<1.3"}

_TURN_KEY: Final = create_key("starpo-ag2-turn")


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch the module of agents, or that of AG2's own telemetry, once it has been imported."""
    if module.__name__ != "ag2.agent":
        for name in ("on_turn", "on_llm_call", "on_tool_execution"):
            patches.wrap(module._TelemetryMiddlewareInstance, name, _leave_out)
        return
    patches.wrap(module.Agent, "_turn_scope", _scope_turn)
    patches.wrap(module._HaltCheckMiddleware, "on_llm_call", _note_halt)
    wrap_scope(patches, [sys.modules["ag2.tools.executor"]], "_execute_call", _open_call)
    patches.wrap(sys.modules["ag2.tools.final.client_tool"].ClientTool, "register", _note_client)


class _TurnScope:
    """A turn of an agent."""

    def __init__(self, scope: AgentScope, name: str, variables: Any) -> None:
        self.context: Context = otel_context.set_value(_TURN_KEY, self, scope.context)
        self.error: BaseException | None = None
        self.halt_reason: str | None = None
        self.client_tools: set[str] = set()
        """Tools that the model may call but somebody else runs."""
        self._scope = scope
        self._name = name
        self._variables = variables

    def record_state(self) -> None:
        """The context variables, where they changed."""
        record_change(self._variables, self._name)

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it; a run that was named around it may go on."""
        if error is None and self.halt_reason is not None:
            self._scope.end_early(self.halt_reason)
        self._scope.finish(error, result)


class _Turn(AbstractAsyncContextManager[Any]):
    """What AG2 enters before a turn, and leaves after it; between, the turn may be driven.

    That closes without the exception that ended the turn, so the turn itself is watched.
    """

    def __init__(
        self, manager: AbstractAsyncContextManager[Any], begin: Callable[[], _TurnScope | None]
    ) -> None:
        self._manager = manager
        self._begin = begin
        self._scope: _TurnScope | None = None

    async def __aenter__(self) -> Any:
        scope = None
        with Guard("beginning an agent"):
            self._scope = scope = self._begin()
        if scope is None:
            return await self._manager.__aenter__()
        try:
            drive = await self._run(scope, self._enter(scope))
        except BaseException as error:
            end_scope(scope, error)
            raise
        return partial(self._drive, scope, drive)

    async def _enter(self, scope: _TurnScope) -> Any:
        drive = await self._manager.__aenter__()
        scope.record_state()
        return drive

    async def _drive(self, scope: _TurnScope, drive: Callable[[], Awaitable[Any]]) -> Any:
        return await self._run(scope, drive())

    async def _run(self, scope: _TurnScope, awaitable: Awaitable[Any]) -> Any:
        attachment = Attachment(scope.context)
        try:
            return await awaitable
        except BaseException as error:
            scope.error = error
            raise
        finally:
            attachment.detach()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        left = self._manager.__aexit__(kind, error, traceback)
        if (scope := self._scope) is None:
            return await left
        try:
            return await self._run(scope, left)
        finally:
            attachment = Attachment(scope.context)
            scope.record_state()
            attachment.detach()
            end_scope(scope, scope.error or error)


def _scope_turn(
    wrapped: Callable[..., Any], agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    return _Turn(wrapped(*args, **kwargs), lambda: _open_turn(agent, kwargs["context"]))


def _open_turn(agent: Any, context: Any) -> _TurnScope | None:
    conversation = str(context.stream.id)
    # Entered once for each turn: an agent that asks itself, by a tool, runs twice.
    scope = begin_agent(AgentRun(name=agent.name, owner=object(), conversation_id=conversation))
    return None if scope is None else _TurnScope(scope, agent.name, context.variables)


def _get_turn() -> _TurnScope | None:
    turn = otel_context.get_value(_TURN_KEY)
    return turn if isinstance(turn, _TurnScope) else None


class _CallScope:
    """A tool call: its exception is in what it gives."""

    def __init__(self, scope: Scope, turn: _TurnScope | None) -> None:
        self.context = scope.context
        self._scope = scope
        self._turn = turn

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it; `result` is the event of its result."""
        if error is None:
            error = getattr(result, "error", None)
        told = None if error is not None or result is None else _read_parts(result.result.parts)
        self._scope.finish(error, told)
        if self._turn is not None:
            self._turn.record_state()


def _open_call(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    call = args[1] if len(args) > 1 else kwargs["call"]
    turn = _get_turn()
    if turn is not None and call.name in turn.client_tools:
        return None
    scope = begin_tool(ToolRun(name=call.name, arguments=call.arguments, call_id=call.id))
    return None if scope is None else _CallScope(scope, turn)


def _read_parts(parts: Any) -> Any:
    """What the model is told: a text or value, or several; of a file only its type."""
    told = [
        getattr(part, "content", getattr(part, "data", None))
        if type(part).__name__ in ("TextInput", "DataInput")
        else type(part).__name__
        for part in parts
    ]
    return told[0] if len(told) == 1 else told


def _note_client(
    wrapped: Callable[..., Any], tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    if (turn := _get_turn()) is not None:
        turn.client_tools.add(tool.name)
    return wrapped(*args, **kwargs)


async def _note_halt(
    wrapped: Callable[..., Any], check: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """A fatal alert stops the turn in place of a model call."""
    if check._halted and (turn := _get_turn()) is not None:
        turn.halt_reason = check._halt_reason
    return await wrapped(*args, **kwargs)


async def _leave_out(
    wrapped: Callable[..., Any], middleware: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """AG2's own span, where ours stands in the same place."""
    is_doubled = False
    with Guard("leaving out a span of AG2's"):
        is_doubled = current_trajectory() is not None and writes_where_we_write(middleware._tracer)
    if is_doubled and args:
        return await args[0](*args[1:], **kwargs)
    return await wrapped(*args, **kwargs)
