"""Semantic Kernel -> runs of agents, chats and orchestrations, sub-agents, functions, arguments.

Filters see functions but belong to a kernel, and its diagnostics say nothing of arguments; so what
runs agents and functions is wrapped. An orchestration's agents run in tasks of a runtime, to which
each message brings the Context of who sent it. Model calls are the SDK's below.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, nullcontext
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

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
from starpo_trace.capture.keys import AGENT_KEY, TOOL_KEY
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.own_spans import writes_where_we_write
from starpo_trace.capture.patches.scopes import end_scope, relay_async, wrap_scope
from starpo_trace.capture.states import record_change
from starpo_trace.guard import Guard

TESTED: Final = {"semantic-kernel": ">=1.45,<1.46"}

_CALL_KEY: Final = otel_context.create_key("starpo-semantic-kernel-call")
_senders: dict[int, Context] = {}
"""Id of a message's metadata -> the Context that it was sent in."""


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch one of the modules that have agents, functions, chats or orchestrations."""
    name = module.__name__.rpartition(".")[2]
    if name in ("chat_completion_agent", "openai_responses_agent"):
        kind = "ChatCompletionAgent" if name[0] == "c" else "OpenAIResponsesAgent"
        for method in ("get_response", "invoke", "invoke_stream"):
            wrap_scope(patches, vars(module)[kind], method, _open_agent)
    elif name == "kernel":
        patches.wrap(module.Kernel, "invoke_function_call", _watch_call)
    elif name == "kernel_function":
        wrap_scope(patches, module.KernelFunction, "invoke", _open_tool, _read_result)
        patches.wrap(module.function_tracer, "start_as_current_span", _start_span)
    elif name == "chat_completion_client_base":
        base = module.ChatCompletionClientBase
        wrap_scope(patches, base, "get_chat_message_contents", _open_loop)
        wrap_scope(patches, base, "get_streaming_chat_message_contents", _open_loop)
    elif name == "agent_group_chat":
        patches.wrap(module.AgentGroupChat, "invoke", _run_chat)
        patches.wrap(module.AgentGroupChat, "invoke_stream", _run_chat)
    elif name == "orchestration_base":
        patches.wrap(module.OrchestrationBase, "invoke", _run_orchestration)
    elif name == "group_chat":
        patches.wrap(module.GroupChatManager, "should_terminate", _note_limit)
    else:
        patches.wrap(module, "get_telemetry_envelope_metadata", _keep_sender)
        patches.wrap(module.InProcessRuntime, "_process_send", _handle_message)
        patches.wrap(module.InProcessRuntime, "_process_publish", _handle_message)


class _Run:
    """A run of an agent, a chat or an orchestration."""

    context: Context
    scope: AgentScope

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.name = name
        self.early_stop: str | None = None
        self.arguments = arguments

    def record_arguments(self) -> None:
        """Record the kernel's arguments as a state, where they are others than before."""
        told = {key: value for key, value in self.arguments.items() if value is not None}
        record_change(told, self.name, self.context)

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record how it ended."""
        if error is None and self.early_stop:
            self.scope.end_early(self.early_stop)
        self.scope.finish(error, result)


def _open_run(
    name: str, *, arguments: Mapping[str, Any] | None = None, conversation_id: str | None = None
) -> _Run | None:
    run = _Run(name, arguments or {})
    scope = begin_agent(AgentRun(name=name, owner=run, conversation_id=conversation_id))
    if scope is None:
        return None
    run.scope, run.context = scope, scope.context
    run.record_arguments()
    return run


def _open_agent(agent: Any, _args: Any, kwargs: Mapping[str, Any]) -> Scope | None:
    arguments = {**(agent.arguments or {}), **(kwargs.get("arguments") or {})}
    conversation = getattr(kwargs.get("thread"), "id", None)
    return _open_run(agent.name, arguments=arguments, conversation_id=conversation)


def _open_loop(_service: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    """A model that a kernel's functions are called for; nothing of its own inside of an agent."""
    settings = args[1] if len(args) > 1 else kwargs["settings"]
    behavior = getattr(settings, "function_choice_behavior", None)
    is_loop = bool(behavior and behavior.auto_invoke_kernel_functions and kwargs.get("kernel"))
    if not is_loop or current_trajectory() is not None:
        return None
    return _open_run("kernel", arguments=kwargs.get("arguments"))


