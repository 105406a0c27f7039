"""OpenInference span (Arize, Phoenix) -> canonical span, through GenAI attributes.

Kinds say what a span is; messages are flattened by index. What the SDK received is kept as text in
`output.value`, from which reasoning, token ids and log-probabilities are read.
"""

from typing import Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.annotations import holds_annotations, read_annotations
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.flattened import translate_span
from starpo_trace.convert.otlp import SpanRow

_KIND: Final = "openinference.span.kind"
NAMES: Final = {
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
}


_JUDGE_RUNS: Final = frozenset({"AGENT", "CHAIN"})


def matches(span: SpanRow) -> bool:
    """Whether the span has OpenInference's kind, or annotations."""
    return _KIND in span.attributes or holds_annotations(span.attributes)


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """OpenInference span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    if _KIND not in span.attributes:
        return _convert_carrier(span)
    converted = genai.convert(replace(span, attributes=translate_span(span.attributes, NAMES)))
    if isinstance(converted, Rejection) or not holds_annotations(span.attributes):
        return converted
    judges_run = span.attributes[_KIND] in _JUDGE_RUNS
    rewards = read_annotations(span, is_carrier=False, judges_run=judges_run)
    return replace(converted, rewards=(*converted.rewards, *rewards))


def _convert_carrier(span: SpanRow) -> CanonicalSpan | Rejection:
    """Late feedback: a span with one link to what it is about, or the session's id."""
    columns = genai.span_columns({}, "reward")
    if not span.links:
        columns["trajectory_id"] = span.attributes.get("session.id")
    rewards = read_annotations(span, is_carrier=True, judges_run=False)
    if not rewards:
        return Rejection(reason="reward_value", detail="its annotations are no list of any")
    return CanonicalSpan(record="reward", columns=columns, rewards=tuple(rewards))
