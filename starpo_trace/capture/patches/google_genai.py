"""Google GenAI SDK -> recorded answers and embeddings, of the Gemini API and Vertex AI.

All ways in (models, chats, automatic function calling, continuations) pass the client's four
request methods, where request and answer are the JSON of the wire.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.invocation import Call, begin_call
from starpo_trace.capture.patches.base import PatchSet, make_async_recorder, make_recorder
from starpo_trace.capture.patches.google_genai_wire import (
    GenerateChunks,
    load_answer,
    read_embed_request,
    read_embed_response,
    read_generate_request,
    read_generate_response,
)
from starpo_trace.capture.patches.plain import get_fields
from starpo_trace.capture.patches.streams import RecordedAsyncIterator, RecordedIterator

TESTED: Final = {"google-genai": ">=1.75,<4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How to read the traffic of one method of the API."""

    read_request: Callable[[Mapping[str, Any], Mapping[str, Any]], LLMRequest]
    """Server and body -> request."""
    read_response: Callable[[Mapping[str, Any]], LLMResponse]
    """Answer as JSON -> response."""


_GENERATE: Final = Method(read_request=read_generate_request, read_response=read_generate_response)
_EMBED: Final = Method(read_request=read_embed_request, read_response=read_embed_response)
_METHODS: Final = {
    "generateContent": _GENERATE,
    "streamGenerateContent": _GENERATE,
    "embedContent": _EMBED,
    "batchEmbedContents": _EMBED,
}
_ARGUMENTS: Final = ("http_method", "path", "request_dict", "http_options")
_MODEL_PREFIXES: Final = ("models/", "publishers/google/models/")


def apply(patches: PatchSet, api_client: ModuleType) -> None:
    """Patch the module `google.genai._api_client`."""
    client = api_client.BaseApiClient
    patches.wrap(client, "request", make_recorder(_begin, _end))
    patches.wrap(client, "async_request", make_async_recorder(_begin, _end))
    patches.wrap(client, "request_streamed", make_recorder(_begin_stream, _end_stream))
    patches.wrap(client, "async_request_streamed", make_async_recorder(_begin_stream, _end_stream))


def _begin(
    client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, is_stream: bool = False
) -> tuple[Call, Method] | None:
    given: dict[str, Any] = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    model, _, name = given["path"].partition("?")[0].rpartition(":")
    body = given["request_dict"]
    method = _METHODS.get(name)
    if method is None and name == "predict" and _is_text_embedding(body):
        method = _EMBED
    if method is None or given["http_method"].lower() != "post":
        return None
    options = given.get("http_options")
    call = begin_call(_read_request, method, client, model, body, options, is_stream)
    return None if call is None else (call, method)


def _begin_stream(
    client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Call, Method] | None:
    return _begin(client, args, kwargs, is_stream=True)


def _end(call: Call, method: Method, result: Any) -> Any:
    call.finish(method.read_response(load_answer(result)))
    return result


def _end_stream(call: Call, method: Method, result: Any) -> Any:
    """Answer with an iterator in place of the generator, which only the SDK itself reads."""
    if hasattr(result, "__anext__"):
        return RecordedAsyncIterator(result, call, GenerateChunks())
    return RecordedIterator(result, call, GenerateChunks())


def _read_request(
    method: Method,
    client: Any,
    model: str,
    body: Mapping[str, Any],
    options: Any,
    is_stream: bool,  # noqa: FBT001 (passed on by begin_call)
) -> LLMRequest:
    defaults = get_fields(getattr(client, "_http_options", None))
    given = get_fields(options)
    for prefix in _MODEL_PREFIXES:
        model = model.removeprefix(prefix)
    for each in (defaults, given):
        body = _merge(body, each.get("extra_body") or {})
    url = urlsplit(str(given.get("base_url") or defaults.get("base_url") or ""))
    server = {
        "provider": "gcp.vertex_ai" if getattr(client, "vertexai", False) else "gcp.gemini",
        "model": model,
        "address": url.hostname,
        "port": url.port,
        "is_stream": is_stream,
    }
    return method.read_request(server, body)


def _is_text_embedding(body: Mapping[str, Any]) -> bool:
    instances = body.get("instances") or ()
    return bool(instances) and all("content" in get_fields(each) for each in instances)


def _merge(body: Mapping[str, Any], extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """Body with the extra body that the SDK will merge into it."""
    if not extra:
        return body
    merged = dict(body)
    for name, value in extra.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[name] = _merge(before, value)
        else:
            merged[name] = value
    return merged
