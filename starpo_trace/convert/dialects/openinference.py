"""OpenInference span (Arize, Phoenix) -> canonical span, through GenAI attributes.

Kinds say what a span is; messages are flattened by index. What the SDK received is kept as text in
`output.value`, from which reasoning, token ids and log-probabilities are read.
"""

from dataclasses import replace
from typing import Final

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.flattened import translate_span
from starpo_trace.convert.otlp import SpanRow

_KIND: Final = "openinference.span.kind"
_NAMES: Final = {
    "kind": _KIND,
    "input": "llm.input_messages",
    "output": "llm.output_messages",
    "tools": "llm.tools",
    "parameters": "llm.invocation_parameters",
    keys.PROVIDER_NAME: "llm.provider",
    keys.REQUEST_MODEL: "llm.model_name",
    keys.RESPONSE_MODEL: "llm.response.model_name",
    keys.RESPONSE_FINISH_REASONS: "llm.finish_reason",
    keys.USAGE_INPUT_TOKENS: "llm.token_count.prompt",
    keys.USAGE_OUTPUT_TOKENS: "llm.token_count.completion",
    keys.AGENT_NAME: "agent.name",
    keys.CONVERSATION_ID: "session.id",
    keys.ERROR_TYPE: "error.type",
}


def matches(span: SpanRow) -> bool:
    """Whether the span has OpenInference's kind."""
    return _KIND in span.attributes


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """OpenInference span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    return genai.convert(replace(span, attributes=translate_span(span.attributes, _NAMES)))
