"""OpenAI chat requests, answers and chunks -> `LLMRequest` and `LLMResponse`.

Answers come as the SDK's typed objects or as plain mappings; fields that the SDK does not know
(reasoning, token ids) are kept by both.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from starpo_trace import semconv
from starpo_trace.capture.invocation import LLMRequest, LLMResponse
from starpo_trace.messages import Message, from_openai_chat

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

_NUMBERS: Final = {
    "temperature": semconv.REQUEST_TEMPERATURE,
    "top_p": semconv.REQUEST_TOP_P,
    "frequency_penalty": semconv.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.REQUEST_PRESENCE_PENALTY,
}
_INTEGERS: Final = {
    "max_tokens": semconv.REQUEST_MAX_TOKENS,
    "max_completion_tokens": semconv.REQUEST_MAX_TOKENS,
    "seed": semconv.REQUEST_SEED,
    "n": semconv.REQUEST_CHOICE_COUNT,
    "top_k": semconv.REQUEST_TOP_K,
}
_FIRST_FIELDS: Final = frozenset({"role", "id", "type", "name"})
"""Of a delta: said once, not piece by piece."""


def read_chat_request(client: Any, body: Mapping[str, Any], *, is_stream: bool) -> LLMRequest:
    """Body as sent -> request."""
    parameters: dict[str, AttributeValue] = {}
    for field, key in _NUMBERS.items():
        if isinstance(body.get(field), (int, float)):
            parameters[key] = float(body[field])
    for field, key in _INTEGERS.items():
        if isinstance(body.get(field), int):
            parameters[key] = body[field]
    stop = body.get("stop")
    if isinstance(stop, str):
        parameters[semconv.REQUEST_STOP_SEQUENCES] = [stop]
    elif isinstance(stop, (list, tuple)):
        parameters[semconv.REQUEST_STOP_SEQUENCES] = [str(text) for text in stop]
    if isinstance(body.get("reasoning_effort"), str):
        parameters[semconv.REQUEST_REASONING_LEVEL] = body["reasoning_effort"]
    if is_stream:
        parameters[semconv.REQUEST_STREAM] = True
    base_url = getattr(client, "base_url", None)
    return LLMRequest(
        provider="azure.ai.openai" if "Azure" in type(client).__name__ else "openai",
        model=str(body.get("model", "")),
        messages=[from_openai_chat(as_mapping(message)) for message in body.get("messages") or ()],
        tool_definitions=body.get("tools") or body.get("functions") or None,
        parameters=parameters,
        address=getattr(base_url, "host", None),
        port=getattr(base_url, "port", None),
    )


def read_chat_response(completion: Any) -> LLMResponse:
    """Answer, as the SDK's object or a mapping -> response."""
    choices = _get(completion, "choices") or ()
    first = choices[0] if choices else None
    return LLMResponse(
        id=_get(completion, "id"),
        model=_get(completion, "model"),
        messages=[_read_message(choice) for choice in choices],
        finish_reasons=[
            reason for choice in choices if (reason := _get(choice, "finish_reason")) is not None
        ],
        usage=_read_usage(_get(completion, "usage")),
        prompt_token_ids=_read_list(completion, "prompt_token_ids"),
        response_token_ids=_read_list(first, "token_ids"),
        response_logprobs=_read_logprobs(first),
    )


