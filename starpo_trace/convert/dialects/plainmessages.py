"""A chat message as a program held it -> GenAI message.

OpenAI's fields, Anthropic's content blocks, and LangChain's serialised messages
(`{"lc": 1, "id": [..., "AIMessage"], "kwargs": {...}}`), whose calls have parsed arguments.
"""

from collections.abc import Mapping
from typing import Any, Final

from starpo_trace.capture.patches.anthropic_messages import read_block
from starpo_trace.messages import dump_json, from_openai_chat

Message = dict[str, Any]

_ROLE_OF_TYPE: Final = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "developer": "system",
}
_BLOCKS: Final = frozenset({"tool_use", "tool_result", "thinking", "redacted_thinking"})


def read_plain_message(message: Any, role: str) -> Message:
    """Message, and the role it has when it names none -> GenAI message.

    Raises:
        TypeError: it is no object.
    """
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is {type(message).__name__}, no object")
    fields = _read_langchain(message)
    reason = fields.pop("finish_reason", None)
    fields = {"role": role, **{key: each for key, each in fields.items() if each is not None}}
    content = fields.get("content")
    if isinstance(content, list) and any(_is_block(each) for each in content):
        read = _read_blocks(fields, content)
    else:
        calls = fields.get("tool_calls")
        if calls is not None and not _are_objects(calls):
            raise TypeError("a message's tool calls are no list of objects")
        fields.pop("annotations", None)  # the answer's only; it is not sent back
        read = from_openai_chat(fields)
    return read if reason is None else {**read, "finish_reason": str(reason)}


def _read_langchain(message: Mapping[str, Any]) -> dict[str, Any]:
    """LangChain's message -> OpenAI's fields; any other as it is."""
    kwargs = message.get("kwargs")
    if not isinstance(kwargs, dict):
        return dict(message)
    name = message.get("id")
    kind = str(kwargs.get("type") or (name[-1] if isinstance(name, list) and name else ""))
    kind = kind.removesuffix("Chunk").removesuffix("Message").lower()
    fields: dict[str, Any] = {
        "role": _ROLE_OF_TYPE.get(kind, "assistant"),
        "content": kwargs.get("content"),
    }
    if kwargs.get("tool_calls"):
        fields["tool_calls"] = [_write_call(call) for call in kwargs["tool_calls"]]
    if "tool_call_id" in kwargs:
        fields["tool_call_id"] = kwargs["tool_call_id"]
    told = kwargs.get("response_metadata")
    reasons = ("finish_reason", "stop_reason")
    if isinstance(told, dict):
        fields["finish_reason"] = next((told[each] for each in reasons if each in told), None)
    more = kwargs.get("additional_kwargs")
    if isinstance(more, dict) and more.get("reasoning_content"):
        fields["reasoning_content"] = more["reasoning_content"]
    if "finish_reason" in message:
        fields["finish_reason"] = message["finish_reason"]
    return fields


def _write_call(call: Any) -> dict[str, Any]:
    call = call if isinstance(call, dict) else {}
    arguments = call.get("args")
    text = arguments if isinstance(arguments, str) else dump_json(arguments or {})
    return {
        "id": call.get("id"),
        "type": "function",
        "function": {"name": call.get("name"), "arguments": text},
    }


def _read_blocks(fields: Mapping[str, Any], content: list[Any]) -> Message:
    parts = [read_block(block) for block in content]
    results_only = bool(parts) and all(part["type"] == "tool_call_response" for part in parts)
    return {"role": "tool" if results_only else str(fields["role"]), "parts": parts}


def _is_block(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") in _BLOCKS


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)
