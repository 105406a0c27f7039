"""GenAI's older span events, one for each message -> GenAI message attributes.

`gen_ai.{system,user,assistant,tool}.message` hold the prompt, `gen_ai.choice` each answer. What
they hold differs by who wrote them: texts, OpenAI's fields, or Bedrock's content blocks (Strands),
structured or as JSON text.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.messages import dump_json

Part = dict[str, Any]
Event = tuple[str, int, dict[str, Any]]

_ROLES: Final = {
    f"gen_ai.{name}.message": role
    for name, role in (
        ("system", "system"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("tool", "tool"),
    )
}
_CHOICE: Final = "gen_ai.choice"
_TEXT_PROMPT: Final = "gen_ai.prompt"
"""Semantic Kernel's text completions."""
_WHOLE_EVENT: Final = "gen_ai.event.content"
"""Where Azure and Semantic Kernel put all of an event, as JSON text."""
_MESSAGE_NAMES: Final = frozenset({"role", "content", "tool_calls"})
_BLOCK_NAMES: Final = frozenset(
    {
        "text",
        "toolUse",
        "toolResult",
        "reasoningContent",
        "image",
        "document",
        "video",
        "cachePoint",
        "guardContent",
        "citationsContent",
    }
)


def read_message_events(events: Iterable[Event]) -> dict[str, Any]:
    """Events of a span -> `gen_ai.input.messages` and `.output.messages`, where there are any.

    Raises:
        TypeError, ValueError: an event holds something else than a message.
    """
    prompt: list[dict[str, Any]] = []
    choices: list[tuple[int, dict[str, Any]]] = []
    for name, _, each in events:
        role = _ROLES.get(name)
        whole = _load(each.get(_WHOLE_EVENT))
        fields = {**each, **whole} if isinstance(whole, dict) else each
        if role is not None:
            prompt.append(read_message(fields, role))
        elif name == _CHOICE:
            choices.append((_read_index(fields), read_choice(fields)))
        elif name == _TEXT_PROMPT:
            prompt.append(read_message({"content": each.get(_WHOLE_EVENT)}, "user"))
    answers = [answer for _, answer in sorted(choices, key=lambda choice: choice[0])]
    found = {keys.INPUT_MESSAGES: prompt, keys.OUTPUT_MESSAGES: answers}
    return {key: messages for key, messages in found.items() if messages}


def read_choice(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `gen_ai.choice` -> the answer they hold.

    Raises:
        TypeError: its calls are none.
    """
    message = _load(fields.get("message"))
    if not isinstance(message, dict) or _MESSAGE_NAMES.isdisjoint(message):
        message = {"content": fields.get("message", fields.get("content"))}
    message = {**message, "tool_calls": message.get("tool_calls", fields.get("tool_calls"))}
    answer = read_message(message, "assistant")
    if fields.get("finish_reason") is not None:
        answer["finish_reason"] = str(fields["finish_reason"])
    return answer


def read_message(fields: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Fields of a message's event, and the role that its name says -> GenAI message.

    Raises:
        TypeError: its calls are none.
    """
    role = str(fields.get("role") or role)
    content = _load_blocks(fields.get("content"))
    if role == "tool" and not _is_blocks(content):
        response = {"type": "tool_call_response", "id": fields.get("id")}
        return {"role": role, "parts": [{**response, "response": content}]}
    parts = [*_read_content(content), *_read_calls(_load(fields.get("tool_calls")))]
    if role == "user" and parts and all(p["type"] == "tool_call_response" for p in parts):
        role = "tool"  # Bedrock has no role of its own for results
    return {"role": role, "parts": parts}


def _read_index(fields: Mapping[str, Any]) -> int:
    index = fields.get("index")
    return index if isinstance(index, int) else 0


def _read_content(content: Any) -> list[Part]:
    if content is None or content == []:
        return []
    if not _is_blocks(content):
        text = content if isinstance(content, str) else dump_json(content)
        return [{"type": "text", "content": text}]
    return [_read_block(block) for block in content]


def _is_blocks(content: Any) -> bool:
    """Whether it is content in parts, and not a list that somebody said or a tool gave."""
    return (
        _is_objects(content)
        and content != []
        and all(
            isinstance(block.get("type"), str) or not _BLOCK_NAMES.isdisjoint(block)
            for block in content
        )
    )


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _read_block(block: Mapping[str, Any]) -> Part:
    """One block of Bedrock's, or a part with a type."""
    call, result = block.get("toolUse"), block.get("toolResult")
    if isinstance(call, dict):
        return _make_call(call.get("toolUseId"), call.get("name"), call.get("input"))
    if isinstance(result, dict):
        response: Any = result.get("content")
        blocks = response if isinstance(response, list) else []
        if blocks and _is_objects(blocks) and all(set(each) == {"text"} for each in blocks):
            response = "".join(str(each["text"]) for each in blocks)
        return {
            "type": "tool_call_response",
            "id": result.get("toolUseId"),
            "response": response,
        }
    reasoning = block.get("reasoningContent")
    if isinstance(reasoning, dict):
        told = reasoning.get("reasoningText")
        told = told if isinstance(told, dict) else {}
        part: Part = {"type": "reasoning", "content": str(told.get("text") or "")}
        signature = told.get("signature")
        return part if signature is None else {**part, "meta": {"signature": signature}}
    text = block.get("text", block.get("content"))
    if block.get("type", "text") == "text" and isinstance(text, str):
        return {"type": "text", "content": text}
    return {"type": str(block.get("type", "unknown")), "raw": dict(block)}


def _read_calls(calls: Any) -> list[Part]:
    if calls is None:
        return []
    if not _is_objects(calls):
        raise TypeError(f"tool calls are {type(calls).__name__}, no list of objects")
    parts = []
    for call in calls:
        function = call.get("function")
        function = function if isinstance(function, dict) else call
        parts.append(_make_call(call.get("id"), function.get("name"), function.get("arguments")))
    return parts


def _make_call(call_id: Any, name: Any, arguments: Any) -> Part:
    text = arguments if isinstance(arguments, str) else dump_json(arguments or {})
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": text}


def _load(value: Any) -> Any:
    """JSON text of a list or an object -> what it holds; anything else as it is."""
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        try:
            found = read_json(value)
        except (ValueError, RecursionError):
            return value
        return found if _is_objects(found) or isinstance(found, dict) else value
    return value


def _load_blocks(content: Any) -> Any:
    """Content's parts, also as JSON text; any other text stays word for word."""
    found = _load(content)
    return found if _is_blocks(found) else content
