"""Mistral requests and answers -> `LLMRequest` and `LLMResponse`.

Content is a text or a list of chunks, of which `thinking` ones are reasoning. Arguments of tool
calls are a text or a JSON object.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.openai_extra import read_usage as read_openai_usage
from starpo_trace.capture.patches.parameters import put_others, take_parameters
from starpo_trace.capture.patches.plain import get_fields, to_plain
from starpo_trace.messages import Message, dump_json

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

Part = dict[str, Any]

_KEYS: Final = {
    "temperature": semconv.REQUEST_TEMPERATURE,
    "top_p": semconv.REQUEST_TOP_P,
    "top_k": semconv.REQUEST_TOP_K,
    "max_tokens": semconv.REQUEST_MAX_TOKENS,
    "random_seed": semconv.REQUEST_SEED,
    "stop": semconv.REQUEST_STOP_SEQUENCES,
    "n": semconv.REQUEST_CHOICE_COUNT,
    "frequency_penalty": semconv.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.REQUEST_PRESENCE_PENALTY,
    "reasoning_effort": semconv.REQUEST_REASONING_LEVEL,
}
_RECORDED_ELSEWHERE: Final = frozenset(
    {"model", "messages", "tools", "stream", "prompt", "suffix", "inputs"}
)
_NOT_SENT: Final = frozenset({"retries", "server_url", "timeout_ms", "http_headers"})
_MESSAGE_FIELDS: Final = frozenset({"role", "content", "tool_calls", "tool_call_id", "name"})
NO_ID: Final = "null"
"""What the SDK calls the id of a tool call that has none."""


def read_completion_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent, of a chat, an agent or a fill-in-the-middle -> request."""
    messages = [read_message(message) for message in body.get("messages") or ()]
    operation = "chat"
    if "prompt" in body:
        operation = "text_completion"
        message: Message = {
            "role": "user",
            "parts": [{"type": "text", "content": body["prompt"]}],
        }
        if body.get("suffix"):  # a part, because it tells this prompt from others
            message["parts"].append({"type": "suffix", "raw": {"suffix": body["suffix"]}})
        messages.append(message)
    return LLMRequest(
        operation=operation,
        model=str(body.get("model") or body.get("agent_id") or ""),
        messages=messages,
        tool_definitions=body.get("tools") or None,
        parameters=_read_parameters(body),
        **server,
    )


def read_embeddings_request(server: Mapping[str, Any], arguments: Mapping[str, Any]) -> LLMRequest:
    """Server and arguments of `embeddings.create` -> request."""
    sent = {
        name: to_plain(value)
        for name, value in arguments.items()
        if name not in _NOT_SENT and type(value).__name__ != "Unset"
    }
    return LLMRequest(
        operation="embeddings",
        is_retrieval=True,
        model=str(sent.get("model", "")),
        messages=(),
        query=sent.get("inputs"),
        parameters=_read_parameters(sent),
        **server,
    )


def _read_parameters(body: Mapping[str, Any]) -> "dict[str, AttributeValue]":
    parameters: dict[str, AttributeValue] = {}
    sent = {name: value for name, value in body.items() if name not in _RECORDED_ELSEWHERE}
    put_others(take_parameters(sent, _KEYS, parameters), parameters)
    return parameters


def read_message(message: Mapping[str, Any]) -> Message:
    """Message of a request or an answer -> GenAI message."""
    role = message.get("role") or "assistant"
    content, calls = message.get("content"), message.get("tool_calls") or ()
    parts: list[Part] = []
    extra = {
        name: value
        for name, value in message.items()
        if name not in _MESSAGE_FIELDS and value not in (None, False)
    }
    if role == "tool":
        parts.append(
            {
                "type": "tool_call_response",
                "id": message.get("tool_call_id"),
                "response": content,
            }
        )
    elif isinstance(content, str):
        if content or not calls:
            parts.append({"type": "text", "content": content})
        else:  # programs send it back beside the tool calls or not
            extra["content"] = content
    else:
        parts.extend(_read_chunk(chunk) for chunk in content or ())
    parts.extend(_read_tool_call(call) for call in calls)
    if extra.pop("prefix", False):  # to be continued, which an answer in a history is not
        parts.append({"type": "prefix", "raw": {"prefix": True}})
    result: Message = {"role": role, "parts": parts}
    if message.get("name") is not None:
        result["name"] = message["name"]
    if extra:
        result["extra"] = extra
    return result


