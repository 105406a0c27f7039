"""Agno -> runs of agents and teams, their tools, and the state of a session.

`Agent.run` does not raise what ended a run but notes it on the run's output, which a stream does not
hand out; so what it dispatches to is wrapped, which is given that output, in the background too. A
team's members are tools of its leader. Model calls are the SDK's below.
"""

import inspect
import sys
from asyncio import CancelledError
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from types import ModuleType
from typing import Any, Final

from opentelemetry.context import Context

from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import FollowedScope, relay, relay_async, wrap_scope
from starpo_trace.capture.states import record_fields

TESTED: Final = {"agno": ">=3.1,<3.2"}

_RUNNERS: Final = ("_run", "_run_stream", "_arun", "_arun_stream")
_IDS: Final = ("current_user_id", "current_session_id", "current_run_id")
_CONTENT_EVENTS: Final = ("RunContent", "TeamRunContent")


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch a module of `agno`, once it has been imported."""
    if module.__name__ == "agno.tools.function":
        wrap_scope(patches, module.FunctionCall, "execute", _open_tool)
        wrap_scope(patches, module.FunctionCall, "aexecute", _open_tool)
        return
    for name in _RUNNERS:
        wrap_scope(patches, [module], name, _open_run)


class _RunScope:
    """An agent or team that runs: how it ended is on its output."""

    def __init__(self, scope: Scope, output: Any, run_context: Any) -> None:
        self.context = scope.context
        self._scope = scope
        self._output = output
        self._run_context = run_context

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it."""
        _record_state(self._run_context, self.context)
        self._scope.finish(error or _find_error(self._output), result)


class _ToolScope:
    """A tool that runs: it may give a generator, as a member of a team does, and run in that."""

    def __init__(self, scope: Scope, call: Any) -> None:
        self.context = scope.context
        self._scope = scope
        self._call = call
        self._pieces: list[str] = []

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it, or have the generator end it; `result` is a `FunctionExecutionResult`."""
        if error is not None or result is None:
            self._scope.finish(error, "".join(self._pieces))
        elif inspect.isgenerator(result.result):
            self._call.result = result.result = relay(self, self._keep_text(result.result))
        elif inspect.isasyncgen(result.result):
            generator = self._keep_text_async(result.result)
            self._call.result = result.result = relay_async(self, generator)
        elif result.status == "success":
            self._scope.finish(None, result.result)
        else:
            self._scope.finish(_make_error(result.error))

    def _keep_text(self, generator: Generator[Any, Any, Any]) -> Iterator[Any]:
        with closing(generator):
            for item in generator:
                self._pieces.append(_read_text(item))
                yield item

    async def _keep_text_async(self, generator: AsyncGenerator[Any, Any]) -> AsyncIterator[Any]:
        async with aclosing(generator):
            async for item in generator:
                self._pieces.append(_read_text(item))
                yield item


def _read_text(item: Any) -> str:
    """What of a generator's item the model is told: text, and the content of a member's run."""
    event = getattr(item, "event", None)
    if event is None:
        return str(item)
    content = getattr(item, "content", None)
    return content if event in _CONTENT_EVENTS and isinstance(content, str) else ""


def _find_error(output: Any) -> BaseException | None:
    status = getattr(output.status, "value", output.status)
    if status == "CANCELLED":
        return CancelledError(output.content)
    return _make_error(output.content) if status == "ERROR" else None


def _make_error(message: Any) -> Exception:
    """Agno tells only the text of an exception."""
    return sys.modules["agno.exceptions"].AgnoError(message)


def _open_run(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    agent, output = args[0], kwargs["run_response"]
    name = agent.name or type(agent).__name__
    scope = begin_agent(AgentRun(name=name, owner=agent, conversation_id=output.session_id))
    if scope is None:
        return None
    _record_state(kwargs.get("run_context"), scope.context)
    return _RunScope(scope, output, kwargs.get("run_context"))


def _open_tool(call: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope | None:
    tool = ToolRun(name=call.function.name, arguments=call.arguments, call_id=call.call_id)
    _record_state(call.function._run_context)
    scope = begin_tool(tool)
    if scope is None:
        return None
    return _ToolScope(FollowedScope(scope, lambda: _record_state(call.function._run_context)), call)


def _record_state(run_context: Any, within: Context | None = None) -> None:
    """The state of a session, without the ids that Agno puts there while it runs."""
    values = getattr(run_context, "session_state", None)
    if isinstance(values, Mapping):
        told = {key: each for key, each in values.items() if key not in _IDS}
        record_fields(told, "session_state", within)
