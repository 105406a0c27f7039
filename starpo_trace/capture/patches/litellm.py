"""LiteLLM -> recorded calls, each with what the SDK below it saw on the wire.

Seams are the public functions and the methods of `Router`, which newer versions keep in its core, a
class of another module. They call each other, and for many providers an SDK that is recorded too;
all of that is one call, retries and fallbacks included: an attempt that failed is an event of it.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from inspect import Signature, iscoroutinefunction, signature
from types import ModuleType
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.invocation import Call, begin_call, note_routing
from starpo_trace.capture.patches.base import PatchSet, make_async_recorder, make_recorder
from starpo_trace.capture.patches.litellm_chat import (
    ChatModelChunks,
    read_chat_arguments,
    read_chat_model_response,
    read_completion_arguments,
    read_embedding_arguments,
    read_embedding_response,
    read_responses_arguments,
)
from starpo_trace.capture.patches.litellm_streams import StreamWatch, note_raw_chunk
from starpo_trace.capture.patches.openai_completions import (
    CompletionChunks,
    read_completion_answer,
)
from starpo_trace.capture.patches.openai_responses import ResponseEvents, read_responses_answer
from starpo_trace.capture.patches.streams import ChunkAccumulator

TESTED: Final = {"litellm": ">=1.83,<1.111"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """How to read the calls of one public function."""

    read_request: Callable[[Mapping[str, Any]], LLMRequest]
    """Arguments by name -> request."""
    read_response: Callable[[Any], LLMResponse]
    """LiteLLM's object -> response."""
    make_accumulator: Callable[[], ChunkAccumulator] | None = None
    """For streams."""


_CHAT: Final = Function(
    read_request=read_chat_arguments,
    read_response=read_chat_model_response,
    make_accumulator=ChatModelChunks,
)
_TEXT: Final = Function(
    read_request=read_completion_arguments,
    read_response=read_completion_answer,
    make_accumulator=CompletionChunks,
)
_EMBEDDING: Final = Function(
    read_request=read_embedding_arguments, read_response=read_embedding_response
)
_RESPONSES: Final = Function(
    read_request=read_responses_arguments,
    read_response=read_responses_answer,
    make_accumulator=ResponseEvents,
)
_FUNCTIONS: Final = {
    "completion": _CHAT,
    "acompletion": _CHAT,
    "completion_with_retries": _CHAT,
    "acompletion_with_retries": _CHAT,
    "text_completion": _TEXT,
    "atext_completion": _TEXT,
    "embedding": _EMBEDDING,
    "aembedding": _EMBEDDING,
    "responses": _RESPONSES,
    "aresponses": _RESPONSES,
}
_ROUTER_METHODS: Final = (
    *("completion", "acompletion", "text_completion", "atext_completion"),
    *("embedding", "aembedding"),
)
_CORE: Final = "litellm.router_rust.core"
_INNER_FLAGS: Final = ("acompletion", "atext_completion", "aembedding", "aresponses")
"""Set where an async function calls its sync one, which then only makes a coroutine."""


def apply(patches: PatchSet, litellm: ModuleType) -> None:
    """Patch the package `litellm`, also where its functions were imported by name already."""
    watch = StreamWatch(patches)
    if litellm.__name__ == _CORE:
        _wrap_router(patches, litellm.RustCore, watch)
        return
    for name, function in _FUNCTIONS.items():
        original = getattr(litellm, name)
        homes = [litellm, *_find_importers(original, name, litellm)]
        patches.wrap_shared(homes, name, _make_wrapper(function, original, watch))
    if "completion" in vars(litellm.Router):
        _wrap_router(patches, litellm.Router, watch)
    reader = import_module("litellm.llms.openai.chat.gpt_transformation")
    patches.wrap(reader.OpenAIChatCompletionStreamingHandler, "chunk_parser", note_raw_chunk)


def _wrap_router(patches: PatchSet, router: Any, watch: StreamWatch) -> None:
    own = ("aresponses",) if "aresponses" in vars(router) else ()  # else made for each object
    for name in (*_ROUTER_METHODS, *own):
        original = getattr(router, name)
        patches.wrap(router, name, _make_wrapper(_FUNCTIONS[name], original, watch))


def _find_importers(original: Any, name: str, home: ModuleType) -> list[ModuleType]:
    return [
        module
        for module in list(sys.modules.values())
        if module is not home and type(module) is ModuleType and vars(module).get(name) is original
    ]


def _make_wrapper(function: Function, original: Any, watch: StreamWatch) -> Any:
    def begin(
        instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Call, None] | None:
        if any(kwargs.get(flag) is True for flag in _INNER_FLAGS):
            return None
        call = begin_call(_read_request, function, original, args, kwargs)
        if call is None:
            return None
        if instance is not None:  # a router
            group = args[0] if args else kwargs.get("model")
            note_routing(call, {semconv.ROUTER_GROUP: str(group)})
        return call, None

    def end(call: Call, _note: None, result: Any) -> Any:
        note_routing(call, _read_routing(result))
        if hasattr(result, "__next__") or hasattr(result, "__anext__"):
            if function.make_accumulator is None or not watch.record(
                result, call, function.make_accumulator()
            ):
                call.finish(LLMResponse(is_unread=True))
        else:
            call.finish(function.read_response(result))
        return result

    is_async = iscoroutinefunction(original)
    return make_async_recorder(begin, end) if is_async else make_recorder(begin, end)


def _read_routing(result: Any) -> dict[str, str]:
    hidden = getattr(result, "_hidden_params", None)
    deployment = hidden.get("model_id") if isinstance(hidden, dict) else None
    return {} if deployment is None else {semconv.ROUTER_DEPLOYMENT: str(deployment)}


def _read_request(
    function: Function, original: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> LLMRequest:
    arguments: dict[str, Any] = {}
    if args:
        names = [name for name in _read_signature(original).parameters if name != "self"]
        arguments.update(zip(names, args, strict=False))
    arguments.update(kwargs)
    return function.read_request(arguments)


@lru_cache(maxsize=64)
def _read_signature(function: Any) -> Signature:
    return signature(function)
