"""Google ADK's own spans (v1) -> canonical span, through GenAI attributes.

`call_llm` holds request and response as JSON of the Gemini API in snake case; the GenAI span below
it holds no content. A tool's arguments and response have keys of ADK's own beside GenAI's. After
several tools of one answer there is a span more (in v2 too), with the results of all.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.capture.patches.google_genai_content import read_contents, read_system, read_turn
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

_REQUEST: Final = "gcp.vertex.agent.llm_request"
_RESPONSE: Final = "gcp.vertex.agent.llm_response"
_TOOL_KEYS: Final = {
    keys.TOOL_CALL_ARGUMENTS: "gcp.vertex.agent.tool_call_args",
    keys.TOOL_CALL_RESULT: "gcp.vertex.agent.tool_response",
}
_PARAMETERS: Final = {
    "temperature": keys.REQUEST_TEMPERATURE,
    "top_p": keys.REQUEST_TOP_P,
    "top_k": keys.REQUEST_TOP_K,
}
_MERGED: Final = "(merged tools)"
_NO_CONTENT: Final = frozenset({None, "", "{}"})
_SNAKE: Final = re.compile("_([a-z])")


def matches(span: SpanRow) -> bool:
    """Whether it is ADK's span of a call or of a tool."""
    attributes = span.attributes
    if attributes.get(keys.TOOL_NAME) == _MERGED:
        return True
    is_call = _REQUEST in attributes and keys.OPERATION_NAME not in attributes
    return is_call or any(key in attributes for key in _TOOL_KEYS.values())


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """ADK span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    attributes = dict(span.attributes)
    if attributes.get(keys.TOOL_NAME) == _MERGED:
        return Rejection(reason="container", detail="the results of several tools")
    if keys.OPERATION_NAME in attributes:
        for own, name in _TOOL_KEYS.items():
            if attributes.get(name) not in _NO_CONTENT:
                attributes.setdefault(own, attributes[name])
    else:
        attributes[keys.OPERATION_NAME] = "generate_content"
        attributes |= _read_request(_load(attributes.get(_REQUEST)))
        attributes |= _read_response(_load(attributes.get(_RESPONSE)))
        session = attributes.get("gcp.vertex.agent.session_id")
        if session is not None:
            attributes.setdefault(keys.CONVERSATION_ID, session)
        span = _read_error(span, attributes)
    return genai.convert(replace(span, attributes=attributes))


def _read_error(span: SpanRow, attributes: dict[str, Any]) -> SpanRow:
    """A response that is an error has a code; the span's status does not say so."""
    response = _load(span.attributes.get(_RESPONSE))
    code = response.get("error_code")
    if code is None:
        return span
    attributes.setdefault(keys.ERROR_TYPE, str(code))
    message = response.get("error_message")
    return span if span.error is not None else replace(span, error=str(message or ""))


def _load(value: Any) -> dict[str, Any]:
    """JSON text of an object; `{}` where content is off."""
    found = {} if value in _NO_CONTENT else read_json(value)
    if not isinstance(found, dict):
        raise TypeError(f"expected an object, found {type(found).__name__}")
    return found


def _read_request(request: Mapping[str, Any]) -> dict[str, Any]:
    if not request:
        return {}
    config = request.get("config")
    config = config if isinstance(config, dict) else {}
    contents = [_rename(content) for content in request.get("contents") or ()]
    messages = [*read_system(_rename(config.get("system_instruction"))), *read_contents(contents)]
    found: dict[str, Any] = {keys.INPUT_MESSAGES: dump_json(messages)}
    if config.get("tools"):
        found[keys.TOOL_DEFINITIONS] = dump_json(config["tools"])
    return found | {key: config[name] for name, key in _PARAMETERS.items() if name in config}


def _read_response(response: Mapping[str, Any]) -> dict[str, Any]:
    content = _rename(response.get("content"))
    if not isinstance(content, dict):
        return {}
    message: dict[str, Any] = {"role": "assistant", "parts": read_turn(content.get("parts") or ())}
    if response.get("finish_reason") is not None:
        message["finish_reason"] = str(response["finish_reason"])
    return {keys.OUTPUT_MESSAGES: dump_json([message])}


def _rename(content: Any) -> Any:
    """Content with its parts' own names as the API spells them: `function_call` -> `functionCall`."""
    if not isinstance(content, dict):
        return content
    parts = [
        {_SNAKE.sub(lambda found: found[1].upper(), name): value for name, value in part.items()}
        for part in content.get("parts") or ()
        if isinstance(part, dict)
    ]
    return {**content, "parts": parts}
