"""Log record of AWS's OpenTelemetry distribution (ADOT) -> GenAI message attributes.

ADOT takes what was said off the spans of any dialect and writes one log record for each: its body is
`{"input": {"messages": [...]}, "output": {"messages": [...]}}`, its event name that of the scope.
A message's content is what the attribute or event held: a text, JSON text of whole messages, or
an event's attributes. Answers of earlier turns stand among the outputs, where no order tells
where in the prompt they were.
"""

from typing import Any, Final, TypeGuard

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.dialects.legacyevents import read_choice, read_message
from starpo_trace.messages import dump_json

ORDER_LOST: Final = "content_order_lost"
"""Reason that a run has whose prompts cannot be told from what was recorded."""

Message = dict[str, Any]


def is_body(body: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a log record's body has ADOT's form."""
    if not isinstance(body, dict):
        return False
    sides = [body[name] for name in ("input", "output") if name in body]
    return bool(sides) and all(
        isinstance(side, dict) and isinstance(side.get("messages"), list) for side in sides
    )


def read_body(body: dict[str, Any]) -> dict[str, Any]:
    """Body -> `gen_ai.input.messages` and `.output.messages`, and a reason where order is lost.

    Raises:
        TypeError, ValueError: a message is none.
    """
    prompt = [message for each in _messages(body, "input") for message in _read(each)]
    said = [message for each in _messages(body, "output") for message in _read(each)]
    found: dict[str, Any] = {}
    if len(said) > 1 and any(message["role"] == "tool" for message in prompt):
        found[keys.USABLE_FOR_REASONS] = [ORDER_LOST]
    if prompt:
        prompt.sort(key=lambda message: message["role"] != "system")
        found[keys.INPUT_MESSAGES] = dump_json(prompt)
    if said:
        found[keys.OUTPUT_MESSAGES] = dump_json(said[-1:])
    return found


def _messages(body: dict[str, Any], side: str) -> list[Any]:
    return body.get(side, {}).get("messages", [])


def _read(message: Any) -> list[Message]:
    if not isinstance(message, dict):
        raise TypeError(f"a message is {type(message).__name__}, no object")
    role = str(message.get("role") or "user")
    content = message.get("content")
    if isinstance(content, dict):  # all attributes of an event
        if role == "assistant" and "message" in content:
            return [read_choice(content)]
        return [read_message(content, role)]
    whole = _load(content)
    if isinstance(whole, list) and whole and all(_is_object(each) for each in whole):
        if all(isinstance(each.get("parts"), list) for each in whole):
            return [{"role": role, **each} for each in whole]
        if all(isinstance(each.get("content"), str) and "type" in each for each in whole):
            return [{"role": role, "parts": whole}]
    return [read_message({"content": content}, role)]


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _load(content: Any) -> Any:
    if not isinstance(content, str) or not content.startswith("["):
        return None
    try:
        return read_json(content)
    except (ValueError, RecursionError):
        return None
