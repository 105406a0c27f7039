"""Haystack span -> canonical span, through GenAI attributes.

Its spans have no kind: what they are, their names say, and what they hold is JSON of Haystack's
own messages. Content is off unless `HAYSTACK_CONTENT_TRACING_ENABLED` is set.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.dialects.flattened import PARAMETERS
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

Part = dict[str, Any]

_PREFIX: Final = "haystack."
_OPERATION_OF_NAME: Final = {
    "haystack.agent.run": "invoke_agent",
    "haystack.pipeline.run": "invoke_workflow",
    "haystack.async_pipeline.run": "invoke_workflow",
    "haystack.agent.step.llm": "chat",
    "haystack.agent.step.tool": "execute_tool",
    "haystack.component.run": "plan",
}
_CONTENT_OF_NAME: Final = {
    "haystack.agent.step.llm": ("haystack.agent.step.llm.input", "haystack.agent.step.llm.output"),
    "haystack.agent.step.tool": (
        "haystack.agent.step.tool.input",
        "haystack.agent.step.tool.output",
    ),
    "haystack.component.run": ("haystack.component.input", "haystack.component.output"),
}
_GENERATOR: Final = "Generator"
_USAGE: Final = {
    keys.USAGE_INPUT_TOKENS: ("prompt_tokens", "input_tokens"),
    keys.USAGE_OUTPUT_TOKENS: ("completion_tokens", "output_tokens"),
}


def matches(span: SpanRow) -> bool:
    """Whether the span's name, or one of its attributes, is Haystack's."""
    return span.name.startswith(_PREFIX) or any(
        name.startswith(_PREFIX) for name in span.attributes
    )


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """Haystack span -> canonical span; a step of an agent is where calls are, and none itself.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    if span.name == "haystack.agent.step":
        step = span.attributes.get("haystack.agent.step")
        return Rejection(reason="container", detail=f"step {step} of an agent")
    operation = _OPERATION_OF_NAME.get(span.name)
    if operation is None:
        return Rejection(reason="unknown_operation", detail=span.name)
    attributes = dict(span.attributes)
    names = _CONTENT_OF_NAME.get(span.name)
    given, gave = (_load(attributes.get(name)) for name in names) if names else (None, None)
    is_generator = _GENERATOR in str(attributes.get("haystack.component.type", ""))
    if operation == "plan" and (is_generator or (isinstance(gave, dict) and "replies" in gave)):
        operation = "chat"
    attributes[keys.OPERATION_NAME] = operation
    if operation == "chat":
        attributes |= _read_call(_as_object(given), _as_object(gave))
    elif operation == "execute_tool":
        attributes[keys.TOOL_NAME] = attributes.get("haystack.tool.name")
        attributes[keys.TOOL_CALL_ARGUMENTS] = dump_json(given)
        attributes[keys.TOOL_CALL_RESULT] = dump_json(gave)
    return genai.convert(replace(span, attributes=attributes))


def _load(value: Any) -> Any:
    """JSON text -> what it holds; other text as it is."""
    try:
        return read_json(value)
    except ValueError:
        return value


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_call(given: Mapping[str, Any], gave: Mapping[str, Any]) -> dict[str, Any]:
    messages = given.get("messages")
    if messages is None and given.get("prompt") is not None:  # a generator of texts
        messages = [{"role": "user", "content": [{"text": given["prompt"]}]}]
    replies = _as_list(gave.get("replies"))
    metas = _as_list(gave.get("meta")) or [_field(reply, "meta") for reply in replies]
    found: dict[str, Any] = {}
    if messages is not None:
        found[keys.INPUT_MESSAGES] = dump_json([read_message(each) for each in _as_list(messages)])
    if replies:
        said = [read_message(each) for each in replies]
        found[keys.OUTPUT_MESSAGES] = dump_json(said)
    meta = _as_object(metas[0]) if metas else {}
    if meta.get("model") is not None:
        found[keys.RESPONSE_MODEL] = meta["model"]
    if meta.get("finish_reason") is not None:
        found[keys.RESPONSE_FINISH_REASONS] = [str(meta["finish_reason"])]
    usage = _as_object(meta.get("usage"))
    for key, names in _USAGE.items():
        counted = next((usage[name] for name in names if isinstance(usage.get(name), int)), None)
        if counted is not None:
            found[key] = counted
    tools = _as_list(given.get("tools"))
    if tools:
        found[keys.TOOL_DEFINITIONS] = dump_json([_read_tool(tool) for tool in tools])
    parameters = _as_object(given.get("generation_kwargs"))
    return found | {key: parameters[name] for name, key in PARAMETERS.items() if name in parameters}


def read_message(message: Any) -> dict[str, Any]:
    """Haystack's chat message, in its newer or older form, or a text -> GenAI message.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(message, str):
        return {"role": "assistant", "parts": [{"type": "text", "content": message}]}
    if not isinstance(message, dict):
        raise TypeError(f"a message is {type(message).__name__}, no object")
    content = _field(message, "content")
    blocks = content if isinstance(content, list) else [{"text": content}]
    result: dict[str, Any] = {
        "role": str(_field(message, "role") or "user"),
        "parts": [_read_block(block) for block in blocks if block != {"text": None}],
    }
    if _field(message, "name") is not None:
        result["name"] = _field(message, "name")
    return result


def _read_block(block: Any) -> Part:
    if not isinstance(block, dict):
        raise TypeError(f"a content is {type(block).__name__}, no object")
    call, result = block.get("tool_call"), block.get("tool_call_result")
    reasoning = block.get("reasoning")
    if isinstance(call, dict):
        arguments = call.get("arguments")
        text = arguments if isinstance(arguments, str) else dump_json(arguments or {})
        return {
            "type": "tool_call",
            "id": call.get("id"),
            "name": call.get("tool_name"),
            "arguments": text,
        }
    if isinstance(result, dict):
        call_id = _as_object(result.get("origin")).get("id")
        return {"type": "tool_call_response", "id": call_id, "response": result.get("result")}
    if isinstance(reasoning, dict):
        return {"type": "reasoning", "content": str(reasoning.get("reasoning_text") or "")}
    if isinstance(block.get("text"), str):
        return {"type": "text", "content": block["text"]}
    return {"type": next(iter(block), "unknown"), "raw": block}


def _read_tool(tool: Any) -> Any:
    """A serialised tool -> its definition."""
    data = _as_object(_as_object(tool).get("data"))
    if "name" not in data:
        return tool
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {n: data[n] for n in names if n in data}}


def _field(message: Any, name: str) -> Any:
    message = _as_object(message)
    return message.get(name, message.get(f"_{name}"))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
