"""Anthropic requests, answers and stream events -> `LLMRequest` and `LLMResponse`.

A message of tool results becomes one message of role `tool` for each result, as other providers
send them. What programs change from turn to turn without changing the conversation (cache
breakpoints), or what only the wire needs (signatures, callers), is in a part's `"meta"`.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.openai_chat import read_parameters
from starpo_trace.capture.patches.plain import get_fields, to_plain
from starpo_trace.messages import Message, dump_json

Part = dict[str, Any]

_RECORDED_ELSEWHERE: Final = frozenset({"model", "messages", "system", "tools", "stream"})
_ANSWER_FIELDS: Final = frozenset({"id", "type", "role", "model", "content", "stop_reason"})
_USAGE_FIELDS: Final = frozenset({"input_tokens", "output_tokens", "output_tokens_details"})
"""What is recorded under keys of its own, as long as no cache had a part in it."""


def read_messages_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent -> request."""
    messages: list[Message] = []
    if body.get("system"):
        messages += read_message({"role": "system", "content": body["system"]})
    for message in body.get("messages") or ():
        messages += read_message(get_fields(message))
    parameters = read_parameters(body, _RECORDED_ELSEWHERE)
    effort = get_fields(body.get("output_config")).get("effort")
    if type(effort) is str:
        parameters[semconv.REQUEST_REASONING_LEVEL] = effort
    return LLMRequest(
        model=str(body.get("model", "")),
        messages=messages,
        tool_definitions=body.get("tools") or None,
        parameters=parameters,
        previous_response_id=get_fields(body.get("thread")).get("previous_message_id"),
        **server,
    )


def read_message(message: Mapping[str, Any]) -> list[Message]:
    """One message as sent -> GenAI messages, a message of its own for each tool result."""
    role, content = message.get("role", "user"), message.get("content")
    extra = {key: value for key, value in message.items() if key not in {"role", "content"}}
    if isinstance(content, str):
        return [_make_message(role, [{"type": "text", "content": content}], extra)]
    messages: list[Message] = []
    pending: list[Part] = []
    for block in content or ():
        part = read_block(block)
        if part["type"] != "tool_call_response":
            pending.append(part)
            continue
        if pending:
            messages.append(_make_message(role, pending, extra))
            pending = []
        messages.append(_make_message("tool", [part], extra))
    if pending or not messages:
        messages.append(_make_message(role, pending, extra))
    return messages


def read_messages_response(answer: Any) -> LLMResponse:
    """Answer, as the SDK's object or a mapping -> response."""
    top = to_plain(answer)
    if not isinstance(top, Mapping) or not top:
        return LLMResponse()
    reason = top.get("stop_reason")
    message: Message = {
        "role": top.get("role", "assistant"),
        "parts": [read_block(block) for block in top.get("content") or ()],
    }
    if reason is not None:
        message["finish_reason"] = reason
    extra = {
        key: value for key, value in top.items() if key not in _ANSWER_FIELDS and value is not None
    }
    usage = extra.get("usage") or {}
    if not any(usage[key] for key in usage.keys() - _USAGE_FIELDS):
        extra.pop("usage", None)  # its keys say it all
    if extra:
        message["extra"] = extra
    return LLMResponse(
        id=top.get("id"),
        model=top.get("model"),
        messages=[message],
        finish_reasons=[] if reason is None else [reason],
        usage=read_usage(usage),
    )


def read_usage(usage: Mapping[str, Any]) -> dict[str, int]:
    """Usage object -> counts under their keys.

    Anthropic's `input_tokens` leaves out what was read from or written to the cache; the
    conventions count them in, so the three are summed.
    """
    counts = {key: usage[name] for name, key in _USAGE_KEYS.items() if type(usage.get(name)) is int}
    if type(usage.get("input_tokens")) is int:
        counts[semconv.USAGE_INPUT_TOKENS] = usage["input_tokens"] + sum(
            counts.get(key, 0)
            for key in (semconv.USAGE_CACHE_READ_TOKENS, semconv.USAGE_CACHE_WRITE_TOKENS)
        )
    thinking = (usage.get("output_tokens_details") or {}).get("thinking_tokens")
    if type(thinking) is int:
        counts[semconv.USAGE_REASONING_TOKENS] = thinking
    return counts


_USAGE_KEYS: Final = {
    "output_tokens": semconv.USAGE_OUTPUT_TOKENS,
    "cache_read_input_tokens": semconv.USAGE_CACHE_READ_TOKENS,
    "cache_creation_input_tokens": semconv.USAGE_CACHE_WRITE_TOKENS,
}