class ChatChunks:
    """Chunks of a streamed answer, put together."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _ChoiceParts] = {}

    def add(self, chunk: Any) -> None:
        """Take one chunk in."""
        for field in ("id", "model", "usage", "prompt_token_ids"):
            value = _get(chunk, field)
            if value is not None and (field == "usage" or field not in self._top):
                self._top[field] = value
        for position, choice in enumerate(_get(chunk, "choices") or ()):
            index = _get(choice, "index")
            index = position if index is None else index
            if index not in self._choices:
                self._choices[index] = _ChoiceParts()
            self._choices[index].add(choice)

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        choices = [self._choices[index].build() for index in sorted(self._choices)]
        return read_chat_response({**self._top, "choices": choices})


class _ChoiceParts:
    """Pieces of one choice of a streamed answer."""

    def __init__(self) -> None:
        self._delta = _Pieces()
        self._finish_reason: str | None = None
        self._token_ids: list[int] | None = None
        self._logprobs: list[Any] | None = None

    def add(self, choice: Any) -> None:
        delta = _get(choice, "delta")
        if delta is not None:
            self._delta.add(as_mapping(delta))
        self._finish_reason = _get(choice, "finish_reason") or self._finish_reason
        token_ids = _get(choice, "token_ids")
        if token_ids is not None:
            if self._token_ids is None:
                self._token_ids = []
            self._token_ids.extend(token_ids)
        logprobs = _get(_get(choice, "logprobs"), "content")
        if logprobs is not None:
            if self._logprobs is None:
                self._logprobs = []
            self._logprobs.extend(logprobs)

    def build(self) -> dict[str, Any]:
        return {
            "message": {"role": "assistant", **self._delta.build()},
            "finish_reason": self._finish_reason,
            "token_ids": self._token_ids,
            "logprobs": None if self._logprobs is None else {"content": self._logprobs},
        }


class _Pieces:
    """Deltas of one object, field by field: text is appended, lists with indices are joined."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._values: dict[str, Any] = {}
        self._objects: dict[str, _Pieces] = {}
        self._tool_calls: dict[int, _Pieces] = {}

    def add(self, delta: Mapping[str, Any]) -> None:
        for field, value in delta.items():
            if value is None or field == "index":
                continue
            if field == "tool_calls":
                for call in value:
                    self._add_tool_call(as_mapping(call))
            elif field in _FIRST_FIELDS:
                self._values.setdefault(field, value)
            elif isinstance(value, str):
                self._texts.setdefault(field, []).append(value)
            elif isinstance(value, list):
                self._values[field] = [*self._values.get(field, ()), *value]
            elif field in {"function", "function_call"}:
                self._objects.setdefault(field, _Pieces()).add(as_mapping(value))
            else:
                self._values[field] = value

    def _add_tool_call(self, call: Mapping[str, Any]) -> None:
        index = call.get("index")
        if index is None:  # some servers send none: a new id begins a new call
            is_new = call.get("id") is not None or not self._tool_calls
            index = len(self._tool_calls) - (0 if is_new else 1)
        self._tool_calls.setdefault(index, _Pieces()).add(call)

    def build(self) -> dict[str, Any]:
        built = dict(self._values)
        built.update({field: "".join(texts) for field, texts in self._texts.items()})
        built.update({field: pieces.build() for field, pieces in self._objects.items()})
        if self._tool_calls:
            calls = self._tool_calls
            built["tool_calls"] = [calls[index].build() for index in sorted(calls)]
        return built


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Typed object of the SDK's, or a mapping -> a mapping, one level deep."""
    if isinstance(value, Mapping):
        return value
    return {**vars(value), **(getattr(value, "model_extra", None) or {})}


def _read_message(choice: Any) -> Message:
    wire = _get(choice, "message") or {}
    if not isinstance(wire, Mapping):
        # Without what the SDK added itself: unset defaults, and the value it parsed.
        wire = wire.model_dump(exclude_unset=True, exclude={"parsed"}, warnings=False)
    message = from_openai_chat(wire)
    finish_reason = _get(choice, "finish_reason")
    if finish_reason is not None:
        message["finish_reason"] = finish_reason
    return message


def _read_usage(usage: Any) -> dict[str, int]:
    counts = {
        semconv.USAGE_INPUT_TOKENS: _get(usage, "prompt_tokens"),
        semconv.USAGE_OUTPUT_TOKENS: _get(usage, "completion_tokens"),
        semconv.USAGE_CACHE_READ_TOKENS: _get(
            _get(usage, "prompt_tokens_details"), "cached_tokens"
        ),
        semconv.USAGE_REASONING_TOKENS: _get(
            _get(usage, "completion_tokens_details"), "reasoning_tokens"
        ),
    }
    return {key: count for key, count in counts.items() if isinstance(count, int)}


def _read_list(owner: Any, field: str) -> list[int] | None:
    value = _get(owner, field)
    return list(value) if isinstance(value, (list, tuple)) else None


def _read_logprobs(choice: Any) -> list[float] | None:
    content = _get(_get(choice, "logprobs"), "content")
    return None if content is None else [_get(entry, "logprob") for entry in content]


def _get(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None)
