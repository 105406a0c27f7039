"""Spans with their trajectories -> the canonical frames of a partition."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from starpo_trace import semconv
from starpo_trace.convert.columns import columns_to_frame
from starpo_trace.convert.dialects.canonical import (
    FRAMES,
    CanonicalRows,
    CanonicalSpan,
    Rejection,
)
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.parts import order_steps, renumber_span
from starpo_trace.convert.tree import Assignment, SpanForest
from starpo_trace.limits import is_cut


def build_frames(
    rows: Sequence[SpanRow], forest: SpanForest, assignment: Assignment
) -> dict[str, pl.DataFrame]:
    """Spans, their forest and trajectories -> frames by name; `row` is the span's position."""
    order = order_steps(rows, forest, assignment)
    gathered = CanonicalRows()
    for i, span in enumerate(assignment.spans):
        if not isinstance(span, CanonicalSpan):
            continue
        flags = _flags(rows[i], span, is_orphan=forest.is_orphan[i], is_skewed=i in order.skewed)
        gathered.add(
            renumber_span(span, i, assignment.trajectory_ids[i], order),
            i,
            trajectory_id=assignment.trajectory_ids[i],
            recorded_step=span.columns["step"],
            step_order=order.ranks.get(i),
            flag=",".join(flags) or None,
        )
    rewards = gathered.frames["rewards"]
    rewards["target_row"] = [
        # What stands on a span that is no reward itself is about that span.
        assignment.reward_targets.get(row) if _is_reward(assignment.spans[row]) else row
        for row in rewards["row"]
    ]
    return {
        name: columns_to_frame(columns, FRAMES[name]) for name, columns in gathered.frames.items()
    }


def _is_reward(span: CanonicalSpan | Rejection) -> bool:
    return isinstance(span, CanonicalSpan) and span.record == "reward"


_NOTED: Final = ("redacted", "reward_refused")
"""What only the recording process knows of a run."""


def _flags(row: SpanRow, span: CanonicalSpan, *, is_orphan: bool, is_skewed: bool) -> list[str]:
    flags = []
    # Numbered steps prove by themselves that nothing is missing; an outermost agent span may
    # have a parent elsewhere (the web server's request).
    if is_orphan and not span.columns["is_ours"] and span.record != "agent":
        flags.append("orphan_span")
    if is_skewed or (row.end_ns is not None and row.end_ns < row.start_ns):
        flags.append("skewed_clock")
    if row.num_dropped:
        flags.append("dropped_attributes")
    if any(isinstance(value, str) and is_cut(value) for value in row.attributes.values()):
        flags.append("content_truncated")
    noted = row.attributes.get(semconv.USABLE_FOR_REASONS)
    if isinstance(noted, (list, tuple)):
        flags += [reason for reason in _NOTED if reason in noted]
    return flags