async def _watch_call(
    wrapped: Callable[..., Any], _kernel: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """A model's call of a function, which may change what is in the arguments."""
    call = args[0] if args else kwargs.get("function_call")
    attachment = Attachment(otel_context.set_value(_CALL_KEY, call))
    try:
        result = await wrapped(*args, **kwargs)
    finally:
        attachment.detach()
    with Guard("recording a kernel's arguments"):
        run = otel_context.get_value(AGENT_KEY)
        if isinstance(run, _Run):
            run.record_arguments()
    return result


def _open_tool(_function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    """A function that a model called; one that the program or a prompt calls is no tool."""
    call = _find_call(args, kwargs)
    if call is None:
        return None
    call_id = call.call_id or call.id  # the Responses API has both
    return begin_tool(ToolRun(name=call.name, arguments=call.arguments, call_id=call_id))


def _find_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The call that a function's metadata says it is invoked for."""
    metadata = args[2] if len(args) > 2 else kwargs.get("metadata")
    call: Any = otel_context.get_value(_CALL_KEY)
    return call if call is not None and metadata and metadata.get("id") == call.id else None


def _read_result(result: Any) -> str:
    """What the model is told."""
    return str(result.value)


def _start_span(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """No span of its own for a function whose step goes to the same provider: it would count twice."""
    with Guard("looking at the framework's own telemetry"):
        is_step = otel_context.get_value(TOOL_KEY) is not None and _find_call(args, kwargs)
        if is_step and writes_where_we_write(args[0] if args else kwargs["tracer"]):
            return nullcontext(trace.INVALID_SPAN)
    return wrapped(*args, **kwargs)


def _run_chat(
    wrapped: Callable[..., Any], chat: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Agents take turns, up to a number of them."""
    runs: list[_Run] = []

    def begin() -> Scope | None:
        with Guard("beginning a chat"):
            run = _open_run(type(chat).__name__)
            if run is not None:
                runs.append(run)
            return run
        return None

    async def watch(messages: Any) -> AsyncIterator[Any]:
        async with aclosing(messages):
            async for message in messages:
                yield message
        if runs and not (args or kwargs.get("agent")) and not chat.is_complete:
            runs[0].early_stop = "maximum iterations"

    return relay_async(begin, watch(wrapped(*args, **kwargs)))


async def _run_orchestration(
    wrapped: Callable[..., Any],
    orchestration: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """It goes on after the call, until its result is there."""
    run = None
    with Guard("beginning an orchestration"):
        kind = type(orchestration).__name__
        is_named = not orchestration.name.startswith(f"{kind}_")
        run = _open_run(orchestration.name if is_named else kind)
    if run is None:
        return await wrapped(*args, **kwargs)
    attachment = Attachment(run.context)
    try:
        result = await wrapped(*args, **kwargs)
    except BaseException as error:
        end_scope(run, error)
        raise
    finally:
        attachment.detach()
    with Guard("watching an orchestration"):
        _watch_result(result, run)
    return result


def _watch_result(result: Any, run: _Run) -> None:
    tell = result.event.set

    def end() -> None:
        tell()
        error = result.exception
        if error is None and result.cancellation_token.is_cancelled():
            error = asyncio.CancelledError("the orchestration was cancelled")
        end_scope(run, error)

    result.event.set = end


async def _note_limit(
    wrapped: Callable[..., Any], manager: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """A manager's own reasons to end a chat are its end; this one is a limit."""
    told = await wrapped(*args, **kwargs)
    with Guard("reading why a chat ends"):
        run = otel_context.get_value(AGENT_KEY)
        if told.result and isinstance(run, _Run):
            run.early_stop = told.reason
    return told


def _keep_sender(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    metadata = wrapped(*args, **kwargs)
    with Guard("keeping the sender of a message"):
        if current_trajectory() is not None:
            key = id(metadata)
            weakref.finalize(metadata, _senders.pop, key, None).atexit = False
            _senders[key] = otel_context.get_current()
    return metadata


async def _handle_message(
    wrapped: Callable[..., Any], _runtime: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    envelope = args[0] if args else kwargs["message_envelope"]
    context = _senders.get(id(envelope.metadata))
    if context is None:
        return await wrapped(*args, **kwargs)
    attachment = Attachment(context)
    try:
        return await wrapped(*args, **kwargs)
    finally:
        attachment.detach()
