"""Microsoft Agent Framework -> runs of agents and of workflows that have one, tools, and states.

What `run` gives is awaited, or a stream that is pulled from wherever the program likes. Model calls
are the SDK's below.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.patches.base import PatchSet, Wrapper
from starpo_trace.capture.patches.scopes import (
    ContextScope,
    FollowedScope,
    Open,
    end_scope,
    wrap_scope,
)
from starpo_trace.capture.states import record_fields
from starpo_trace.guard import Guard

TESTED: Final = {"agent-framework-core": ">=1.23,<1.24"}


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch agents and tools, or workflows, once their module has been imported."""
    if module.__name__ == "agent_framework._workflows._workflow":
        _wrap_run(patches, module.Workflow, _open_workflow)
        state = sys.modules["agent_framework._workflows._state"].State
        wrap_scope(patches, state, "commit", _watch_shared_state)
        return
    _wrap_run(patches, module.RawAgent, _open_agent)
    _wrap_run(patches, module.Agent, _open_agent)
    tools = sys.modules["agent_framework._tools"]
    wrap_scope(patches, tools.FunctionTool, "invoke", _open_tool, _read_result)


def _wrap_run(patches: PatchSet, owner: Any, open_run: Open) -> None:
    def open_awaited(instance: Any, args: Any, kwargs: Mapping[str, Any]) -> Scope | None:
        return None if kwargs.get("stream") else open_run(instance, args, kwargs)

    wrap_scope(patches, owner, "run", open_awaited)
    patches.wrap(owner, "run", _make_streamed(open_run))


def _open_agent(agent: Any, _args: Any, kwargs: Mapping[str, Any]) -> Scope | None:
    session = kwargs.get("session")
    conversation = getattr(session, "session_id", None)
    scope = begin_agent(AgentRun(name=agent.name, owner=agent, conversation_id=conversation))
    if scope is None or session is None:
        return scope
    _record_state(session, scope.context)
    return _SessionScope(scope, session)


class _SessionScope:
    """An agent that runs with a session, which has a state."""

    def __init__(self, scope: Scope, session: Any) -> None:
        self.context = scope.context
        self._scope = scope
        self._session = session

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record the state that it leaves, and end it."""
        _record_state(self._session, self.context)
        self._scope.finish(error, result)


def _record_state(session: Any, within: Context | None = None) -> None:
    """The state of a session, without messages, which prompts have, and the framework's own keys."""
    state = getattr(session, "state", None)
    if not isinstance(state, Mapping):
        return
    told = {
        key: {k: v for k, v in each.items() if k != "messages"} if isinstance(each, dict) else each
        for key, each in state.items()
        if not key.startswith("workflow.")
    }
    record_fields({key: each for key, each in told.items() if each != {}}, "session", within)


def _watch_shared_state(state: Any, _args: Any, _kwargs: Any) -> Scope:
    """What the executors of a workflow share, as the next of them see it."""
    return ContextScope(
        otel_context.get_current(), lambda: record_fields(state._committed, "shared")
    )


def _open_workflow(workflow: Any, _args: Any, _kwargs: Any) -> Scope | None:
    agent_executor = sys.modules["agent_framework._workflows._agent_executor"].AgentExecutor
    if not any(isinstance(each, agent_executor) for each in workflow.get_executors_list()):
        return None
    return begin_agent(AgentRun(name=workflow.name, owner=workflow))


def _make_streamed(open_run: Open) -> Wrapper:
    def record(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        scope = None
        if kwargs.get("stream"):
            with Guard("beginning an agent"):
                scope = open_run(instance, args, kwargs)
        if scope is None:
            return wrapped(*args, **kwargs)
        attachment = Attachment(scope.context)  # its own telemetry begins its spans here
        try:
            stream = wrapped(*args, **kwargs)
        except BaseException as error:
            end_scope(scope, error)
            raise
        finally:
            attachment.detach()
        with Guard("watching an agent that streams"):
            _watch_stream(stream, scope)
        return stream

    return record


def _watch_stream(stream: Any, scope: Scope) -> None:
    """Have each pull of a stream in the scope, which ends with it, or when nobody has it any more."""
    finalize = weakref.finalize(stream, end_scope, scope, None)
    finalize.atexit = False

    @contextmanager
    def pull() -> Iterator[None]:
        attachment = Attachment(scope.context)
        try:
            yield
        finally:
            attachment.detach()

    def end() -> None:
        watched = find_stream()  # a cycle would keep a stream that nobody has
        end_scope(scope, getattr(watched, "_stream_error", None))

    find_stream = weakref.ref(stream)
    stream.with_pull_context_manager(pull)
    stream.with_cleanup_hook(end)


def _open_tool(tool: Any, _args: Any, kwargs: Mapping[str, Any]) -> Scope | None:
    arguments: Any = kwargs.get("arguments")
    if arguments is None:
        arguments = getattr(kwargs.get("context"), "arguments", None)
    if hasattr(arguments, "model_dump"):
        arguments = arguments.model_dump()
    scope = begin_tool(
        ToolRun(name=tool.name, arguments=arguments, call_id=kwargs.get("tool_call_id"))
    )
    session = getattr(kwargs.get("context"), "session", None)
    if scope is None or session is None:
        return scope
    return FollowedScope(scope, lambda: _record_state(session))


def _read_result(result: Any) -> Any:
    """Contents -> their text, where it is all they are; else as plain data."""
    if not isinstance(result, list):
        return result
    if all(getattr(content, "type", None) == "text" for content in result):
        return "\n".join(content.text for content in result)
    return [each.to_dict() if hasattr(each, "to_dict") else each for each in result]
