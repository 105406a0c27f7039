"""What somebody said of a span, a trace or a session -> a span of its own that carries it.

Carriers have OpenInference's form, so that feedback of every backend takes one way to the rewards.
"""

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from starpo_trace.convert.otlp import SpanRow

ANY: Final = ""
"""Trace id of a target known by its span alone, or span id of a whole trace."""

_SCOPES: Final = {"span": "", "trace": "trace.", "session": "session."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One judgement."""

    key: str
    """What tells it apart from all others, and from its own earlier version."""
    name: str
    """What was judged."""
    value: Any = None
    """A number, a truth value, or a text, which is a label."""
    label: Any = None
    """A word for it."""
    explanation: Any = None
    """Why."""
    annotator: str | None = None
    """HUMAN, LLM or CODE; None: not told."""
    identifier: Any = None
    """Tells several of one name on one target apart."""
    time_ns: int = 0
    """When it was given, or changed last."""
    trace_id: str = ANY
    """Trace of its target."""
    span_id: str = ANY
    """Span that it is about."""
    session_id: str | None = None
    """Session that it is about."""


def make_carrier(feedback: Feedback, source: str) -> SpanRow:
    """Feedback -> a span that links to its target, or names the session.

    Raises:
        ValueError: it names no target.
    """
    is_of_session = not feedback.trace_id and not feedback.span_id
    if is_of_session and not feedback.session_id:
        raise ValueError("feedback names no span, trace or session that it is about")
    scope = "session" if is_of_session else "span" if feedback.span_id else "trace"
    score, label = _read_value(feedback)
    explanation = ": ".join(str(each) for each in (label, feedback.explanation) if each)
    fields = {
        "name": feedback.name,
        "score": score,
        "explanation": explanation or None,
        "annotator_kind": feedback.annotator,
        "identifier": feedback.identifier or None,
    }
    attributes = {
        f"{_SCOPES[scope]}annotations.0.annotation.{name}": value
        for name, value in fields.items()
        if value is not None
    }
    if is_of_session:
        attributes["session.id"] = feedback.session_id
    digits = blake2b(feedback.key.encode("utf-8", "replace"), digest_size=24).hexdigest()
    return SpanRow(
        source=source,
        trace_id=feedback.trace_id or digits[16:],
        span_id=digits[:16],
        name=f"feedback {feedback.name}",
        start_ns=feedback.time_ns,
        end_ns=feedback.time_ns or None,
        attributes=attributes,
        links=() if is_of_session else ((feedback.trace_id, feedback.span_id),),
    )


def _read_value(feedback: Feedback) -> tuple[float | None, Any]:
    """Score and label; a truth value is 1 or 0, a text is no number."""
    value = feedback.value
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value), feedback.label
    return None, feedback.label if value is None else value
