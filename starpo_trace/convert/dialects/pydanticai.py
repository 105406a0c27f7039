"""Pydantic AI's own spans -> canonical span, through GenAI attributes.

They are GenAI spans but for names of earlier versions (2: `tool_arguments`, `tool_response`; 1:
`events`, a list of message events), and results of tools that stand under `result`. A run's span
repeats all messages and the usage of its calls; neither is read from there.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.dialects.legacyevents import read_message_events
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

_SCOPE: Final = "pydantic-ai"
_EVENTS: Final = "events"
_ALL_MESSAGES: Final = "pydantic_ai.all_messages"
_RENAMED: Final = {
    keys.TOOL_CALL_ARGUMENTS: "tool_arguments",
    keys.TOOL_CALL_RESULT: "tool_response",
}
_OPERATION_OF_NAME: Final = {"running tool": "execute_tool", "agent run": "invoke_agent"}
_CONTAINERS: Final = frozenset(
    {"running tools", "running {number} tools", "preparing model request params"}
)


def matches(span: SpanRow) -> bool:
    """Whether Pydantic AI wrote it."""
    return span.scope == _SCOPE


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """Pydantic AI span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    attributes = dict(span.attributes)
    for own, name in _RENAMED.items():
        if name in attributes:
            attributes.setdefault(own, attributes[name])
    operation = attributes.get(keys.OPERATION_NAME) or _find_operation(span)
    if operation is None:
        is_container = span.name.startswith("running ") or span.name in _CONTAINERS
        reason = "container" if is_container else "unknown_operation"
        return Rejection(reason=reason, detail=span.name)
    attributes[keys.OPERATION_NAME] = operation
    if "agent_name" in attributes:
        attributes.setdefault(keys.AGENT_NAME, attributes["agent_name"])
    attributes |= _read_events(attributes)
    prompt = _read_results(attributes.get(keys.INPUT_MESSAGES))
    if prompt is not None:
        attributes[keys.INPUT_MESSAGES] = prompt
    return genai.convert(replace(span, attributes=attributes))


def _find_operation(span: SpanRow) -> str | None:
    """By name, or by attributes where a backend named the span by its message."""
    if span.name in _OPERATION_OF_NAME:
        return _OPERATION_OF_NAME[span.name]
    if keys.TOOL_NAME in span.attributes:
        return "execute_tool"
    return "invoke_agent" if _ALL_MESSAGES in span.attributes else None


def _read_events(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1: message events as one JSON attribute."""
    events = read_json(attributes.get(_EVENTS))
    if not isinstance(events, list) or keys.INPUT_MESSAGES in attributes:
        return {}
    named = [each for each in events if isinstance(each, dict)]
    return read_message_events((str(each.get("event.name", "")), 0, each) for each in named)


def _read_results(value: Any) -> str | None:
    """Messages with results under the name of the conventions; None when there are none."""
    if not isinstance(value, str) or '"result"' not in value:
        return None
    messages = read_json(value)
    for message in messages if isinstance(messages, list) else ():
        parts = message.get("parts") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else ():
            is_result = isinstance(part, dict) and part.get("type") == "tool_call_response"
            if is_result and "response" not in part and "result" in part:
                part["response"] = part.pop("result")
    return dump_json(messages)
