"""Ollama SDK -> recorded chats, completions and embeddings.

The seam is the clients' `_request`, below `chat` and `generate`: the module's own functions
(`ollama.chat`) are methods bound at import, out of reach of a patch of the class, and what it is
given is the body as sent.
"""

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple

from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.invocation import Call, begin_call
from starpo_trace.capture.patches.base import PatchSet, make_async_recorder, make_recorder
from starpo_trace.capture.patches.generators import record_async_generator, record_generator
from starpo_trace.capture.patches.ollama_chat import (
    ChatChunks,
    GenerateChunks,
    read_chat_request,
    read_chat_response,
    read_embed_request,
    read_embed_response,
    read_generate_request,
    read_generate_response,
)
from starpo_trace.capture.patches.streams import ChunkAccumulator

TESTED: Final = {"ollama": ">=0.6,<0.7"}


class _Endpoint(NamedTuple):
    read_request: Callable[[Mapping[str, Any], Mapping[str, Any]], LLMRequest]
    read_response: Callable[[Any], LLMResponse]
    make_accumulator: Callable[[], ChunkAccumulator] | None = None


_ENDPOINTS: Final = {
    "/api/chat": _Endpoint(read_chat_request, read_chat_response, ChatChunks),
    "/api/generate": _Endpoint(read_generate_request, read_generate_response, GenerateChunks),
    "/api/embed": _Endpoint(read_embed_request, read_embed_response),
    "/api/embeddings": _Endpoint(read_embed_request, read_embed_response),
}


def apply(patches: PatchSet, client: ModuleType) -> None:
    """Patch the module `ollama._client`."""
    patches.wrap(client.Client, "_request", make_recorder(_begin, _end))
    patches.wrap(client.AsyncClient, "_request", make_async_recorder(_begin, _end))


def _begin(
    client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Call, _Endpoint] | None:
    endpoint = _ENDPOINTS.get(args[-1])
    if endpoint is None:
        return None
    call = begin_call(_read_request, endpoint, client, kwargs)
    return None if call is None else (call, endpoint)


def _read_request(endpoint: _Endpoint, client: Any, kwargs: Mapping[str, Any]) -> LLMRequest:
    base_url = getattr(client._client, "base_url", None)
    server = {
        "provider": "ollama",
        "address": getattr(base_url, "host", None),
        "port": getattr(base_url, "port", None),
        "is_stream": bool(kwargs.get("stream")),
    }
    return endpoint.read_request(server, kwargs.get("json") or {})


def _end(call: Call, endpoint: _Endpoint, result: Any) -> Any:
    if call.is_stream and endpoint.make_accumulator is not None:
        if isinstance(result, Generator):
            return record_generator(result, call, endpoint.make_accumulator())
        if isinstance(result, AsyncGenerator):
            return record_async_generator(result, call, endpoint.make_accumulator())
        call.finish(LLMResponse(is_unread=True))
    else:
        call.finish(endpoint.read_response(result))
    return result
