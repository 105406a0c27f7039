"""Langfuse's own observation -> canonical span, through GenAI attributes.

The names are those that Langfuse's SDK writes on spans; the reader of exported files gives them to
every observation, beside what is left of the original span, whose dialect comes first.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.chatvalues import translate_exchange
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.dialects.flattened import PARAMETERS, STEP_KIND_OF_KIND
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

KIND: Final = "langfuse.observation.type"
INPUT: Final = "langfuse.observation.input"
OUTPUT: Final = "langfuse.observation.output"
MODEL: Final = "langfuse.observation.model.name"
MODEL_PARAMETERS: Final = "langfuse.observation.model.parameters"
USAGE: Final = "langfuse.observation.usage_details"
TOOLS: Final = "langfuse.observation.tool_definitions"
"""Not of the SDK: what Langfuse found itself."""
SESSION: Final = "session.id"

_OPERATION_OF_KIND: Final = {
    "generation": "chat",
    "agent": "invoke_agent",
    "chain": "invoke_workflow",
    "tool": "execute_tool",
    "retriever": "retrieval",
    "embedding": "embeddings",
}
"""Other kinds are a step like any other; a span above all others is the run."""
_USAGE: Final = {
    keys.USAGE_INPUT_TOKENS: "input",
    keys.USAGE_OUTPUT_TOKENS: "output",
}
_TRANSCRIPT: Final = re.compile(r"(system|developer|user|assistant|tool): ")
"""How text begins that Langfuse made of messages; where one ends in it cannot be told."""


def matches(span: SpanRow) -> bool:
    """Whether the span has Langfuse's kind."""
    return KIND in span.attributes


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """Langfuse observation -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    return genai.convert(replace(span, attributes=translate(span)))


def translate(span: SpanRow) -> dict[str, Any]:
    """What the observation says -> GenAI attributes."""
    attributes = span.attributes
    kind = str(attributes[KIND]).lower()
    operation = _OPERATION_OF_KIND.get(kind, "plan")
    if kind == "span" and span.parent_id is None:
        operation = "invoke_workflow"
    translated: dict[str, Any] = {keys.OPERATION_NAME: operation}
    if kind.upper() in STEP_KIND_OF_KIND:
        translated[keys.STEP_KIND] = STEP_KIND_OF_KIND[kind.upper()]
    if attributes.get(SESSION) is not None:
        translated[keys.CONVERSATION_ID] = attributes[SESSION]
    given, gave = _load(attributes.get(INPUT)), _load(attributes.get(OUTPUT))
    if operation == "chat":
        translated |= _translate_call(attributes, given, gave)
    elif operation == "execute_tool":
        translated[keys.TOOL_NAME] = span.name
        translated[keys.TOOL_CALL_ARGUMENTS] = given if isinstance(given, str) else dump_json(given)
        translated[keys.TOOL_CALL_RESULT] = gave if isinstance(gave, str) else dump_json(gave)
    elif operation in {"invoke_agent", "invoke_workflow"}:
        translated[keys.AGENT_NAME] = span.name
    return translated


def _translate_call(attributes: Mapping[str, Any], given: Any, gave: Any) -> dict[str, Any]:
    if isinstance(given, str) and _TRANSCRIPT.match(given):
        given = gave = None
    translated = translate_exchange(given, gave)
    if attributes.get(MODEL) is not None:
        translated.setdefault(keys.RESPONSE_MODEL, attributes[MODEL])
    tools = _load(attributes.get(TOOLS))
    if tools:
        translated.setdefault(keys.TOOL_DEFINITIONS, dump_json(tools))
    usage = _load(attributes.get(USAGE))
    usage = usage if isinstance(usage, Mapping) else {}
    translated = {own: usage[name] for own, name in _USAGE.items() if name in usage} | translated
    parameters = _load(attributes.get(MODEL_PARAMETERS))
    parameters = parameters if isinstance(parameters, Mapping) else {}
    found = {key: parameters.get(name) for name, key in PARAMETERS.items()}
    return {key: value for key, value in found.items() if value is not None} | translated


def _load(value: Any) -> Any:
    """A value, also as JSON text; text that is none stays text."""
    try:
        return read_json(value) if isinstance(value, str) and value[:1] in '{["' else value
    except (ValueError, RecursionError):
        return value
