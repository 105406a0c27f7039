"""AutoGen's teams -> runs, their members inside of them, and what their managers decide by.

Members and manager send each other messages through a runtime, which handles each in a task of its
own, perhaps begun outside of the run; so a message takes the Context of its run along.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context, create_key

from starpo_trace.capture.agents import AgentRun, AgentScope, Scope, begin_agent
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import EndKind, current_trajectory
from starpo_trace.capture.frameworks.autogen import TESTED, leave_out, open_agent
from starpo_trace.capture.keys import TRAJECTORY_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import wrap_scope
from starpo_trace.capture.states import record_change
from starpo_trace.guard import Guard

__all__ = ["TESTED", "apply"]

_TEAM_KEY: Final = create_key("starpo-autogen-team")
_SENT_KEY: Final = create_key("starpo-autogen-sent")
_NOTE: Final = "starpo_context"
"""Attribute of a message's metadata: the Context that it is handled in."""
_LIMITS: Final = {"MaxMessageTermination", "TokenUsageTermination", "TimeoutTermination"}
_TURNS: Final = {"GroupChatStart", "GroupChatAgentResponse", "GroupChatTeamResponse"}
"""Messages that make a manager decide."""


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch the module of the runtime, or the package of teams, once it has been imported."""
    if module.__name__ != "autogen_agentchat.teams":
        patches.wrap(module, "get_telemetry_envelope_metadata", _note_context)
        patches.wrap(module.SingleThreadedAgentRuntime, "_process_send", _process_in_context)
        patches.wrap(module.SingleThreadedAgentRuntime, "_process_publish", _process_in_context)
        return
    wrap_scope(patches, module.BaseGroupChat, "run_stream", _open_team)
    members = sys.modules[f"{module.__name__}._group_chat._chat_agent_container"]
    patches.wrap(members, "trace_invoke_agent_span", leave_out)
    member = members.ChatAgentContainer
    wrap_scope(patches, member, "handle_request", _open_member)
    patches.wrap(member, "publish_message", _publish_for_team)
    manager = sys.modules[f"{module.__name__}._group_chat._base_group_chat_manager"]
    patches.wrap(manager.BaseGroupChatManager, "on_message_impl", _record_states)
    patches.wrap(manager.BaseGroupChatManager, "_signal_termination", _note_end)


class _TeamScope:
    """A team that runs."""

    def __init__(self, scope: AgentScope, name: str) -> None:
        self.context: Context = otel_context.set_value(_TEAM_KEY, self, scope.context)
        self.name = name
        self.end: tuple[EndKind, str] | None = None
        """How and why it stopped, where that was no end of its own."""
        self._scope = scope

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it; a run that was named around it may go on."""
        if error is None and self.end:
            end, reason = self.end
            self._scope.end_early(reason, end)
        self._scope.finish(error, result)


def _open_team(team: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope | None:
    scope = begin_agent(AgentRun(name=team.name, owner=team))
    return None if scope is None else _TeamScope(scope, team.name)


def _open_member(container: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    member = container._agent  # a team begins by itself
    return open_agent(member, args, kwargs) if hasattr(member, "on_messages_stream") else None


def _get_team() -> _TeamScope | None:
    team = otel_context.get_value(_TEAM_KEY)
    return team if isinstance(team, _TeamScope) else None


async def _publish_for_team(
    wrapped: Callable[..., Any], _member: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a member tells the team is handled in the team, not in the member."""
    team = _get_team()
    if team is None:
        return await wrapped(*args, **kwargs)
    attachment = Attachment(otel_context.set_value(_SENT_KEY, team.context))
    try:
        return await wrapped(*args, **kwargs)
    finally:
        attachment.detach()


def _note_context(
    wrapped: Callable[..., Any], _module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    metadata = wrapped(*args, **kwargs)
    with Guard("giving a message its run"):
        if current_trajectory() is not None:
            sent = otel_context.get_value(_SENT_KEY)
            setattr(metadata, _NOTE, sent or otel_context.get_current())
    return metadata


async def _process_in_context(
    wrapped: Callable[..., Any], _runtime: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    context = None
    with Guard("giving a message its run"):
        envelope = args[0] if args else kwargs["message_envelope"]
        context = getattr(envelope.metadata, _NOTE, None)
    if context is None or _is_in_run_of(context):
        return await wrapped(*args, **kwargs)
    attachment = Attachment(context)
    try:
        return await wrapped(*args, **kwargs)
    finally:
        attachment.detach()


def _is_in_run_of(context: Context) -> bool:
    """A runtime that was started in a run is in the Context of there already."""
    return otel_context.get_value(TRAJECTORY_KEY, context) is current_trajectory()


async def _record_states(
    wrapped: Callable[..., Any], manager: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    team = _get_team()
    message = args[0] if args else kwargs["message"]
    if team is None or type(message).__name__ not in _TURNS:
        return await wrapped(*args, **kwargs)
    await _record_state(team, manager)
    result = await wrapped(*args, **kwargs)
    await _record_state(team, manager)
    return result


async def _record_state(team: _TeamScope, manager: Any) -> None:
    """What a manager would save, where it changed; the messages are in the prompts."""
    with Guard("recording a team's state"):
        bare = copy.copy(manager)
        bare._message_thread = []
        saved = {**await bare.save_state()}
        saved.pop("message_thread", None)
        record_change(saved, team.name)


async def _note_end(
    wrapped: Callable[..., Any], manager: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Whether a limit, or the program, stops the team: the names of conditions tell."""
    with Guard("noting why a team stopped"):
        stop = args[0] if args else kwargs["message"]
        sources = set(stop.source.split(", "))
        limit = f"Maximum number of turns {manager._max_turns} reached."
        is_out_of_turns = stop.content in (limit, "Max rounds reached.")
        if team := _get_team():
            if sources <= _LIMITS or (sources == {manager._name} and is_out_of_turns):
                team.end = "truncated", stop.content
            elif sources == {"ExternalTermination"}:
                team.end = "abandoned", stop.content
    return await wrapped(*args, **kwargs)
