"""One chat message of any known form -> GenAI messages.

Backends keep messages as the program had them: OpenAI's, Anthropic's or Gemini's requests, LangChain's
objects, the Vercel AI SDK's parts, or GenAI messages.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from starpo_trace.capture.patches import anthropic_messages
from starpo_trace.capture.patches.google_genai_content import read_contents
from starpo_trace.capture.patches.openai_items import read_items
from starpo_trace.messages import Message, dump_json, from_openai_chat

Part = dict[str, Any]

_ROLES: Final = {
    "human": "user",
    "ai": "assistant",
    "aimessagechunk": "assistant",
    "model": "assistant",
    "chat": "user",
}
_LANGCHAIN_TYPES: Final = frozenset(
    {"human", "ai", "AIMessageChunk", "system", "tool", "function", "chat"}
)
_ANTHROPIC_TYPES: Final = frozenset(
    {"tool_use", "tool_result", "thinking", "redacted_thinking", "server_tool_use"}
)
_VERCEL_TYPES: Final = frozenset({"tool-call", "tool-result", "reasoning"})
_ITEM_TYPES: Final = frozenset({"function_call", "function_call_output", "reasoning"})
_CHAT_FIELDS: Final = (
    "role",
    "content",
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
    "refusal",
    "function_call",
)


def is_message(value: Any) -> bool:
    """Whether it is a message of one of these forms."""
    if not isinstance(value, Mapping):
        return False
    if isinstance(value.get("role"), str):
        return any(name in value for name in ("content", "parts", "tool_calls", "function_call"))
    if value.get("type") in _ITEM_TYPES or is_vercel_call(value):
        return True
    is_typed = value.get("type") in _LANGCHAIN_TYPES and "content" in value
    return is_typed or _read_constructor(value) is not None


def is_tool_definition(value: Any) -> bool:
    """Whether it is a tool's definition that Langfuse keeps among the messages."""
    content = value.get("content") if isinstance(value, Mapping) else None
    return isinstance(content, Mapping) and content.get("type") == "function"


def is_vercel_call(value: Mapping[str, Any]) -> bool:
    """Whether it is a tool call as the Vercel AI SDK says that a model asked for it."""
    return "toolCallId" in value and "toolName" in value and "role" not in value


def read_messages(values: Sequence[Any]) -> list[Message]:
    """Messages of these forms, each a mapping -> GenAI messages.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: one has another form.
    """
    if any(value.get("type") in _ITEM_TYPES for value in values):
        return read_items(values)
    if values and all(is_vercel_call(value) for value in values):
        return [{"role": "assistant", "parts": [_read_vercel_part(value) for value in values]}]
    return [message for value in values for message in read_message(value)]


def read_message(value: Mapping[str, Any]) -> list[Message]:
    """One message -> GenAI messages: a message of its own for each result of a tool.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it has another form.
    """
    value = _read_constructor(value) or value
    parts = value.get("parts")
    if isinstance(parts, list) and parts and "role" in value:
        if any(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in parts):
            return [dict(value)]
        return read_contents([value])
    chat = _read_chat(value)
    content = chat.get("content")
    if isinstance(content, list):
        types = {block.get("type") for block in content if isinstance(block, Mapping)}
        for known, read in _READERS:
            if not known.isdisjoint(types):
                return read(chat)
    elif content is not None and not isinstance(content, str):
        chat["content"] = dump_json(content)
    return [from_openai_chat(chat)]


def _read_constructor(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """LangChain's serialized constructor (`{"lc": 1, "id": [..., "AIMessage"], ...}`) -> its fields."""
    path, fields = value.get("id"), value.get("kwargs")
    if "lc" not in value or not isinstance(path, list) or not isinstance(fields, Mapping):
        return None
    kind = str(path[-1]).removesuffix("Chunk").removesuffix("Message").lower() if path else ""
    if kind not in _LANGCHAIN_TYPES:
        return None
    return {"type": kind, **fields}


def _read_chat(value: Mapping[str, Any]) -> dict[str, Any]:
    """LangChain's or OpenAI's fields -> OpenAI's; arguments as the server sent them where they are."""
    chat = {name: value[name] for name in _CHAT_FIELDS if value.get(name) is not None}
    role = str(value.get("role") or value.get("type") or "user")
    chat["role"] = _ROLES.get(role.lower(), role)
    more = value.get("additional_kwargs")
    more = more if isinstance(more, Mapping) else {}
    calls = more.get("tool_calls") or chat.get("tool_calls")
    if calls:
        chat["tool_calls"] = [_read_call(call) for call in calls]
    if more.get("reasoning_content") and "reasoning_content" not in chat:
        chat["reasoning_content"] = more["reasoning_content"]
    return chat


def _read_call(call: Any) -> Any:
    """A call of LangChain's form (`name`, `args`) -> OpenAI's."""
    if not isinstance(call, Mapping) or "args" not in call:
        return call
    arguments = call["args"]
    text = arguments if isinstance(arguments, str) else dump_json(arguments)
    function = {"name": call.get("name"), "arguments": text}
    return {"id": call.get("id"), "type": "function", "function": function}


def _read_anthropic(chat: Mapping[str, Any]) -> list[Message]:
    return anthropic_messages.read_message({key: chat[key] for key in ("role", "content")})


def _read_vercel(chat: Mapping[str, Any]) -> list[Message]:
    parts = [_read_vercel_part(part) for part in chat["content"]]
    if chat["role"] == "tool":
        return [{"role": "tool", "parts": [part]} for part in parts]
    return [{"role": chat["role"], "parts": parts}]


def _read_vercel_part(part: Mapping[str, Any]) -> Part:
    kind = part.get("type", "tool-call")
    if kind == "tool-call":
        arguments = part.get("input", part.get("args"))
        return {
            "type": "tool_call",
            "id": part.get("toolCallId"),
            "name": part.get("toolName"),
            "arguments": arguments if isinstance(arguments, str) else dump_json(arguments),
        }
    if kind == "tool-result":
        result = part.get("output", part.get("result"))
        if isinstance(result, Mapping) and result.keys() >= {"type", "value"}:
            result = result["value"]
        return {"type": "tool_call_response", "id": part.get("toolCallId"), "response": result}
    if kind in {"text", "reasoning"}:
        return {"type": kind, "content": str(part.get("text") or "")}
    return {"type": str(kind), "raw": dict(part)}


_READERS: Final[tuple[tuple[frozenset[str], Callable[[Mapping[str, Any]], list[Message]]], ...]] = (
    (_VERCEL_TYPES, _read_vercel),
    (_ANTHROPIC_TYPES, _read_anthropic),
)
"""Types of blocks -> who reads a message that has one."""
