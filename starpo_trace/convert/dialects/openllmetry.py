"""OpenLLMetry span (Traceloop) -> canonical span, through GenAI attributes.

Newer versions write GenAI attributes and keep their own kind beside them; older ones flatten
messages into `gen_ai.prompt.N.*` and `gen_ai.completion.N.*`.
"""

import ast
import json
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.dialects.flattened import gather
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

_KIND: Final = "traceloop.span.kind"
_REQUEST_TYPE: Final = "llm.request.type"
_OPERATION_OF_KIND: Final = {
    "workflow": "invoke_workflow",
    "agent": "invoke_agent",
    "tool": "execute_tool",
    "task": "plan",
}
_OPERATION_OF_REQUEST: Final = {
    "chat": "chat",
    "completion": "text_completion",
    "embedding": "embeddings",
    "rerank": "retrieval",
}
_RENAMED: Final = {
    keys.PROVIDER_NAME: ("gen_ai.system",),
    keys.USAGE_INPUT_TOKENS: ("gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens"),
    keys.USAGE_OUTPUT_TOKENS: ("gen_ai.usage.completion_tokens", "llm.usage.completion_tokens"),
    keys.TOOL_NAME: ("traceloop.entity.name",),
    keys.REQUEST_TEMPERATURE: ("llm.request.temperature", "llm.temperature"),
    keys.REQUEST_TOP_P: ("llm.top_p",),
}
_ROLES: Final = ("system", "user", "assistant")
"""Older still, a message is its text under its role."""
_NAMES_OF_AGENTS: Final = ("traceloop.entity.name", "traceloop.workflow.name")


def matches(span: SpanRow) -> bool:
    """Whether the span has OpenLLMetry's kind, or messages in its older form."""
    attributes = span.attributes
    flattened = ("gen_ai.prompt.0.role", "gen_ai.completion.0.role", "gen_ai.completion.0.content")
    return (
        _KIND in attributes
        or _REQUEST_TYPE in attributes
        or any(name in attributes for name in flattened)
    )


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """OpenLLMetry span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    return genai.convert(replace(span, attributes=_translate(span.attributes)))


def _translate(attributes: Mapping[str, Any]) -> dict[str, Any]:
    translated = dict(attributes)
    for own, names in _RENAMED.items():
        found = next((attributes[name] for name in (own, *names) if name in attributes), None)
        if found is not None:
            translated[own] = found
    operation = attributes.get(keys.OPERATION_NAME) or _find_operation(attributes)
    translated[keys.OPERATION_NAME] = operation
    if operation in {"invoke_agent", "invoke_workflow"} and keys.AGENT_NAME not in attributes:
        name = next((attributes[each] for each in _NAMES_OF_AGENTS if each in attributes), None)
        translated[keys.AGENT_NAME] = name
    if operation == "execute_tool":
        translated.setdefault(keys.TOOL_CALL_ARGUMENTS, _read_entity(attributes, "input"))
        translated.setdefault(keys.TOOL_CALL_RESULT, _read_entity(attributes, "output"))
    return translated | _translate_messages(attributes)


def _find_operation(attributes: Mapping[str, Any]) -> str:
    request = attributes.get(_REQUEST_TYPE)
    if request is not None:
        return _OPERATION_OF_REQUEST.get(str(request), str(request))
    kind = attributes.get(_KIND)
    return "chat" if kind is None else _OPERATION_OF_KIND.get(str(kind), str(kind))


def _translate_messages(attributes: Mapping[str, Any]) -> dict[str, Any]:
    translated: dict[str, Any] = {}
    for key, prefix in (
        (keys.INPUT_MESSAGES, "gen_ai.prompt"),
        (keys.OUTPUT_MESSAGES, "gen_ai.completion"),
    ):
        messages = gather(attributes, prefix)
        if key not in attributes and isinstance(messages, list):
            translated[key] = dump_json([_read_message(message) for message in messages])
    functions = gather(attributes, "llm.request.functions")
    if keys.TOOL_DEFINITIONS not in attributes and isinstance(functions, list):
        translated[keys.TOOL_DEFINITIONS] = dump_json([_read_function(each) for each in functions])
    return translated


def _read_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise TypeError(f"a message is {type(message).__name__}, no object")
    role = message.get("role") or next((name for name in _ROLES if name in message), "assistant")
    content = message.get("content", message.get(role))
    role = str(role)
    calls = [_read_call(call) for call in message.get("tool_calls") or ()]
    if role == "tool":
        response = {"type": "tool_call_response", "id": message.get("tool_call_id")}
        return {"role": role, "parts": [{**response, "response": content}]}
    parts: list[dict[str, Any]] = []
    if message.get("reasoning") is not None:
        parts.append({"type": "reasoning", "content": str(message["reasoning"])})
    parts += _read_content(content)
    result: dict[str, Any] = {"role": role, "parts": parts + calls}
    if message.get("finish_reason") is not None:
        result["finish_reason"] = message["finish_reason"]
    return result


def _read_content(content: Any) -> list[dict[str, Any]]:
    """Text, or several parts as JSON text."""
    if content is None:
        return []
    if isinstance(content, str) and content.startswith('[{"type"'):
        try:
            found = read_json(content)
        except ValueError:
            found = None
        if isinstance(found, list) and all(isinstance(each, dict) for each in found):
            return [
                {"type": "text", "content": str(each.get("text", ""))}
                if each.get("type") == "text"
                else {"type": str(each.get("type")), "raw": each}
                for each in found
            ]
    return [{"type": "text", "content": content if isinstance(content, str) else str(content)}]


def _read_call(call: Any) -> dict[str, Any]:
    call = call if isinstance(call, dict) else {}
    arguments = call.get("arguments")
    return {
        "type": "tool_call",
        "id": call.get("id"),
        "name": call.get("name"),
        "arguments": arguments if isinstance(arguments, str) else dump_json(arguments or {}),
    }


def _read_function(function: Any) -> Any:
    """A tool whose parameters are JSON text -> its definition."""
    if not isinstance(function, dict):
        return function
    try:
        return {**function, "parameters": read_json(function.get("parameters"))}
    except ValueError:
        return function


def _read_entity(attributes: Mapping[str, Any], side: str) -> str | None:
    """What a tool was given or gave: LangChain's wrapper holds the Python form of a value."""
    text = attributes.get(f"traceloop.entity.{side}")
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if not isinstance(found, dict):
        return text
    wrapped = found.get("input_str" if side == "input" else "output")
    if not isinstance(wrapped, str):
        return text
    try:
        return dump_json(ast.literal_eval(wrapped))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return wrapped
