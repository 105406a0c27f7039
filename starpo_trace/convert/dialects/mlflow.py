"""MLflow's own span -> canonical span, through GenAI attributes.

What a function or a model was given and gave is in two attributes; for a model these are the request
and the answer of its provider's API.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.chatvalues import translate_exchange
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.dialects.flattened import STEP_KIND_OF_KIND
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

_KIND: Final = "mlflow.spanType"
_OPERATION_OF_KIND: Final = {
    "CHAT_MODEL": "chat",
    "LLM": "chat",
    "AGENT": "invoke_agent",
    "CHAIN": "invoke_workflow",
    "WORKFLOW": "invoke_workflow",
    "TOOL": "execute_tool",
    "RETRIEVER": "retrieval",
    "RERANKER": "retrieval",
    "EMBEDDING": "embeddings",
}
"""Other kinds are a step like any other."""
_NAMES: Final = {
    keys.REQUEST_MODEL: "mlflow.llm.model",
    keys.PROVIDER_NAME: "mlflow.llm.provider",
    keys.CONVERSATION_ID: "mlflow.trace.session",
    keys.REQUEST_TEMPERATURE: "temperature",
    keys.REQUEST_TOP_P: "top_p",
    keys.REQUEST_TOP_K: "top_k",
}
_USAGE: Final = {
    keys.USAGE_INPUT_TOKENS: "input_tokens",
    keys.USAGE_OUTPUT_TOKENS: "output_tokens",
}


def matches(span: SpanRow) -> bool:
    """Whether the span has MLflow's kind; one of another dialect that MLflow keeps is read by that."""
    return _KIND in span.attributes


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """MLflow span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    return genai.convert(replace(span, attributes=_translate(span.attributes, span.name)))


def _translate(attributes: Mapping[str, Any], name: str) -> dict[str, Any]:
    kind = str(attributes[_KIND]).upper()
    operation = _OPERATION_OF_KIND.get(kind, "plan")
    translated = {
        own: attributes[other] for own, other in _NAMES.items() if other in attributes
    } | {keys.OPERATION_NAME: operation}
    given, gave = (_load(attributes.get(f"mlflow.span{side}")) for side in ("Inputs", "Outputs"))
    if kind in STEP_KIND_OF_KIND:
        translated[keys.STEP_KIND] = STEP_KIND_OF_KIND[kind]
    if operation == "chat":
        translated |= translate_exchange(given, gave)
        tools = _load(attributes.get("mlflow.chat.tools"))
        if keys.TOOL_DEFINITIONS not in translated and tools is not None:
            translated[keys.TOOL_DEFINITIONS] = dump_json(tools)
        usage = _load(attributes.get("mlflow.chat.tokenUsage"))
        usage = usage if isinstance(usage, Mapping) else {}
        translated |= {own: usage[other] for own, other in _USAGE.items() if other in usage}
    elif operation == "execute_tool":
        translated[keys.TOOL_NAME] = name
        translated[keys.TOOL_CALL_ARGUMENTS] = given if isinstance(given, str) else dump_json(given)
        translated[keys.TOOL_CALL_RESULT] = gave if isinstance(gave, str) else dump_json(gave)
    elif operation in {"invoke_agent", "invoke_workflow"}:
        translated[keys.AGENT_NAME] = name
    return translated


def _load(value: Any) -> Any:
    """A value, also as JSON text; text that is none stays text."""
    try:
        return read_json(value)
    except (ValueError, RecursionError):
        return value
