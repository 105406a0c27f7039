"""Steps as each process numbered them -> one order for the whole trajectory.

Every process numbers the steps it records by itself (`starpo.trajectory.part`). Where two of them
used the same number, and where spans of other libraries have none, all steps of the trajectory are
numbered anew: causes first, clocks second (`starpo_trace.convert.order`).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starpo_trace.convert.dialects.canonical import CanonicalSpan, Columns, Rejection
from starpo_trace.convert.order import OrderedItem, order_items
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.tree import NO_PARENT, Assignment, SpanForest

Key = tuple[str | None, str | None]
"""Trajectory and part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """How the steps of a partition follow each other."""

    ranks: dict[int, int]
    """Span -> its place, in trajectories where recorded numbers do not decide."""
    skewed: set[int]
    """Spans whose start time disagrees with their cause."""
    renumbered: set[str | None]
    """Trajectories whose parts used the same numbers."""
    numbers: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)
    """Of those, per part: recorded number and place of each step, sorted."""


def order_steps(rows: Sequence[SpanRow], forest: SpanForest, assignment: Assignment) -> StepOrder:
    """Spans, their forest and trajectories -> the order of calls and steps."""
    members: dict[str | None, list[int]] = defaultdict(list)
    for i, span in enumerate(assignment.spans):
        if _is_step(span):
            members[assignment.trajectory_ids[i]].append(i)
    renumbered = {
        trajectory for trajectory, spans in members.items() if _have_collisions(assignment, spans)
    }
    above = _nearest_steps(forest, assignment)
    order = StepOrder(ranks={}, skewed=set(), renumbered=renumbered)
    for trajectory, spans in members.items():
        is_numbered = all(_columns(assignment.spans[i])["step"] is not None for i in spans)
        if is_numbered and trajectory not in renumbered:
            continue
        _order_trajectory(rows, assignment, spans, above, order)
    for trajectory in renumbered:
        for i in members[trajectory]:
            columns = _columns(assignment.spans[i])
            if columns["step"] is not None:
                key = (trajectory, columns["part"])
                order.numbers.setdefault(key, []).append((columns["step"], order.ranks[i]))
    for numbers in order.numbers.values():
        numbers.sort()
    return order


def renumber_span(
    span: CanonicalSpan, i: int, trajectory: str | None, order: StepOrder
) -> CanonicalSpan:
    """A span -> the same with the trajectory's numbers in place of its part's."""
    if trajectory not in order.renumbered:
        return span
    columns = span.columns
    key = (trajectory, columns["part"])
    step = order.ranks[i] if i in order.ranks else _count_before(columns, trajectory, order)
    call = span.call
    if call is not None and call["prompt_base_step"] is not None:
        base = _find_place(order, key, call["prompt_base_step"])
        call = {**call, "prompt_base_step": -1 if base is None else base}
    rewards = tuple(
        {**reward, "step": _find_place(order, key, reward.get("step"))} for reward in span.rewards
    )
    return replace(span, columns={**columns, "step": step}, call=call, rewards=rewards)


def _order_trajectory(
    rows: Sequence[SpanRow],
    assignment: Assignment,
    spans: list[int],
    above: Sequence[int],
    order: StepOrder,
) -> None:
    positions = {i: position for position, i in enumerate(spans)}
    earlier = _find_earlier(assignment, spans)
    items = [
        _ordered_item(rows[i], assignment.spans[i], positions.get(above[i]), earlier[position])
        for position, i in enumerate(spans)
    ]
    nodes = {
        node["node_id"]: node["parent_id"] for i in spans for node in _nodes(assignment.spans[i])
    }
    positions_in_order, late = order_items(items, nodes)
    order.ranks.update({spans[position]: rank for rank, position in enumerate(positions_in_order)})
    order.skewed.update(spans[position] for position in late)


def _find_earlier(assignment: Assignment, spans: list[int]) -> list[tuple[int, ...]]:
    """Positions that the recorded numbers put before each span: in its part, and where that began.

    Spans of one number (a fork that nobody noticed) stay unordered among themselves.
    """
    of_part: dict[str | None, list[tuple[int, int]]] = defaultdict(list)
    for position, i in enumerate(spans):
        columns = _columns(assignment.spans[i])
        if columns["step"] is not None:
            of_part[columns["part"]].append((columns["step"], position))
    for numbers in of_part.values():
        numbers.sort()
    earlier: list[tuple[int, ...]] = []
    for i in spans:
        columns = _columns(assignment.spans[i])
        found = []
        if columns["step"] is not None:
            found.append(_last_before(of_part[columns["part"]], columns["step"]))
        if columns["part"] is not None:
            begun = _branch_point(columns)
            found.append(_last_before(of_part.get(columns["part_parent"], []), begun))
        earlier.append(tuple(each for each in found if each is not None))
    return earlier


def _last_before(numbers: list[tuple[int, int]], step: int) -> int | None:
    place = bisect_left(numbers, (step, -1))
    return numbers[place - 1][1] if place else None


def _branch_point(columns: Columns) -> int:
    """Steps that the parent part had begun when this span's process heard of it."""
    after = columns["part_after"]
    return (columns["part_base"] or 0) if after is None else after


def _count_before(columns: Columns, trajectory: str | None, order: StepOrder) -> int | None:
    """Steps before a span that is none itself (a state, a reward)."""
    if columns["step"] is None:
        return None
    part = columns["part"]
    places = [_last_before(order.numbers.get((trajectory, part), []), columns["step"])]
    if part is not None:
        parents = order.numbers.get((trajectory, columns["part_parent"]), [])
        places.append(_last_before(parents, _branch_point(columns)))
    return max(0 if place is None else place + 1 for place in places)


def _find_place(order: StepOrder, key: Key, step: int | None) -> int | None:
    if step is None:
        return None
    numbers = order.numbers.get(key, [])
    place = bisect_left(numbers, (step, -1))
    if place < len(numbers) and numbers[place][0] == step:
        return numbers[place][1]
    return None


def _have_collisions(assignment: Assignment, spans: list[int]) -> bool:
    part_of: dict[int, str | None] = {}
    for i in spans:
        columns = _columns(assignment.spans[i])
        step, part = columns["step"], columns["part"]
        if step is not None and part_of.setdefault(step, part) != part:
            return True
    return False


def _nearest_steps(forest: SpanForest, assignment: Assignment) -> list[int]:
    nearest = [NO_PARENT] * len(forest.parents)
    for i in forest.top_down:
        parent = forest.parents[i]
        if parent != NO_PARENT:
            nearest[i] = parent if _is_step(assignment.spans[parent]) else nearest[parent]
    return nearest


def _ordered_item(
    row: SpanRow,
    span: CanonicalSpan | Rejection,
    parent: int | None,
    earlier: tuple[int, ...],
) -> OrderedItem:
    call = (span.call if isinstance(span, CanonicalSpan) else None) or {}
    return OrderedItem(
        key=(row.start_ns, call.get("history_length") or 0, row.trace_id, row.span_id),
        parent=parent,
        input_node=call.get("input_node"),
        output_node=call.get("output_node"),
        earlier=earlier,
    )


def _is_step(span: CanonicalSpan | Rejection) -> bool:
    return isinstance(span, CanonicalSpan) and span.record in {"llm", "step"}


def _columns(span: CanonicalSpan | Rejection) -> dict[str, Any]:
    return span.columns if isinstance(span, CanonicalSpan) else {}


def _nodes(span: CanonicalSpan | Rejection) -> tuple[dict[str, Any], ...]:
    return span.nodes if isinstance(span, CanonicalSpan) else ()
