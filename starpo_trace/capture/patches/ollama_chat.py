"""Ollama requests, answers and chunks -> `LLMRequest` and `LLMResponse`.

Ollama gives tool calls no ids, and their arguments are JSON objects. Thinking, text and tool calls
are three fields of a message, so their order is always that.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.parameters import put_others, take_parameters
from starpo_trace.capture.patches.plain import get_fields, to_plain
from starpo_trace.messages import Message, dump_json

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

_OPTION_KEYS: Final = {
    "temperature": semconv.REQUEST_TEMPERATURE,
    "top_p": semconv.REQUEST_TOP_P,
    "top_k": semconv.REQUEST_TOP_K,
    "num_predict": semconv.REQUEST_MAX_TOKENS,
    "seed": semconv.REQUEST_SEED,
    "stop": semconv.REQUEST_STOP_SEQUENCES,
    "frequency_penalty": semconv.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.REQUEST_PRESENCE_PENALTY,
}
_BODY_KEYS: Final = {"think": semconv.REQUEST_REASONING_LEVEL}  # a level, where it is no bool
_RECORDED_ELSEWHERE: Final = frozenset(
    {"model", "messages", "tools", "stream", "options", "prompt", "system", "images", "input"}
)
_PROMPT_FIELDS: Final = ("suffix", "template", "context")
"""Fields of a completion's request that the model reads beside the prompt: parts of it."""
_MESSAGE_FIELDS: Final = frozenset(
    {"role", "content", "thinking", "images", "tool_name", "tool_calls"}
)


def read_chat_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent -> request."""
    return LLMRequest(
        model=str(body.get("model", "")),
        messages=[read_message(get_fields(message)) for message in body.get("messages") or ()],
        tool_definitions=body.get("tools") or None,
        parameters=_read_parameters(body),
        **server,
    )


def read_generate_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body of a completion -> request."""
    messages: list[Message] = []
    if body.get("system"):
        messages.append(_make_text_message("system", body["system"]))
    message = read_message(
        {"role": "user", "content": body.get("prompt"), "images": body.get("images")}
    )
    message["parts"].extend(
        {"type": name, "raw": {name: body[name]}} for name in _PROMPT_FIELDS if body.get(name)
    )
    messages.append(message)
    return LLMRequest(
        operation="text_completion",
        model=str(body.get("model", "")),
        messages=messages,
        parameters=_read_parameters(body),
        **server,
    )


def read_embed_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body of an embedding -> request."""
    return LLMRequest(
        operation="embeddings",
        is_retrieval=True,
        model=str(body.get("model", "")),
        messages=(),
        query=body.get("input", body.get("prompt")),
        parameters=_read_parameters(body),
        **server,
    )


def read_message(message: Mapping[str, Any]) -> Message:
    """Message of a request or an answer -> GenAI message."""
    role = message.get("role") or "assistant"
    content = message.get("content")
    parts: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    if message.get("thinking"):
        parts.append({"type": "reasoning", "content": message["thinking"]})
    calls = message.get("tool_calls") or ()
    if role == "tool":
        parts.append({"type": "tool_call_response", "id": None, "response": content})
    elif content or (content == "" and not calls and not parts):
        parts.append({"type": "text", "content": content})
    elif content is not None:  # beside tool calls programs send it back or not
        extra["content"] = content
    parts.extend({"type": "image", "raw": to_plain(each)} for each in message.get("images") or ())
    parts.extend(_read_tool_call(get_fields(call)) for call in calls)
    result: Message = {"role": role, "parts": parts}
    if message.get("tool_name") is not None:
        result["name"] = message["tool_name"]
    for name, value in message.items():
        if name not in _MESSAGE_FIELDS and value is not None:
            extra[name] = to_plain(value)
    if extra:
        result["extra"] = extra
    return result


def read_chat_response(answer: Any) -> LLMResponse:
    """Answer, as the SDK's object -> response."""
    fields = get_fields(answer)
    wire = fields.get("message")
    return _make_response(fields, read_message(get_fields(wire)) if wire is not None else None)


def read_generate_response(answer: Any) -> LLMResponse:
    """Answer of a completion -> response."""
    fields = get_fields(answer)
    message = read_message({"content": fields.get("response"), "thinking": fields.get("thinking")})
    if fields.get("image"):
        message["parts"].append({"type": "image", "raw": fields["image"]})
    if fields.get("context"):
        message["extra"] = {"context": list(fields["context"])}
    return _make_response(fields, message)


def read_embed_response(answer: Any) -> LLMResponse:
    """Answer of an embedding -> response without its vectors."""
    fields = get_fields(answer)
    vectors: Sequence[Any] = fields.get("embeddings") or [fields.get("embedding") or ()]
    return LLMResponse(
        model=fields.get("model"),
        usage=_read_usage(fields),
        num_dimensions=len(vectors[0]) or None,
    )