def read_block(block: Any) -> Part:
    """Content block, as the SDK's object or a mapping -> message part."""
    fields = to_plain(block) if hasattr(block, "__pydantic_fields_set__") else get_fields(block)
    kind = str(fields.get("type", "unknown"))
    reader = _READERS.get(kind)
    if reader is None and kind.endswith("_tool_result"):
        reader = (_read_server_result, frozenset({"tool_use_id", "content"}))
    if reader is None:
        raw = {key: value for key, value in fields.items() if key != "cache_control"}
        part = {"type": kind, "raw": raw}
        known = fields.keys() - {"cache_control"}
    else:
        read, known = reader
        part = read(fields)
    for key, value in fields.items():
        if value is not None and key not in known and key not in _NO_META:
            part.setdefault("meta", {})[key] = value
    if part["type"].startswith("server_") and kind not in {"server_tool_use", "tool_use"}:
        part.setdefault("meta", {})["type"] = kind
    return part


_NO_META: Final = frozenset({"type", "parsed_output", "input_text"})


def _read_text(fields: Mapping[str, Any]) -> Part:
    return {"type": "text", "content": fields.get("text")}


def _read_thinking(fields: Mapping[str, Any]) -> Part:
    return {"type": "reasoning", "content": fields.get("thinking")}


def _read_redacted_thinking(fields: Mapping[str, Any]) -> Part:
    return {"type": "reasoning", "content": "", "meta": {"encrypted": fields.get("data")}}


def _read_tool_use(fields: Mapping[str, Any]) -> Part:
    return _read_call("tool_call", fields)


def _read_server_tool_use(fields: Mapping[str, Any]) -> Part:
    return _read_call("server_tool_call", fields)


def _read_call(kind: str, fields: Mapping[str, Any]) -> Part:
    part: Part = {"type": kind, "id": fields.get("id"), "name": fields.get("name")}
    text = fields.get("input_text")  # as streamed
    if not text:
        part["arguments"] = dump_json(fields.get("input"))
        return part
    try:
        part["arguments"] = dump_json(json.loads(text))
    except ValueError:  # cut off, or never JSON
        part["arguments"] = text
    if part["arguments"] != text:
        part["meta"] = {"raw": text}
    return part


def _read_tool_result(fields: Mapping[str, Any]) -> Part:
    part: Part = {"type": "tool_call_response", "id": fields.get("tool_use_id")}
    content = fields.get("content")
    if isinstance(content, str) or content is None:
        part["response"] = content
    else:
        part["response"], marks = _lift_cache_control(content)
        if marks:
            part["meta"] = {"content_cache_control": marks}
    if fields.get("is_error") is not None:
        part["is_error"] = fields["is_error"]
    return part


def _read_server_result(fields: Mapping[str, Any]) -> Part:
    return {
        "type": "server_tool_call_response",
        "id": fields.get("tool_use_id"),
        "response": fields.get("content"),
    }


def _lift_cache_control(blocks: Iterable[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Blocks inside a tool result -> the same without cache breakpoints, and these by position."""
    lifted: list[Any] = []
    marks: dict[str, Any] = {}
    for position, block in enumerate(blocks):
        fields = to_plain(block)
        if isinstance(fields, dict) and "cache_control" in fields:
            marks[str(position)] = fields.pop("cache_control")
        lifted.append(fields)
    return lifted, marks


_CALL_FIELDS: Final = frozenset({"id", "name", "input"})
_READERS: Final[dict[str, tuple[Callable[[Mapping[str, Any]], Part], frozenset[str]]]] = {
    "text": (_read_text, frozenset({"text"})),
    "thinking": (_read_thinking, frozenset({"thinking"})),
    "redacted_thinking": (_read_redacted_thinking, frozenset({"data"})),
    "tool_use": (_read_tool_use, _CALL_FIELDS),
    "server_tool_use": (_read_server_tool_use, _CALL_FIELDS),
    "mcp_tool_use": (_read_server_tool_use, _CALL_FIELDS),
    "tool_result": (_read_tool_result, frozenset({"tool_use_id", "content", "is_error"})),
}
"""Type of a block -> how to read it, and the fields that have a place of their own."""


def _make_message(role: str, parts: list[Part], extra: Mapping[str, Any]) -> Message:
    message: Message = {"role": role, "parts": parts}
    if extra:
        message["extra"] = dict(extra)
    return message
