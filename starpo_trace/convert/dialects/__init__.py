"""SpanRow -> canonical span, or the reason why not.

Routing is per span, because traces that mix dialects are normal: by keys first, by scope where
keys do not decide. A dialect is one module here with `matches(span)` and `convert(span)`.
"""

from collections.abc import Mapping
from json import JSONDecodeError
from typing import Final

from starpo_trace.convert.dialects import (
    adk,
    agentlightning,
    frameworks,
    genai,
    haystack,
    langsmith,
    litellm,
    logrecords,
    openinference,
    openllmetry,
    pydanticai,
    traceai,
)
from starpo_trace.convert.dialects import langfuse as langfuse_dialect
from starpo_trace.convert.dialects import mlflow as mlflow_dialect
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.content import HistoryMismatchError, valid_text
from starpo_trace.convert.otlp import SpanRow, describe_fault
from starpo_trace.semconv import RECORD

NATIVE: Final = (logrecords, frameworks, langsmith, haystack, litellm, pydanticai, agentlightning)
"""Dialects of single frameworks, known by marks of their own; never spans of ours."""
DIALECTS: Final = (
    *(adk, genai, openinference, traceai, openllmetry),
    *(mlflow_dialect, langfuse_dialect),  # last: they say less than what they keep of others
)
"""Dialects of many frameworks, in the order they are tried."""

_ALL: Final = (*NATIVE, *DIALECTS)
_ROLLOUT: Final = ("agentlightning.rollout_id", "agentlightning.attempt_id")

_OTHER_DIALECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "openinference without openinference.span.kind": (
        "llm.input_messages.",
        "llm.output_messages.",
    ),
    "openllmetry without a kind": ("traceloop.",),
    "gen_ai without gen_ai.operation.name": ("gen_ai.",),
}
_OTHER_SCOPES: Final[Mapping[str, str]] = {
    "openinference.": "openinference without openinference.span.kind",
    "traceai": "traceai without gen_ai.span.kind",
}


def convert_span(span: SpanRow) -> CanonicalSpan | Rejection:
    """One span -> its canonical rows, or a rejection with its reason; never an exception.

    Reasons: `unknown_dialect` (an agent span whose dialect is not read), `not_an_agent_span`,
    and those of the dialect (`unknown_operation`, `malformed_attributes`, `history_mismatch`,
    `container`: it only holds steps, `part_of_call`, `mcp_transport`, `reward_value`).
    """
    # Ours need no search among the others.
    is_ours = RECORD in span.attributes and not logrecords.matches(span)
    for dialect in (genai,) if is_ours else _ALL:
        if dialect.matches(span):
            try:
                return _add_rollout(span, dialect.convert(span))
            except HistoryMismatchError as error:
                return Rejection(reason="history_mismatch", detail=str(error))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                detail = _name_attribute(span, error) + describe_fault(error)
                return Rejection(reason="malformed_attributes", detail=detail[:500])
            except RecursionError:
                return Rejection(reason="malformed_attributes", detail="nested too deeply")
    name = _other_dialect(span)
    if name is not None:
        return Rejection(reason="unknown_dialect", detail=name)
    return Rejection(reason="not_an_agent_span")


def _name_attribute(span: SpanRow, error: Exception) -> str:
    """The attribute whose text is no JSON, where that is what failed."""
    if not isinstance(error, JSONDecodeError):
        return ""
    return next((f"{key}: " for key, value in span.attributes.items() if value == error.doc), "")


def _add_rollout(span: SpanRow, converted: CanonicalSpan | Rejection) -> CanonicalSpan | Rejection:
    """agent-lightning: whose run it is, is told of the process, whoever writes the span."""
    if _ROLLOUT[0] in span.resource and isinstance(converted, CanonicalSpan):
        told = [str(span.resource.get(name) or "") for name in _ROLLOUT]
        if all(told):
            converted.columns.setdefault("conversation_id", valid_text("/".join(told)))
    return converted


def _other_dialect(span: SpanRow) -> str | None:
    for name, prefixes in _OTHER_DIALECTS.items():
        if any(key.startswith(prefixes) for key in span.attributes):
            return name
    for prefix, name in _OTHER_SCOPES.items():
        if span.scope.startswith(prefix):
            return name
    return "gen_ai events" if span.events else None