class _Chunks:
    """What chunks of both kinds have in common: the last says how it ended."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._logprobs: list[Any] = []
        self._has_logprobs = False

    def _add(self, fields: Mapping[str, Any]) -> None:
        for name in _LAST_FIELDS:
            value = fields.get(name)
            if value is not None:
                self._last[name] = value
        logprobs = fields.get("logprobs")
        if logprobs is not None:
            self._has_logprobs = True
            self._logprobs.extend(logprobs)

    def _add_text(self, name: str, text: str | None) -> None:
        if text is not None:
            self._texts.setdefault(name, []).append(text)

    def _join(self) -> dict[str, Any]:
        joined: dict[str, Any] = {name: "".join(texts) for name, texts in self._texts.items()}
        return {**self._last, "logprobs": self._logprobs if self._has_logprobs else None, **joined}


class ChatChunks(_Chunks):
    """Chunks of a streamed chat, put together."""

    def __init__(self) -> None:
        super().__init__()
        self._role: str | None = None
        self._tool_calls: list[Any] = []
        self._images: list[Any] = []

    def add(self, chunk: Any) -> None:
        """Take one chunk in."""
        fields = get_fields(chunk)
        self._add(fields)
        message = get_fields(fields.get("message"))
        self._role = self._role or message.get("role")
        self._add_text("content", message.get("content"))
        self._add_text("thinking", message.get("thinking"))
        self._tool_calls.extend(message.get("tool_calls") or ())
        self._images.extend(message.get("images") or ())

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        if self._role is None:
            return LLMResponse()
        answer = self._join()
        answer["message"] = {
            "role": self._role,
            "content": answer.pop("content", None),
            "thinking": answer.pop("thinking", None),
            "tool_calls": self._tool_calls,
            "images": self._images,
        }
        return read_chat_response(answer)


class GenerateChunks(_Chunks):
    """Chunks of a streamed completion, put together."""

    def add(self, chunk: Any) -> None:
        """Take one chunk in."""
        fields = get_fields(chunk)
        self._add(fields)
        self._add_text("response", fields.get("response"))
        self._add_text("thinking", fields.get("thinking"))

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        if not self._texts and not self._last:
            return LLMResponse()
        return read_generate_response(self._join())


_LAST_FIELDS: Final = (
    "model",
    "done_reason",
    "prompt_eval_count",
    "eval_count",
    "context",
    "image",
)


def _make_response(fields: Mapping[str, Any], message: Message | None) -> LLMResponse:
    done_reason = fields.get("done_reason")
    tokens, logprobs = _read_logprobs(fields.get("logprobs"))
    if message is not None and done_reason:
        message["finish_reason"] = done_reason
    return LLMResponse(
        model=fields.get("model"),
        messages=() if message is None else [message],
        finish_reasons=[done_reason] if done_reason else (),
        usage=_read_usage(fields),
        response_tokens=tokens,
        response_logprobs=logprobs,
    )


def _make_text_message(role: str, text: str) -> Message:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _read_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = get_fields(call.get("function"))
    return {
        "type": "tool_call",
        "id": call.get("id"),
        "name": function.get("name"),
        "arguments": dump_json(to_plain(function.get("arguments"))),
    }


def _read_parameters(body: Mapping[str, Any]) -> "dict[str, AttributeValue]":
    parameters: dict[str, AttributeValue] = {}
    options = to_plain(body.get("options")) or {}
    other_options = take_parameters(options, _OPTION_KEYS, parameters)
    others = take_parameters(
        {
            name: value
            for name, value in body.items()
            if name not in _RECORDED_ELSEWHERE and name not in _PROMPT_FIELDS
        },
        _BODY_KEYS,
        parameters,
    )
    put_others({**others, "options": other_options} if other_options else others, parameters)
    return parameters


def _read_usage(fields: Mapping[str, Any]) -> dict[str, int]:
    usage: dict[str, int] = {}
    for name, key in _USAGE_KEYS.items():
        count = fields.get(name)
        if type(count) is int:
            usage[key] = count
    return usage


_USAGE_KEYS: Final = {
    "prompt_eval_count": semconv.USAGE_INPUT_TOKENS,
    "eval_count": semconv.USAGE_OUTPUT_TOKENS,
}


def _read_logprobs(entries: Any) -> tuple[list[str] | None, list[float | None] | None]:
    if entries is None:
        return None, None
    read = [get_fields(entry) for entry in entries]
    return [entry["token"] for entry in read], [entry["logprob"] for entry in read]
