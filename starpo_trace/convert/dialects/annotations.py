"""OpenInference annotations and evaluations -> reward rows.

On a span they judge it; on a carrier span of their own, which has exactly one link, what the link
points to, so that feedback may come late; below `trace.` or `session.` the whole run. The same
scope, target, name and identifier are the same reward, however often it is sent. Scores have no
range and no direction of their own.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from starpo_trace.convert.dialects.canonical import Columns
from starpo_trace.convert.dialects.content import valid_text
from starpo_trace.convert.dialects.flattened import gather
from starpo_trace.convert.otlp import SpanRow

_LISTS: Final = {"annotations": "annotation", "evaluations": "evaluation"}
_SCOPES: Final = {"": "", "trace.": "trace", "session.": "session"}
_SOURCES: Final = {"HUMAN": "user", "LLM": "judge", "CODE": "rule"}
"""Who says so -> sources of rewards."""
_MAX_ODD: Final = 500
"""Characters kept of what is no annotation."""
PREFIXES: Final = tuple(f"{scope}{name}." for scope in _SCOPES for name in _LISTS)


def holds_annotations(attributes: Mapping[str, Any]) -> bool:
    """Whether a span says what something was worth."""
    return any(name.startswith(PREFIXES) for name in attributes)


def read_annotations(span: SpanRow, *, is_carrier: bool, judges_run: bool) -> list[Columns]:
    """Annotations of a span -> rows of the frame `rewards`, those without a score too.

    Args:
        span: The span that has them.
        is_carrier: It is there for them alone.
        judges_run: A span-scope annotation is about the whole run, as on an agent's span.
    """
    target = f"{span.trace_id}-{span.span_id}"
    if is_carrier:
        session = span.attributes.get("session.id")
        target = "-".join(span.links[0]) if span.links else str(session)
    rows = []
    for prefix, scope in _SCOPES.items():
        for name, item in _LISTS.items():
            found = gather(span.attributes, f"{prefix}{name}")
            for each in found if isinstance(found, list) else ():
                fields = each.get(item) if isinstance(each, dict) else None
                if not isinstance(fields, dict):  # says something, if nothing that counts
                    fields = {"explanation": str(each)[:_MAX_ODD]}
                rows.append(_make_row(span, fields, scope, target, judges_run=judges_run))
    return rows


def _make_row(
    span: SpanRow, fields: Mapping[str, Any], scope: str, target: str, *, judges_run: bool
) -> Columns:
    name = _text(fields.get("name")) or "annotation"
    is_of_run = judges_run or scope != ""
    identifier = _text(fields.get("identifier")) or ""
    return {
        "reward_id": ":".join((scope or "span", target, name, identifier)),
        "name": name,
        "value": _score(fields.get("score")),
        "scope": "trajectory" if is_of_run else "turn",
        "kind": "outcome" if is_of_run else "process",
        "source": _SOURCES.get(str(fields.get("annotator_kind", "")).upper()),
        "explanation": _text(fields.get("explanation")) or _text(fields.get("label")),
        "time_ns": span.start_ns,
        "recorded_by_us": False,
    }


def _score(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: Any) -> str | None:
    return None if value is None else valid_text(str(value))
