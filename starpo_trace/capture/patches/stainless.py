"""Calls through SDKs with the `_base_client` that OpenAI's and Anthropic's share -> recorded calls.

The one seam that every way in passes (`create`, `parse`, `stream`, raw and streaming responses,
`client.post`) is the client's `request` method. Automatic retries happen inside it and are one
call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.util.types import AttributeValue

from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.invocation import Call, begin_call
from starpo_trace.capture.patches.bodies import record_body
from starpo_trace.capture.patches.streams import ChunkAccumulator, record_stream
from starpo_trace.guard import Guard

if TYPE_CHECKING:
    from starpo_trace.capture.patches.base import Begin, End


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How to read the traffic of one path of an API."""

    read_request: Callable[[Mapping[str, Any], Mapping[str, Any]], LLMRequest]
    """Server (provider, address, port, is_stream) and body -> request."""
    read_response: Callable[[Any], LLMResponse]
    """Answer, as the SDK's object or parsed JSON -> response."""
    make_accumulator: Callable[[], ChunkAccumulator] | None = None
    """For streams, whose chunks are the SDK's objects or parsed JSON."""
    answer_field: str = "id"
    """A field that the SDK's object has when it is this answer."""
    begin: Callable[..., Call | None] = begin_call
    """Starts the record; called as `begin_call` is."""
    read_path: Callable[[str], Mapping[str, AttributeValue]] | None = None
    """Path -> attributes that it holds."""


FindEndpoint = Callable[[str, str], Endpoint | None]
"""Method in lower case and path -> how to read it, or None to leave it alone."""


def make_steps(
    find_endpoint: FindEndpoint, provider: str
) -> "tuple[Begin[Endpoint], End[Endpoint]]":
    """How calls to an SDK's endpoints are recorded -> the steps of a recorder."""

    def begin(
        client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Call, Endpoint] | None:
        options = kwargs["options"] if "options" in kwargs else args[1]
        endpoint = find_endpoint(options.method.lower(), options.url)
        if endpoint is None:
            return None
        call = endpoint.begin(_read_request, endpoint, client, options, kwargs, provider)
        if call is None:
            return None
        if callable(options.post_parser):
            options.post_parser = _keep_answer(options.post_parser, call, endpoint)
        return call, endpoint

    def end(call: Call, endpoint: Endpoint, result: Any) -> Any:
        if call.is_stream and endpoint.make_accumulator is not None:
            if record_stream(result, call, endpoint.make_accumulator()):
                return result
        elif type(result) is dict or endpoint.answer_field in getattr(result, "__dict__", ()):
            call.finish(endpoint.read_response(result))
            return result
        if not record_body(result, call, endpoint.read_response, endpoint.make_accumulator):
            call.finish(LLMResponse(is_unread=True))
        return result

    return begin, end


def _keep_answer(
    parse: Callable[[Any], Any], call: Call, endpoint: Endpoint
) -> Callable[[Any], Any]:
    """The step of `parse()` that reads the answer, which is recorded also where that fails."""

    def parse_answer(answer: Any) -> Any:
        try:
            return parse(answer)
        except Exception as error:
            with Guard("recording an answer that the program cannot parse"):
                call.finish(endpoint.read_response(answer), error=error)
            raise

    return parse_answer


def _read_request(
    endpoint: Endpoint, client: Any, options: Any, kwargs: Mapping[str, Any], provider: str
) -> LLMRequest:
    body = options.json_data or {}
    if options.extra_json:
        body = {**body, **options.extra_json}
    # The property does more than to return it.
    base_url = getattr(client, "_base_url", None) or getattr(client, "base_url", None)
    host, port = _read_address(base_url)
    server = {
        "provider": name_provider(type(client).__name__, host, provider),
        "address": host,
        "port": port,
        "is_stream": bool(kwargs.get("stream")),
    }
    request = endpoint.read_request(server, body)
    if endpoint.read_path is not None:
        request.parameters = {**request.parameters, **endpoint.read_path(options.url)}
    return request


def _read_address(base_url: Any) -> tuple[str | None, int | None]:
    """Host and port of a client's base URL; httpx decodes them anew each time it is asked."""
    known = _addresses.get(id(base_url))
    if known is not None and known[0] is base_url:
        return known[1]
    address = (getattr(base_url, "host", None), getattr(base_url, "port", None))
    if len(_addresses) >= _MAX_ADDRESSES:
        _addresses.clear()
    _addresses[id(base_url)] = (base_url, address)
    return address


_MAX_ADDRESSES: Final = 64
_addresses: dict[int, tuple[Any, tuple[str | None, int | None]]] = {}
"""By the identity of the URL object, which is kept so that no other gets the same."""


@lru_cache(maxsize=256)
def name_provider(client_class: str, host: str | None, provider: str) -> str:
    """GenAI's name for the provider that a client of this class and host speaks to."""
    for part, name in _PROVIDERS_BY_CLASS.items():
        if part in client_class:
            return name
    for ending, name in _PROVIDERS_BY_HOST.items():
        if host is not None and (host == ending or host.endswith(f".{ending}")):
            return name
    return provider


_PROVIDERS_BY_CLASS: Final = {
    "Azure": "azure.ai.openai",
    "Bedrock": "aws.bedrock",
    "Vertex": "gcp.vertex_ai",
}
_PROVIDERS_BY_HOST: Final = {
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "amazonaws.com": "aws.bedrock",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "api.cohere.ai": "cohere",
}
"""Servers that speak this protocol -> GenAI's well-known names."""
