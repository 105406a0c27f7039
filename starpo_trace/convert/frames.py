"""Spans with their trajectories -> the canonical frames of a partition."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from starpo_trace.convert.columns import columns_to_frame
from starpo_trace.convert.dialects.canonical import FRAMES, CanonicalRows, CanonicalSpan, Rejection
from starpo_trace.convert.order import OrderedItem, order_items
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.tree import NO_PARENT, Assignment, SpanForest


def build_frames(
    rows: Sequence[SpanRow], forest: SpanForest, assignment: Assignment
) -> dict[str, pl.DataFrame]:
    """Spans, their forest and trajectories -> frames by name; `row` is the span's position."""
    step_order, skewed = _order_steps(rows, forest, assignment)
    gathered = CanonicalRows()
    for i, span in enumerate(assignment.spans):
        if not isinstance(span, CanonicalSpan):
            continue
        flags = _flags(rows[i], span, is_orphan=forest.is_orphan[i], is_skewed=i in skewed)
        gathered.add(
            span,
            i,
            trajectory_id=assignment.trajectory_ids[i],
            step_order=step_order.get(i),
            flag=",".join(flags) or None,
        )
    rewards = gathered.frames["rewards"]
    rewards["target_row"] = [
        # An evaluation event, which has no id, is about the span that holds it.
        row if reward_id is None else assignment.reward_targets.get(row)
        for row, reward_id in zip(rewards["row"], rewards["reward_id"], strict=True)
    ]
    return {
        name: columns_to_frame(columns, FRAMES[name]) for name, columns in gathered.frames.items()
    }


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
    return flags


def _order_steps(
    rows: Sequence[SpanRow], forest: SpanForest, assignment: Assignment
) -> tuple[dict[int, int], set[int]]:
    """Rank of each call and step where a trajectory has some without a number, and skewed ones.

    Skewed are the spans whose start time disagrees with their cause.
    """
    members: dict[str | None, list[int]] = {}
    unnumbered = set()
    for i, span in enumerate(assignment.spans):
        if isinstance(span, CanonicalSpan) and span.record in {"llm", "step"}:
            trajectory = assignment.trajectory_ids[i]
            members.setdefault(trajectory, []).append(i)
            if span.columns["step"] is None:
                unnumbered.add(trajectory)
    above = _nearest_steps(forest, assignment)
    ranks: dict[int, int] = {}
    skewed: set[int] = set()
    for trajectory in unnumbered:
        spans = members[trajectory]
        positions = {i: position for position, i in enumerate(spans)}
        items = [
            _ordered_item(rows[i], assignment.spans[i], positions.get(above[i])) for i in spans
        ]
        nodes = {
            node["node_id"]: node["parent_id"]
            for i in spans
            for node in _nodes(assignment.spans[i])
        }
        order, late = order_items(items, nodes)
        ranks.update({spans[position]: rank for rank, position in enumerate(order)})
        skewed.update(spans[position] for position in late)
    return ranks, skewed


def _nearest_steps(forest: SpanForest, assignment: Assignment) -> list[int]:
    nearest = [NO_PARENT] * len(forest.parents)
    for i in forest.top_down:
        parent = forest.parents[i]
        if parent != NO_PARENT:
            span = assignment.spans[parent]
            is_step = isinstance(span, CanonicalSpan) and span.record in {"llm", "step"}
            nearest[i] = parent if is_step else nearest[parent]
    return nearest


def _ordered_item(row: SpanRow, span: CanonicalSpan | Rejection, parent: int | None) -> OrderedItem:
    call = (span.call if isinstance(span, CanonicalSpan) else None) or {}
    return OrderedItem(
        key=(row.start_ns, call.get("history_length") or 0, row.trace_id, row.span_id),
        parent=parent,
        input_node=call.get("input_node"),
        output_node=call.get("output_node"),
    )


def _nodes(span: CanonicalSpan | Rejection) -> tuple[dict[str, Any], ...]:
    return span.nodes if isinstance(span, CanonicalSpan) else ()
