"""traceAI span (FutureAGI) -> canonical span, through GenAI attributes.

GenAI's names with OpenInference's form: `gen_ai.input.messages` is no text but the beginning of
names, and tools are flattened too.
"""

from typing import Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai, openinference
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.flattened import translate_span
from starpo_trace.convert.otlp import SpanRow

_KINDS: Final = ("gen_ai.span.kind", "fi.span.kind")
_NAMES: Final = {
    "input": keys.INPUT_MESSAGES,
    "output": keys.OUTPUT_MESSAGES,
    "tools": keys.TOOL_DEFINITIONS,
    "parameters": "gen_ai.request.parameters",
    keys.CONVERSATION_ID: "session.id",
}
_PREFIXES: Final = ("llm.input_messages.", "llm.output_messages.", "llm.token_count.")
_OTHER_NAMES: Final = openinference.NAMES
"""Outside of Python the names are OpenInference's, but for the kind's."""


def matches(span: SpanRow) -> bool:
    """Whether the span has traceAI's kind."""
    return any(kind in span.attributes for kind in _KINDS)


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """TraceAI span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    kind = next(kind for kind in _KINDS if kind in span.attributes)
    names = _OTHER_NAMES if any(n.startswith(_PREFIXES) for n in span.attributes) else _NAMES
    return genai.convert(
        replace(span, attributes=translate_span(span.attributes, {**names, "kind": kind}))
    )
