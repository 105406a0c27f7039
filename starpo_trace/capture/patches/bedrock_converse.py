"""Bedrock's Converse requests, answers and stream events -> `LLMRequest` and `LLMResponse`.

botocore turns the wire's base64 into bytes; here they are base64 again. A message of tool results
becomes one message of role `tool` for each result, as other providers send them. Cache points,
which programs move from turn to turn without changing the conversation, are in a part's `"meta"`.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.parameters import put_others, take_parameters
from starpo_trace.messages import Message, dump_json

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

Part = dict[str, Any]

_INFERENCE_KEYS: Final = {
    "temperature": semconv.REQUEST_TEMPERATURE,
    "topP": semconv.REQUEST_TOP_P,
    "topK": semconv.REQUEST_TOP_K,  # in Nova's own bodies
    "maxTokens": semconv.REQUEST_MAX_TOKENS,
    "stopSequences": semconv.REQUEST_STOP_SEQUENCES,
}
_RECORDED_ELSEWHERE: Final = frozenset(
    {"modelId", "messages", "system", "inferenceConfig", "toolConfig", "promptVariables"}
)
_ANSWER_FIELDS: Final = frozenset({"output", "stopReason", "usage", "ResponseMetadata"})
_USAGE_KEYS: Final = {
    "outputTokens": semconv.USAGE_OUTPUT_TOKENS,
    "cacheReadInputTokens": semconv.USAGE_CACHE_READ_TOKENS,
    "cacheWriteInputTokens": semconv.USAGE_CACHE_WRITE_TOKENS,
}
_USAGE_TOTALS: Final = frozenset(
    {"totalTokens", "cacheReadInputTokenCount", "cacheWriteInputTokenCount"}
)


def read_converse_request(server: Mapping[str, Any], params: Mapping[str, Any]) -> LLMRequest:
    """Server and parameters as given to botocore -> request."""
    messages: list[Message] = []
    if params.get("system"):
        messages += read_message({"role": "system", "content": params["system"]})
    for message in params.get("messages") or ():
        messages += read_message(message)
    if params.get("promptVariables"):  # of a prompt that the server keeps
        raw = to_wire(params["promptVariables"])
        messages.append({"role": "user", "parts": [{"type": "promptVariables", "raw": raw}]})
    return LLMRequest(
        model=str(params.get("modelId", "")),
        messages=messages,
        tool_definitions=to_wire((params.get("toolConfig") or {}).get("tools")) or None,
        parameters=_read_parameters(params),
        **server,
    )


def _read_parameters(params: Mapping[str, Any]) -> "dict[str, AttributeValue]":
    parameters: dict[str, AttributeValue] = {}
    others = {key: value for key, value in params.items() if key not in _RECORDED_ELSEWHERE}
    inference = take_parameters(params.get("inferenceConfig") or {}, _INFERENCE_KEYS, parameters)
    if inference:
        others["inferenceConfig"] = inference
    tool_config = {k: v for k, v in (params.get("toolConfig") or {}).items() if k != "tools"}
    if tool_config:
        others["toolConfig"] = tool_config
    put_others(to_wire(others), parameters)
    return parameters


def read_message(message: Mapping[str, Any]) -> list[Message]:
    """One message as sent -> GenAI messages, a message of its own for each tool result."""
    role = message.get("role", "user")
    messages: list[Message] = []
    current: Message | None = None
    for block in message.get("content") or ():
        if "cachePoint" in block:
            _mark_cache_point(messages, to_wire(block["cachePoint"]))
            continue
        part = read_block(block, role)
        if part["type"] == "tool_call_response":
            messages.append({"role": "tool", "parts": [part]})
            current = None
        elif current is None:
            current = {"role": role, "parts": [part]}
            messages.append(current)
        else:
            current["parts"].append(part)
    extra = {key: to_wire(value) for key, value in message.items() if key not in _MESSAGE_FIELDS}
    if extra and messages:
        messages[-1]["extra"] = extra
    return messages or [{"role": role, "parts": []}]


_MESSAGE_FIELDS: Final = frozenset({"role", "content"})


def _mark_cache_point(messages: list[Message], cache_point: Any) -> None:
    """Note a cache point on the part that it comes after."""
    if messages:
        messages[-1]["parts"][-1].setdefault("meta", {})["cachePoint"] = cache_point


def read_block(block: Mapping[str, Any], role: str) -> Part:
    """Content block -> message part."""
    if "text" in block:
        return {"type": "text", "content": block["text"]}
    for kind, value in block.items():
        reader = _READERS.get(kind)
        return {"type": kind, "raw": to_wire(value)} if reader is None else reader(value, role)
    return {"type": "unknown", "raw": {}}


def _read_tool_use(value: Mapping[str, Any], _role: str) -> Part:
    part: Part = {
        "type": "server_tool_call" if value.get("type") == "server_tool_use" else "tool_call",
        "id": value.get("toolUseId"),
        "name": value.get("name"),
        "arguments": dump_json(to_wire(value.get("input"))),
    }
    return _add_meta(part, value, {"toolUseId", "name", "input", "type"})


def _read_tool_result(value: Mapping[str, Any], role: str) -> Part:
    part: Part = {
        "type": "server_tool_call_response" if role == "assistant" else "tool_call_response",
        "id": value.get("toolUseId"),
        "response": to_wire(value.get("content")),
    }
    if value.get("status") == "error":
        part["is_error"] = True
    return _add_meta(part, value, {"toolUseId", "content"})


def _read_reasoning(value: Mapping[str, Any], _role: str) -> Part:
    if "redactedContent" in value:
        encrypted = to_wire(value["redactedContent"])
        return {"type": "reasoning", "content": "", "meta": {"encrypted": encrypted}}
    text = value.get("reasoningText") or {}
    return _add_meta({"type": "reasoning", "content": text.get("text")}, text, {"text"})


def _read_citations(value: Mapping[str, Any], _role: str) -> Part:
    texts = [each.get("text", "") for each in value.get("content") or ()]
    return _add_meta({"type": "text", "content": "".join(texts)}, value, {"content"})


def _add_meta(part: Part, value: Mapping[str, Any], known: set[str]) -> Part:
    meta = {key: to_wire(each) for key, each in value.items() if key not in known}
    if meta:
        part["meta"] = meta
    return part


_READERS: Final[dict[str, Callable[[Mapping[str, Any], str], Part]]] = {
    "toolUse": _read_tool_use,
    "toolResult": _read_tool_result,
    "reasoningContent": _read_reasoning,
    "citationsContent": _read_citations,
}


def read_converse_response(answer: Mapping[str, Any]) -> LLMResponse:
    """Answer, as botocore's dictionary or as sent -> response."""
    wire = (answer.get("output") or {}).get("message")
    parts = []
    if wire is not None:
        parts = [read_block(block, "assistant") for block in wire.get("content") or ()]
    return make_response(answer, parts if wire is not None else None)


