"""Mistral SDK -> recorded chats, agents' completions, completions and embeddings.

Two seams for one call: the public method, which knows how it ended (the SDK raises for an error
status only there), and `do_request` below it, which sees the bodies of the wire.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import orjson
from opentelemetry import context as otel_context

from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.invocation import Call, begin_call
from starpo_trace.capture.patches.base import PatchSet, make_async_recorder, make_recorder
from starpo_trace.capture.patches.mistral_chat import (
    read_completion_request,
    read_completion_response,
    read_embeddings_request,
    read_embeddings_response,
)
from starpo_trace.capture.patches.mistral_chunks import CompletionChunks
from starpo_trace.capture.patches.own_spans import writes_where_we_write
from starpo_trace.capture.patches.streams import record_stream
from starpo_trace.guard import Guard

TESTED: Final = {"mistralai": ">=3.7,<4"}

_EXCHANGE_KEY: Final = otel_context.create_key("starpo-mistral-exchange")
_COMPLETION_CLASSES: Final = ("Chat", "Agents", "Fim")


class _Method(NamedTuple):
    """One public method of the SDK."""

    provider: str
    operation: str = "chat"
    is_stream: bool = False
    is_embedding: bool = False


class _Exchange:
    """What the lower seam sees of a call that the upper one began."""

    __slots__ = ("has_request", "method", "response")

    def __init__(self, method: _Method) -> None:
        self.method = method
        self.has_request = False
        self.response: LLMResponse | None = None

    def note_request(self, http_request: Any) -> None:
        """Complete the call's record with the request as sent."""
        if self.has_request or self.method.is_embedding:
            return
        self.has_request = True
        server = {
            "provider": self.method.provider,
            "address": http_request.url.host,
            "port": http_request.url.port,
            "is_stream": self.method.is_stream,
        }
        body = orjson.loads(http_request.content)
        begin_call(read_completion_request, server, body)  # inside the other, whose record it joins

    def note_response(self, http_response: Any) -> None:
        """Read an answer whose body is there."""
        method = self.method
        if http_response.status_code == 200 and not (method.is_stream or method.is_embedding):
            self.response = read_completion_response(orjson.loads(http_response.content))


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch a module of the SDK: one of the public ones, `basesdk`, or its telemetry."""
    if module.__name__.endswith("basesdk"):
        patches.wrap(module.BaseSDK, "do_request", _do_request)
        patches.wrap(module.BaseSDK, "do_request_async", _do_request_async)
    elif module.__name__.endswith("tracing"):
        patches.wrap(module, "get_or_create_otel_tracer", _get_tracer)
    elif module.__name__.endswith("embeddings"):
        method = _Method("mistral_ai", is_embedding=True)
        patches.wrap(module.Embeddings, "create", make_recorder(*_make_steps(method)))
        patches.wrap(module.Embeddings, "create_async", make_async_recorder(*_make_steps(method)))
    else:
        provider = _name_provider(module.__name__)
        for name in _COMPLETION_CLASSES:
            if name in vars(module):
                _patch_completions(patches, vars(module)[name], provider)


def _name_provider(module: str) -> str:
    if ".azure." in module:
        return "azure.ai.inference"
    return "gcp.vertex_ai" if ".gcp." in module else "mistral_ai"


def _patch_completions(patches: PatchSet, owner: Any, provider: str) -> None:
    operation = "text_completion" if owner.__name__ == "Fim" else "chat"
    plain, stream = _Method(provider, operation), _Method(provider, operation, is_stream=True)
    patches.wrap(owner, "complete", make_recorder(*_make_steps(plain)))
    patches.wrap(owner, "complete_async", make_async_recorder(*_make_steps(plain)))
    patches.wrap(owner, "stream", make_recorder(*_make_steps(stream)))
    patches.wrap(owner, "stream_async", make_async_recorder(*_make_steps(stream)))


def _make_steps(method: _Method) -> tuple[Any, Any]:
    """Public method -> how its call begins, and how it ends."""

    def begin(
        sdk: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Call, _Exchange] | None:
        call = begin_call(_read_outline, method, sdk, kwargs)
        if call is None:
            return None
        exchange = _Exchange(method)
        call.context = otel_context.set_value(_EXCHANGE_KEY, exchange, call.context)
        return call, exchange

    def end(call: Call, exchange: _Exchange, result: Any) -> Any:
        if method.is_embedding:
            call.finish(read_embeddings_response(result))
        elif not method.is_stream:
            call.finish(exchange.response or LLMResponse(is_unread=True))
        elif not record_stream(result, call, CompletionChunks(), name="generator"):
            call.finish(LLMResponse(is_unread=True))
        return result

    return begin, end


def _read_outline(method: _Method, sdk: Any, kwargs: Mapping[str, Any]) -> LLMRequest:
    """What is known before the SDK has checked and encoded its arguments."""
    url = urlsplit(str(kwargs.get("server_url") or sdk.sdk_configuration.get_server_details()[0]))
    server = {
        "provider": method.provider,
        "address": url.hostname,
        "port": url.port,
        "is_stream": method.is_stream,
    }
    if method.is_embedding:
        return read_embeddings_request(server, kwargs)
    model = str(kwargs.get("model") or kwargs.get("agent_id") or "")
    return LLMRequest(
        operation=method.operation, model=model, messages=(), is_passed_on=True, **server
    )


def _do_request(
    wrapped: Callable[..., Any], _sdk: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    exchange: Any = otel_context.get_value(_EXCHANGE_KEY)
    if exchange is None:
        return wrapped(*args, **kwargs)
    with Guard("reading a request"):
        exchange.note_request(kwargs["request"])
    response = wrapped(*args, **kwargs)
    with Guard("reading a model's answer"):
        exchange.note_response(response)
    return response


async def _do_request_async(
    wrapped: Callable[..., Any], _sdk: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    exchange: Any = otel_context.get_value(_EXCHANGE_KEY)
    if exchange is None:
        return await wrapped(*args, **kwargs)
    with Guard("reading a request"):
        exchange.note_request(kwargs["request"])
    response = await wrapped(*args, **kwargs)
    with Guard("reading a model's answer"):
        exchange.note_response(response)
    return response


def _get_tracer(
    wrapped: Callable[..., Any], _owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Leave out the SDK's own span of a call that we record into the same provider."""
    is_enabled, tracer = wrapped(*args, **kwargs)
    if is_enabled and otel_context.get_value(_EXCHANGE_KEY) is not None:
        with Guard("looking at the SDK's own telemetry"):
            is_enabled = not writes_where_we_write(tracer)
    return is_enabled, tracer
