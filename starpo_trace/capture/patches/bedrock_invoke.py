"""Bodies of Bedrock's InvokeModel, one format per model family -> `LLMRequest`, `LLMResponse`.

Anthropic's Messages, chat completions and Nova's Converse-like bodies are read by what reads them
elsewhere; older models' bodies are a prompt and a text.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.anthropic_events import MessageEvents
from starpo_trace.capture.patches.anthropic_messages import (
    read_messages_request,
    read_messages_response,
)
from starpo_trace.capture.patches.bedrock_converse import (
    read_converse_request,
    read_converse_response,
)
from starpo_trace.capture.patches.bedrock_events import ConverseEvents
from starpo_trace.capture.patches.openai_chat import (
    ChatChunks,
    read_chat_request,
    read_chat_response,
)
from starpo_trace.capture.patches.parameters import put_others, take_parameters
from starpo_trace.capture.patches.streams import ChunkAccumulator


class Family(NamedTuple):
    """How to read the bodies of one kind of models."""

    read_request: Callable[[Mapping[str, Any], Mapping[str, Any]], LLMRequest]
    """Server and parameters as given to botocore -> request."""
    read_response: Callable[[Any, Mapping[str, str]], LLMResponse]
    """Body and HTTP headers of the answer -> response."""
    make_accumulator: Callable[[], ChunkAccumulator]
    """For streams."""


def find_family(params: Mapping[str, Any]) -> Family:
    """Parameters as given to botocore -> how to read their body and its answer."""
    body = _read_body(params)
    model = str(params.get("modelId", ""))
    if "embed" in model and not body.get("messages"):
        return _EMBEDDING
    if "anthropic_version" in body:
        return _ANTHROPIC
    if not body.get("messages"):
        return _TEXT
    if "schemaVersion" in body or "inferenceConfig" in body or "nova" in model:
        return _NOVA
    return _CHAT


def _read_body(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Body of a request; empty when it is no JSON object, or a file that only botocore may read."""
    body = params.get("body")
    if not isinstance(body, (bytes, bytearray, str)):
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _with_model(params: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**_read_body(params), "model": params.get("modelId", "")}


def _read_nova_request(server: Mapping[str, Any], params: Mapping[str, Any]) -> LLMRequest:
    return read_converse_request(server, {**_read_body(params), "modelId": params["modelId"]})


def _read_text_request(server: Mapping[str, Any], params: Mapping[str, Any]) -> LLMRequest:
    body = _read_body(params)
    parameters: dict[str, Any] = {}
    others = {key: value for key, value in body.items() if key not in _PROMPT_FIELDS}
    put_others(take_parameters(others, _TEXT_KEYS, parameters), parameters)
    prompts = [body[name] for name in _PROMPT_FIELDS if type(body.get(name)) is str]
    parts = [{"type": "text", "content": prompt} for prompt in prompts]
    return LLMRequest(
        operation="text_completion",
        model=str(params.get("modelId", "")),
        messages=[{"role": "user", "parts": parts}],
        parameters=parameters,
        **server,
    )


def _read_embedding_request(server: Mapping[str, Any], params: Mapping[str, Any]) -> LLMRequest:
    body = _read_body(params)
    query = {key: value for key, value in body.items() if key in _QUERY_FIELDS}
    parameters: dict[str, Any] = {}
    put_others({key: value for key, value in body.items() if key not in query}, parameters)
    return LLMRequest(
        operation="embeddings",
        is_retrieval=True,
        model=str(params.get("modelId", "")),
        messages=(),
        query=next(iter(query.values())) if len(query) == 1 else query,
        parameters=parameters,
        **server,
    )


def _read_embedding_response(answer: Any, headers: Mapping[str, str]) -> LLMResponse:
    vectors = answer.get("embeddings") or [answer.get("embedding") or ()]
    while isinstance(vectors, dict):  # by type of number
        vectors = next(iter(vectors.values()), None) or [()]
    first = vectors[0]
    first = first.get("embedding", ()) if isinstance(first, dict) else first
    return LLMResponse(
        id=answer.get("id"), usage=_read_usage(headers), num_dimensions=len(first) or None
    )


