"""Gemini requests, answers and chunks, as JSON -> `LLMRequest` and `LLMResponse`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.google_genai_content import (
    read_contents,
    read_system,
    read_turn,
)
from starpo_trace.messages import Message, dump_json

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

_NUMBER_KEYS: Final = {
    "temperature": semconv.REQUEST_TEMPERATURE,
    "topP": semconv.REQUEST_TOP_P,
    "frequencyPenalty": semconv.REQUEST_FREQUENCY_PENALTY,
    "presencePenalty": semconv.REQUEST_PRESENCE_PENALTY,
}
_INTEGER_KEYS: Final = {
    "topK": semconv.REQUEST_TOP_K,
    "maxOutputTokens": semconv.REQUEST_MAX_TOKENS,
    "seed": semconv.REQUEST_SEED,
    "candidateCount": semconv.REQUEST_CHOICE_COUNT,
}
_RECORDED_ELSEWHERE: Final = frozenset(
    {"contents", "systemInstruction", "tools", "generationConfig"}
)
_ANSWER_FIELDS: Final = frozenset({"candidates", "modelVersion", "responseId", "usageMetadata"})
_CANDIDATE_FIELDS: Final = frozenset({"content", "finishReason", "index", "logprobsResult"})
_USAGE_FIELDS: Final = frozenset({"promptTokenCount", "candidatesTokenCount", "totalTokenCount"})
"""What is recorded under keys of its own, as long as nothing was added to it."""


def read_generate_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent -> request."""
    return LLMRequest(
        operation="generate_content",
        messages=[
            *read_system(body.get("systemInstruction")),
            *read_contents(body.get("contents")),
        ],
        tool_definitions=body.get("tools") or None,
        parameters=_read_parameters(body),
        **server,
    )


def _read_parameters(body: Mapping[str, Any]) -> "dict[str, AttributeValue]":
    parameters: dict[str, AttributeValue] = {}
    others: dict[str, Any] = {}
    for name, value in (body.get("generationConfig") or {}).items():
        is_whole = isinstance(value, (int, float)) and value == int(value)
        if name in _NUMBER_KEYS and isinstance(value, (int, float)):
            parameters[_NUMBER_KEYS[name]] = float(value)
        elif name in _INTEGER_KEYS and is_whole:
            parameters[_INTEGER_KEYS[name]] = int(value)
        elif name == "stopSequences" and isinstance(value, list):
            parameters[semconv.REQUEST_STOP_SEQUENCES] = tuple(str(text) for text in value)
        else:
            others[name] = value
    thinking = others.get("thinkingConfig") or {}  # a program's dict is sent as it wrote it
    level = thinking.get("thinkingLevel", thinking.get("thinking_level"))
    if isinstance(level, str):
        parameters[semconv.REQUEST_REASONING_LEVEL] = level
    others = {"generationConfig": others} if others else {}
    others |= {
        name: value
        for name, value in body.items()
        if name not in _RECORDED_ELSEWHERE and name[:1] != "_" and value is not None
    }
    if others:
        parameters[semconv.REQUEST_PARAMETERS] = dump_json(others)
    return parameters


def load_answer(answer: Any) -> dict[str, Any]:
    """The SDK's HTTP response, or one chunk of it -> its JSON."""
    return orjson.loads(answer.body) if answer.body else {}


def read_generate_response(top: Mapping[str, Any]) -> LLMResponse:
    """Answer as JSON -> response."""
    candidates = top.get("candidates") or []
    messages = [_read_candidate(candidate) for candidate in candidates]
    reasons = [each["finishReason"] for each in candidates if each.get("finishReason")]
    extra = {
        name: value
        for name, value in top.items()
        if name not in _ANSWER_FIELDS and value is not None
    }
    usage = top.get("usageMetadata") or {}
    if usage.keys() - _USAGE_FIELDS:
        extra["usageMetadata"] = usage
    blocked = (top.get("promptFeedback") or {}).get("blockReason")
    if not messages and blocked is not None:
        messages = [{"role": "assistant", "parts": [], "finish_reason": blocked}]
        reasons = [blocked]
    if extra and messages:
        messages[0]["extra"] = {**messages[0].get("extra", {}), **extra}
    tokens = ((candidates[0] if candidates else {}).get("logprobsResult") or {}).get(
        "chosenCandidates"
    )
    return LLMResponse(
        id=top.get("responseId"),
        model=top.get("modelVersion"),
        messages=messages,
        finish_reasons=reasons,
        usage=read_usage(usage),
        **({} if tokens is None else _read_tokens(tokens)),
    )