def make_response(answer: Mapping[str, Any], parts: list[Part] | None) -> LLMResponse:
    """Fields of an answer, and the parts of its message -> response."""
    reason = answer.get("stopReason")
    usage = answer.get("usage") or {}
    message: Message | None = None
    if parts is not None:
        message = {"role": "assistant", "parts": parts}
        if reason is not None:
            message["finish_reason"] = reason
        extra = {key: to_wire(value) for key, value in answer.items() if key not in _ANSWER_FIELDS}
        other_usage = {
            key: to_wire(value)
            for key, value in usage.items()
            if key != "inputTokens" and key not in _USAGE_KEYS and key not in _USAGE_TOTALS
        }
        if other_usage:
            extra["usage"] = other_usage
        if extra:
            message["extra"] = extra
    router = (answer.get("trace") or {}).get("promptRouter") or {}
    return LLMResponse(
        id=(answer.get("ResponseMetadata") or {}).get("RequestId"),
        model=router.get("invokedModelId"),
        messages=() if message is None else [message],
        finish_reasons=() if reason is None else [reason],
        usage=read_usage(usage),
    )


def read_usage(usage: Mapping[str, Any]) -> dict[str, int]:
    """Usage object -> counts under their keys.

    Bedrock's `inputTokens` leaves out what was read from or written to the cache; the conventions
    count them in, so the three are summed.
    """
    counts = {key: usage[name] for name, key in _USAGE_KEYS.items() if type(usage.get(name)) is int}
    if type(usage.get("inputTokens")) is int:
        counts[semconv.USAGE_INPUT_TOKENS] = usage["inputTokens"] + sum(
            counts.get(key, 0)
            for key in (semconv.USAGE_CACHE_READ_TOKENS, semconv.USAGE_CACHE_WRITE_TOKENS)
        )
    return counts


def to_wire(value: Any) -> Any:
    """Value as botocore takes or gives it -> JSON-like value, bytes as base64."""
    if isinstance(value, (bytes, bytearray)):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return {key: to_wire(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_wire(each) for each in value]
    return value
