"""Feedback that names its target in part (a span's id alone, a whole trace) -> the target's row.

Backends keep feedback apart from spans: Phoenix's annotations name a span without its trace, scores
and assessments a trace without a span. What fits several targets is left without one.
"""

from collections.abc import Sequence
from dataclasses import replace

from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.otlp import SpanRow

Key = tuple[str, str]
"""Trace id and span id; either is empty where it is not told."""

_RUNS = frozenset({"agent", "trajectory"})
_AMBIGUOUS = -1


def index_targets(
    rows: Sequence[SpanRow],
    spans: Sequence[CanonicalSpan | Rejection],
    trajectory_ids: Sequence[str | None],
) -> dict[Key, int]:
    """Spans -> index of each by its ids, by its span id alone, and of each trace's first used span."""
    index = {(row.trace_id, row.span_id): i for i, row in enumerate(rows)}
    wanted = {link for row in rows for link in row.links if "" in link}
    if not wanted:
        return index
    found: dict[Key, int] = {}
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        if not isinstance(span, CanonicalSpan) or span.record == "reward":
            continue
        if (alone := ("", row.span_id)) in wanted:
            _put(found, alone, i, is_same=False)
        if (trace := (row.trace_id, "")) in wanted:
            other = found.get(trace, i)
            is_same = other != _AMBIGUOUS and trajectory_ids[other] == trajectory_ids[i]
            _put(found, trace, i, is_same=is_same)
    return index | {key: i for key, i in found.items() if i != _AMBIGUOUS}


def _put(found: dict[Key, int], key: Key, i: int, *, is_same: bool) -> None:
    """The first that fits; several of different trajectories are none."""
    if key not in found:
        found[key] = i
    elif not is_same:
        found[key] = _AMBIGUOUS


def widen_feedback(
    feedback: CanonicalSpan | Rejection, target: CanonicalSpan | Rejection
) -> CanonicalSpan | Rejection:
    """Others' feedback on an agent's span, which is about a turn by its form -> about the run."""
    if not isinstance(feedback, CanonicalSpan) or not isinstance(target, CanonicalSpan):
        return feedback
    if feedback.columns["is_ours"] or target.record not in _RUNS:
        return feedback
    rewards = tuple({**row, "scope": "trajectory", "kind": "outcome"} for row in feedback.rewards)
    return replace(feedback, rewards=rewards)