def _read_chunk(chunk: Any) -> Part:
    kind = chunk.get("type") if isinstance(chunk, dict) else None
    if kind == "text":
        return _add_meta({"type": "text", "content": chunk.get("text")}, chunk, {"text"})
    if kind == "thinking":
        thoughts = chunk.get("thinking") or ()
        texts = [each.get("text") for each in thoughts]
        part = {"type": "reasoning", "content": "".join(text for text in texts if text)}
        known = {"thinking"} if all(text is not None for text in texts) else set()
        return _add_meta(part, chunk, known)
    return {"type": str(kind), "raw": chunk}


def _add_meta(part: Part, chunk: Mapping[str, Any], known: set[str]) -> Part:
    meta = {
        name: value
        for name, value in chunk.items()
        if name != "type" and name not in known and value is not None
    }
    if meta:
        part["meta"] = meta
    return part


def _read_tool_call(call: Mapping[str, Any]) -> Part:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    call_id = call.get("id")
    return {
        "type": "tool_call",
        "id": None if call_id == NO_ID else call_id,
        "name": function.get("name"),
        "arguments": arguments if isinstance(arguments, str) else dump_json(arguments),
    }


def read_completion_response(answer: Mapping[str, Any]) -> LLMResponse:
    """Answer as sent -> response."""
    choices = answer.get("choices") or ()
    first = choices[0] if choices else {}
    logprobs = (first.get("logprobs") or {}).get("content")
    prompt_logprobs = (first.get("prompt_logprobs") or {}).get("content")
    return LLMResponse(
        id=answer.get("id"),
        model=answer.get("model"),
        messages=[_read_choice(choice) for choice in choices],
        finish_reasons=[
            choice["finish_reason"] for choice in choices if choice.get("finish_reason")
        ],
        usage=_read_usage(answer.get("usage")),
        prompt_token_ids=_read_token_ids(prompt_logprobs),
        response_token_ids=_read_token_ids(logprobs),
        response_tokens=None if logprobs is None else [entry["token"] for entry in logprobs],
        response_logprobs=None if logprobs is None else [entry["logprob"] for entry in logprobs],
    )


def _read_token_ids(logprobs: Any) -> list[int] | None:
    """Ids that come with log-probabilities; None unless every token has one."""
    ids = [entry.get("token_id") for entry in logprobs or ()]
    return ids if ids and all(type(each) is int for each in ids) else None


def _read_choice(choice: Mapping[str, Any]) -> Message:
    several = choice.get("messages")
    message = read_message(choice.get("message") or {})
    if several:  # a turn in which the server ran tools
        message["parts"] += [part for each in several for part in read_message(each)["parts"]]
        for part in message["parts"]:
            if part["type"] == "tool_call_response":
                part["type"] = "server_tool_call_response"
    if choice.get("finish_reason"):
        message["finish_reason"] = choice["finish_reason"]
    return message


def _read_usage(usage: Mapping[str, Any] | None) -> dict[str, int]:
    counts = read_openai_usage(usage)
    cached = None if usage is None else usage.get("num_cached_tokens")
    if type(cached) is int:
        counts.setdefault(semconv.USAGE_CACHE_READ_TOKENS, cached)
    return counts


def read_embeddings_response(answer: Any) -> LLMResponse:
    """Answer, as the SDK's object -> response without its vectors."""
    fields = get_fields(answer)
    data = fields.get("data") or ()
    vector = get_fields(data[0]).get("embedding") if data else None
    return LLMResponse(
        id=fields.get("id"),
        model=fields.get("model"),
        usage=_read_usage(to_plain(fields.get("usage"))),
        num_dimensions=len(vector) if isinstance(vector, list) else None,
    )
