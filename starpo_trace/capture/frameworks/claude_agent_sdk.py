"""Claude Agent SDK -> runs of `query()` and of `ClaudeSDKClient`, from the stream of messages.

The SDK has no callbacks for model calls, which its program (a process of its own) makes, so the
stream is read where the SDK takes it in: before a tool runs in this process, and as the program
said it, without what the SDK's classes leave out. A run is one `query()`; of a client, what follows
a `query` up to its result.
"""

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from types import ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary

import wrapt
from opentelemetry import context as otel_context
from opentelemetry.context import Context, create_key

from starpo_trace.capture.frameworks.claude_stream import Conversation
from starpo_trace.capture.frameworks.claude_turns import attach
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import wrap_scope
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.guard import Guard

TESTED: Final = {"claude-agent-sdk": ">=0.2.187,<0.3 or >=0.1.7,<0.1.8"}

_KEY: Final = create_key("starpo-claude-conversation")
_conversations: "WeakKeyDictionary[Any, Conversation]" = WeakKeyDictionary()
"""Of each client."""


def apply(patches: PatchSet, package: ModuleType) -> None:
    """Patch the package, once it has been imported."""
    internal = sys.modules["claude_agent_sdk._internal.client"]
    query = sys.modules["claude_agent_sdk._internal.query"].Query
    wrap_scope(patches, internal.InternalClient, "process_query", _open_query)
    patches.wrap(query, "start", _watch_stream)
    patches.wrap(query, "stream_input", _watch_input)
    patches.wrap(query, "_handle_control_request", _answer_in_context)
    patches.wrap(package.ClaudeSDKClient, "connect", _connect)
    patches.wrap(package.ClaudeSDKClient, "query", _ask)
    patches.wrap(package.ClaudeSDKClient, "interrupt", _interrupt)
    patches.wrap(package.ClaudeSDKClient, "disconnect", _disconnect)


class _QueryScope:
    """One `query()`: the run of its conversation."""

    def __init__(self, conversation: Conversation, context: Context) -> None:
        self.context = otel_context.set_value(_KEY, conversation, context)
        self._conversation = conversation

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End the run."""
        del result
        self._conversation.end_run(error)


class _WatchedStream(wrapt.ObjectProxy):
    """Where the SDK puts messages that it has read: they are looked at on the way."""

    def __init__(self, stream: Any, conversation: Conversation) -> None:
        super().__init__(stream)
        self._self_conversation = conversation

    async def send(self, item: Any) -> None:
        """Pass a message on."""
        with Guard("reading a message of the stream"):
            self._self_conversation.read(item)
        await self.__wrapped__.send(item)

    def send_nowait(self, item: Any) -> None:
        """Pass a message on."""
        with Guard("reading a message of the stream"):
            self._self_conversation.read(item)
        self.__wrapped__.send_nowait(item)


def _open_query(
    _client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> _QueryScope | None:
    prompt, options, *_ = [*args, *(kwargs[name] for name in ("prompt", "options")[len(args) :])]
    conversation = Conversation(options, has_many_runs=False)
    context = conversation.begin_run()
    if context is None:
        return None
    if isinstance(prompt, str):
        conversation.add_prompt(prompt)
    return _QueryScope(conversation, context)


def _current_conversation() -> Conversation | None:
    value = otel_context.get_value(_KEY)
    return value if isinstance(value, Conversation) and get_runtime() is not None else None


def _watch_stream(
    wrapped: Callable[..., Any], query: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    with Guard("watching a stream of messages"):
        conversation = _current_conversation()
        if conversation is not None and not isinstance(query._message_send, _WatchedStream):
            query._message_send = _WatchedStream(query._message_send, conversation)
    return wrapped(*args, **kwargs)


def _watch_input(
    wrapped: Callable[..., Any], _query: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    conversation = _current_conversation()
    if conversation is None:
        return wrapped(*args, **kwargs)
    given = args[0] if args else kwargs["stream"]
    return wrapped(_watch_prompts(given, conversation))


async def _watch_prompts(prompts: Any, conversation: Conversation) -> AsyncIterator[Any]:
    """Messages that a program streams in -> the same, each noted before it is sent."""
    async for prompt in prompts:
        with Guard("reading a prompt"):
            if prompt.get("type", "user") == "user":
                conversation.begin_run()
                conversation.add_prompt(prompt["message"]["content"])
        yield prompt


async def _answer_in_context(
    wrapped: Callable[..., Any], _query: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Tools, hooks and permissions that run in this process belong to the run."""
    context = None
    with Guard("finding the run of a request"):
        conversation = _current_conversation()
        if conversation is not None:
            request = args[0] if args else kwargs["request"]
            context = conversation.find_context(request["request"])
    with attach(context):
        return await wrapped(*args, **kwargs)


async def _connect(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    context = None
    with Guard("beginning a session"):
        if get_runtime() is not None:
            conversation = Conversation(client.options, has_many_runs=True)
            _conversations[client] = conversation
            context = otel_context.set_value(_KEY, conversation)
            prompt = args[0] if args else kwargs.get("prompt")
            if isinstance(prompt, str):
                conversation.begin_run()
                conversation.add_prompt(prompt)
    with attach(context):
        return await wrapped(*args, **kwargs)


async def _ask(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    conversation = _conversations.get(client)
    if conversation is None or get_runtime() is None:
        return await wrapped(*args, **kwargs)
    prompt, *more = args or (kwargs["prompt"],)
    kwargs = {name: value for name, value in kwargs.items() if name != "prompt"}
    with Guard("beginning a run"):
        if isinstance(prompt, str):
            conversation.begin_run()
            conversation.add_prompt(prompt)
        else:
            prompt = _watch_prompts(prompt, conversation)
    try:
        return await wrapped(prompt, *more, **kwargs)
    except BaseException as error:
        with Guard("ending a run"):
            conversation.end_run(error)
        raise


def _interrupt(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    conversation = _conversations.get(client)
    if conversation is not None:
        conversation.is_interrupted = True
    return wrapped(*args, **kwargs)


async def _disconnect(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    try:
        return await wrapped(*args, **kwargs)
    finally:
        conversation = _conversations.pop(client, None)
        if conversation is not None:
            with Guard("ending a run"):
                conversation.end_run()
