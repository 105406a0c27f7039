"""SpanRow -> canonical span, or the reason why not.

Routing is per span, because traces that mix dialects are normal: by keys first, by scope where
keys do not decide. A dialect is one module here with `matches(span)` and `convert(span)`.
"""

from collections.abc import Mapping
from typing import Final

from starpo_trace.convert.dialects import adk, genai, openinference, openllmetry, traceai
from starpo_trace.convert.dialects import langfuse as langfuse_dialect
from starpo_trace.convert.dialects import mlflow as mlflow_dialect
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.content import HistoryMismatchError
from starpo_trace.convert.otlp import SpanRow, describe_fault

DIALECTS: Final = (
    *(adk, genai, openinference, traceai, openllmetry),
    *(mlflow_dialect, langfuse_dialect),  # last: they say less than what they keep of others
)
"""Dialects that are read, in the order they are tried."""

_OTHER_DIALECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "openinference without openinference.span.kind": (
        "llm.input_messages.",
        "llm.output_messages.",
    ),
    "openllmetry without a kind": ("traceloop.",),
    "agent-lightning": ("agentlightning.",),
    "langsmith": ("langsmith.",),
    "haystack": ("haystack.",),
    "gen_ai without gen_ai.operation.name": ("gen_ai.",),
}
_OTHER_SCOPES: Final[Mapping[str, str]] = {
    "openinference.": "openinference without openinference.span.kind",
    "traceai": "traceai without gen_ai.span.kind",
    "agentlightning": "agent-lightning",
}


def convert_span(span: SpanRow) -> CanonicalSpan | Rejection:
    """One span -> its canonical rows, or a rejection with its reason; never an exception.

    Reasons: `unknown_dialect` (an agent span whose dialect is not read), `not_an_agent_span`,
    and those of the dialect (`unknown_operation`, `malformed_attributes`, `history_mismatch`).
    """
    for dialect in DIALECTS:
        if dialect.matches(span):
            try:
                return dialect.convert(span)
            except HistoryMismatchError as error:
                return Rejection(reason="history_mismatch", detail=str(error))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                detail = describe_fault(error)
                return Rejection(reason="malformed_attributes", detail=detail[:500])
            except RecursionError:
                return Rejection(reason="malformed_attributes", detail="nested too deeply")
    name = _other_dialect(span)
    if name is not None:
        return Rejection(reason="unknown_dialect", detail=name)
    return Rejection(reason="not_an_agent_span")


def _other_dialect(span: SpanRow) -> str | None:
    for name, prefixes in _OTHER_DIALECTS.items():
        if any(key.startswith(prefixes) for key in span.attributes):
            return name
    for prefix, name in _OTHER_SCOPES.items():
        if span.scope.startswith(prefix):
            return name
    return "gen_ai events" if span.events else None