def _read_candidate(candidate: Mapping[str, Any]) -> Message:
    content = candidate.get("content") or {}
    message: Message = {"role": "assistant", "parts": read_turn(content.get("parts") or ())}
    if candidate.get("finishReason"):
        message["finish_reason"] = candidate["finishReason"]
    extra = {
        name: value
        for name, value in candidate.items()
        if name not in _CANDIDATE_FIELDS and value is not None
    }
    alternatives = {
        name: value
        for name, value in (candidate.get("logprobsResult") or {}).items()
        if name != "chosenCandidates"
    }
    if alternatives:
        extra["logprobsResult"] = alternatives
    if extra:
        message["extra"] = extra
    return message


def _read_tokens(tokens: list[Mapping[str, Any]]) -> dict[str, Any]:
    ids = [token.get("tokenId") for token in tokens]
    return {
        "response_tokens": [token.get("token", "") for token in tokens],
        "response_logprobs": [token.get("logProbability") for token in tokens],
        "response_token_ids": None if None in ids else ids,
    }


def read_usage(usage: Mapping[str, Any]) -> dict[str, int]:
    """Usage object -> counts under their keys.

    Gemini's `candidatesTokenCount` leaves out the thoughts, and `promptTokenCount` the results of
    built-in tools; the conventions count both in.
    """
    counts: dict[str, int] = {}
    for key, names in _USAGE_KEYS.items():
        given = [usage[name] for name in names if type(usage.get(name)) is int]
        if given:
            counts[key] = sum(given)
    return counts


_USAGE_KEYS: Final = {
    semconv.USAGE_INPUT_TOKENS: ("promptTokenCount", "toolUsePromptTokenCount"),
    semconv.USAGE_OUTPUT_TOKENS: ("candidatesTokenCount", "thoughtsTokenCount"),
    semconv.USAGE_CACHE_READ_TOKENS: ("cachedContentTokenCount",),
    semconv.USAGE_REASONING_TOKENS: ("thoughtsTokenCount",),
}


class GenerateChunks:
    """Chunks of a streamed answer, put together."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._candidates: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Any) -> None:
        """Take one chunk in."""
        for name, value in load_answer(chunk).items():
            if name == "candidates":
                for position, candidate in enumerate(value):
                    index = candidate.get("index", position)
                    _merge_candidate(self._candidates.setdefault(index, {}), candidate)
            elif name == "usageMetadata":
                self._top[name] = {**self._top.get(name, {}), **value}
            else:
                self._top[name] = value

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        candidates = [self._candidates[index] for index in sorted(self._candidates)]
        return read_generate_response({**self._top, "candidates": candidates})


def _merge_candidate(merged: dict[str, Any], candidate: Mapping[str, Any]) -> None:
    for name, value in candidate.items():
        if name == "content":
            content = merged.setdefault("content", {"parts": []})
            content["parts"].extend(value.get("parts") or ())
        elif name in _PIECEWISE and isinstance(value, Mapping):
            before = merged.setdefault(name, {})
            for field, items in value.items():
                is_list = isinstance(items, list) and isinstance(before.get(field, []), list)
                before[field] = [*before.get(field, ()), *items] if is_list else items
        else:
            merged[name] = value


_PIECEWISE: Final = frozenset({"logprobsResult", "citationMetadata"})
"""What each chunk holds a piece of; anything else is repeated, the last time whole."""


def read_embed_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent -> request."""
    inputs = body.get("requests") or body.get("instances")
    items = [body["content"]] if inputs is None else [each.get("content") for each in inputs]
    others = {
        name: value
        for name, value in (inputs[0] if inputs else body).items()
        if name not in {"content", "model"} and name[:1] != "_"
    }
    if body.get("parameters"):
        others["parameters"] = body["parameters"]
    return LLMRequest(
        operation="embeddings",
        is_retrieval=True,
        query=[_read_embedded(item) for item in items],
        messages=(),
        parameters={semconv.REQUEST_PARAMETERS: dump_json(others)} if others else {},
        **server,
    )


def _read_embedded(content: Any) -> Any:
    """Content to embed -> its text, or itself when there is more to it."""
    parts = content.get("parts") or () if isinstance(content, Mapping) else ()
    return parts[0]["text"] if len(parts) == 1 and set(parts[0]) == {"text"} else content


def read_embed_response(top: Mapping[str, Any]) -> LLMResponse:
    """Answer as JSON -> response, without the vectors."""
    embeddings = top.get("embeddings")
    if embeddings is None:
        embeddings = [top["embedding"]] if "embedding" in top else []
    if not embeddings:
        embeddings = [each.get("embeddings") or {} for each in top.get("predictions") or ()]
    values = (embeddings[0].get("values") or ()) if embeddings else ()
    counts: list[Any] = [(each.get("statistics") or {}).get("token_count") for each in embeddings]
    usage = read_usage(top.get("usageMetadata") or {})
    if not usage and counts and all(isinstance(count, (int, float)) for count in counts):
        usage = {semconv.USAGE_INPUT_TOKENS: sum(int(count) for count in counts)}
    return LLMResponse(num_dimensions=len(values) or None, usage=usage)