def _read_text_response(answer: Any, headers: Mapping[str, str]) -> LLMResponse:
    choice = answer
    for name in ("results", "outputs", "generations"):
        if answer.get(name):
            choice = answer[name][0]
    text = next((choice[name] for name in _ANSWER_FIELDS if choice.get(name) is not None), None)
    reason = next((choice[name] for name in _REASON_FIELDS if choice.get(name)), None)
    message: dict[str, Any] = {
        "role": "assistant",
        "parts": [{"type": "unknown", "raw": answer}]
        if text is None
        else [{"type": "text", "content": text}],
    }
    if reason is not None:
        message["finish_reason"] = reason
    return LLMResponse(
        messages=[message],
        finish_reasons=() if reason is None else [reason],
        usage=_read_usage(headers),
    )


class _TextChunks:
    """Chunks of a streamed completion, put together."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._last: dict[str, Any] = {}
        self._metrics: Mapping[str, Any] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take one chunk in."""
        self._metrics = chunk.get("amazon-bedrock-invocationMetrics") or self._metrics
        choices = chunk.get("outputs") or [chunk]
        for name, value in choices[0].items():
            if name in _ANSWER_FIELDS and type(value) is str:
                self._texts.append(value)
            elif value is not None:
                self._last[name] = value

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        if not self._texts:
            return LLMResponse()
        headers = {
            header: str(self._metrics[name])
            for name, header in _METRICS.items()
            if name in self._metrics
        }
        return _read_text_response({**self._last, "text": "".join(self._texts)}, headers)


def _read_usage(headers: Mapping[str, str]) -> dict[str, int]:
    """Counts that Bedrock puts in HTTP headers for models whose bodies have none."""
    counts = {}
    for name, key in _USAGE_HEADERS.items():
        count = headers.get(name, "")
        if count.isdigit():
            counts[key] = int(count)
    return counts


_USAGE_HEADERS: Final = {
    "x-amzn-bedrock-input-token-count": semconv.USAGE_INPUT_TOKENS,
    "x-amzn-bedrock-output-token-count": semconv.USAGE_OUTPUT_TOKENS,
}
_METRICS: Final = {
    "inputTokenCount": "x-amzn-bedrock-input-token-count",
    "outputTokenCount": "x-amzn-bedrock-output-token-count",
}
_PROMPT_FIELDS: Final = ("prompt", "inputText")
_QUERY_FIELDS: Final = frozenset(
    {"inputText", "inputImage", "texts", "images", "inputs", "singleEmbeddingParams"}
)
_ANSWER_FIELDS: Final = ("generation", "outputText", "text", "completion")
_REASON_FIELDS: Final = ("stop_reason", "completionReason", "finish_reason")
_TEXT_KEYS: Final = {
    "temperature": semconv.REQUEST_TEMPERATURE,
    "top_p": semconv.REQUEST_TOP_P,
    "top_k": semconv.REQUEST_TOP_K,
    "max_tokens": semconv.REQUEST_MAX_TOKENS,
    "max_gen_len": semconv.REQUEST_MAX_TOKENS,
    "stop": semconv.REQUEST_STOP_SEQUENCES,
}
_ANTHROPIC: Final = Family(
    lambda server, params: read_messages_request(server, _with_model(params)),
    lambda answer, _headers: read_messages_response(answer),
    MessageEvents,
)
_CHAT: Final = Family(
    lambda server, params: read_chat_request(server, _with_model(params)),
    lambda answer, _headers: read_chat_response(answer),
    ChatChunks,
)
_NOVA: Final = Family(
    _read_nova_request, lambda answer, _headers: read_converse_response(answer), ConverseEvents
)
_TEXT: Final = Family(_read_text_request, _read_text_response, _TextChunks)
_EMBEDDING: Final = Family(_read_embedding_request, _read_embedding_response, _TextChunks)
