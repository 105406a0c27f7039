"""Row of a log record -> a reward, or the reason why it is nothing by itself.

Evaluations judge the span that they were emitted in. Other GenAI events belong into that span
(`starpo_trace.convert.joins` puts them there) and are rejected only where it is not found.
"""

from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import adot, genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.otlp import SpanRow, describe_fault

LOG_MARK: Final = "#"
"""In the id of a row that stands for a log record."""
LOG_BODY: Final = "starpo.log.body"
WITHOUT_SPAN: Final = "log_without_span"

EVALUATION: Final = "gen_ai.evaluation.result"
_DETAILS: Final = "gen_ai.client.inference.operation.details"
_WHOLE_EVENT: Final = "gen_ai.event.content"

Event = tuple[str, int, dict[str, Any]]


def matches(span: SpanRow) -> bool:
    """Whether the row stands for a log record."""
    return LOG_MARK in span.span_id


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """Log record -> reward, or its reason: `not_an_agent_log`, `malformed_log`, `log_without_span`."""
    event = read_event(span)
    if isinstance(event, Rejection):
        return event
    if span.name == EVALUATION and span.links:
        reward = genai.read_evaluation(event[2], span.start_ns, "llm")
        columns = genai.span_columns({}, "reward")
        return CanonicalSpan(record="reward", columns=columns, rewards=(reward,))
    detail = f"{span.name}: its span {span.parent_id or '(none)'} is not among those read"
    return Rejection(reason=WITHOUT_SPAN, detail=detail)


def is_evaluation(span: SpanRow) -> bool:
    """Whether it judges a call, and says nothing of what was said."""
    return span.name == EVALUATION


def read_event(span: SpanRow) -> Event | Rejection:
    """Log record -> the event that it is, or why it is none."""
    body = span.attributes.get(LOG_BODY)
    if adot.is_body(body):
        try:
            return _DETAILS, span.start_ns, adot.read_body(body)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            return Rejection(reason="malformed_log", detail=describe_fault(error)[:500])
    if not span.name.startswith("gen_ai."):
        return Rejection(reason="not_an_agent_log", detail=span.name)
    fields = {name: value for name, value in span.attributes.items() if name != LOG_BODY}
    if isinstance(body, dict):
        fields = {**body, **fields}
    elif isinstance(body, str) and body:
        fields = {_WHOLE_EVENT: body, **fields}
    return span.name, span.start_ns, fields


def list_noted(event: dict[str, Any]) -> list[str]:
    """Reasons that a record gives the run it belongs to."""
    noted = event.get(keys.USABLE_FOR_REASONS)
    return [reason for reason in noted or () if reason == adot.ORDER_LOST]
