"""Steps as each process numbered them -> one order for the whole trajectory.

Every process numbers the steps it records by itself (`starpo.trajectory.part`). Where two of them
used the same number, and where spans of other libraries have none, all steps of the trajectory are
numbered anew: causes first, clocks second (`starpo_trace.convert.order`).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from starpo_trace.convert.order import OrderedItem, order_items
from starpo_trace.convert.staging import Frames
from starpo_trace.convert.tree import NO_PARENT, Assignment, SpanColumns, SpanForest

_STEP_RECORDS: Final = frozenset({"llm", "step"})

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """What N spans say about their numbers, one list a column."""

    trace_ids: list[str]
    span_ids: list[str]
    start_ns: list[int]
    steps: list[int | None]
    parts: list[str | None]
    bases: list[int | None]
    parents: list[str | None]
    afters: list[int | None]

    def branch_point(self, i: int) -> int:
        """Steps that the parent part had begun when this span's process heard of it."""
        after = self.afters[i]
        return (self.bases[i] or 0) if after is None else after


def order_steps(
    frames: Frames, columns: SpanColumns, forest: SpanForest, assignment: Assignment
) -> StepOrder:
    """Frames, their forest and trajectories -> the order of calls and steps."""
    steps = _read_steps(frames["spans"], columns)
    ids = assignment.trajectory_ids
    members: dict[str | None, list[int]] = defaultdict(list)
    for i, record in enumerate(columns.records):
        if record in _STEP_RECORDS:
            members[ids[i]].append(i)
    renumbered = {
        trajectory for trajectory, spans in members.items() if _have_collisions(steps, spans)
    }
    order = StepOrder(ranks={}, skewed=set(), renumbered=renumbered)
    unnumbered = {
        trajectory: spans
        for trajectory, spans in members.items()
        if trajectory in renumbered or any(steps.steps[i] is None for i in spans)
    }
    if not unnumbered:
        return order
    above = _nearest_steps(forest, columns)
    calls, nodes = _read_calls(frames, (i for spans in unnumbered.values() for i in spans))
    for spans in unnumbered.values():
        _order_trajectory(steps, spans, above, calls, nodes, order)
    for trajectory in renumbered:
        for i in members[trajectory]:
            if (step := steps.steps[i]) is not None:
                key = (trajectory, steps.parts[i])
                order.numbers.setdefault(key, []).append((step, order.ranks[i]))
    for numbers in order.numbers.values():
        numbers.sort()
    return order


def renumber_frames(
    frames: Frames, columns: SpanColumns, assignment: Assignment, order: StepOrder
) -> Frames:
    """Frames -> the same with the trajectory's numbers in place of its parts'."""
    if not order.renumbered:
        return frames
    ids = assignment.trajectory_ids
    steps = _read_steps(frames["spans"], columns)
    rows = [i for i, trajectory in enumerate(ids) if trajectory in order.renumbered]
    changed = set(rows)
    numbers = list(steps.steps)
    for i in rows:
        numbers[i] = order.ranks[i] if i in order.ranks else _count_before(steps, i, ids[i], order)

    def find_place(row: int, step: int | None) -> int | None:
        return _find_place(order, (ids[row], steps.parts[row]), step)

    bases = _change(
        frames["calls"],
        "prompt_base_step",
        changed,
        lambda row, base: None if base is None else _or_nowhere(find_place(row, base)),
    )
    return {
        **frames,
        "spans": frames["spans"].with_columns(pl.Series("step", numbers, dtype=pl.Int64)),
        "calls": frames["calls"].with_columns(bases),
        "rewards": frames["rewards"].with_columns(
            _change(frames["rewards"], "step", changed, find_place)
        ),
    }


def _or_nowhere(place: int | None) -> int:
    """A base that is not there makes the prompt unknown; no base would make it whole."""
    return -1 if place is None else place


def _change(frame: pl.DataFrame, name: str, rows: set[int], change: Any) -> pl.Series:
    values = [
        change(row, value) if row in rows else value
        for row, value in zip(frame["row"], frame[name], strict=True)
    ]
    return pl.Series(name, values, dtype=pl.Int64)


def _read_steps(spans: pl.DataFrame, columns: SpanColumns) -> _Steps:
    return _Steps(
        trace_ids=columns.trace_ids,
        span_ids=columns.span_ids,
        start_ns=spans["start_ns"].to_list(),
        steps=[
            None if record is None else step
            for record, step in zip(columns.records, spans["step"].to_list(), strict=True)
        ],
        parts=columns.parts,
        bases=spans["part_base"].to_list(),
        parents=spans["part_parent"].to_list(),
        afters=spans["part_after"].to_list(),
    )


def _read_calls(
    frames: Frames, rows: Iterable[int]
) -> tuple[dict[int, tuple[int, str | None, str | None]], dict[int, list[tuple[str, str | None]]]]:
    """Spans -> history length, input and output node of the calls, and the nodes they hold."""
    wanted = pl.DataFrame({"row": list(rows)}, schema={"row": pl.Int64})
    names = ("row", "history_length", "input_node", "output_node")
    of_calls = frames["calls"].select(names).join(wanted, on="row", how="semi")
    calls = {row: (length or 0, first, last) for row, length, first, last in of_calls.iter_rows()}
    nodes: dict[int, list[tuple[str, str | None]]] = defaultdict(list)
    of_nodes = frames["nodes"].select("row", "node_id", "parent_id")
    for row, node, parent in of_nodes.join(wanted, on="row", how="semi").iter_rows():
        nodes[row].append((node, parent))
    return calls, nodes


def _order_trajectory(
    steps: _Steps,
    spans: list[int],
    above: Sequence[int],
    calls: Mapping[int, tuple[int, str | None, str | None]],
    nodes_of: Mapping[int, list[tuple[str, str | None]]],
    order: StepOrder,
) -> None:
    positions = {i: position for position, i in enumerate(spans)}
    earlier = _find_earlier(steps, spans)
    items = []
    for position, i in enumerate(spans):
        length, input_node, output_node = calls.get(i, (0, None, None))
        items.append(
            OrderedItem(
                key=(steps.start_ns[i], length, steps.trace_ids[i], steps.span_ids[i]),
                parent=positions.get(above[i]),
                input_node=input_node,
                output_node=output_node,
                earlier=earlier[position],
            )
        )
    nodes = {node: parent for i in spans for node, parent in nodes_of.get(i, ())}
    positions_in_order, late = order_items(items, nodes)
    order.ranks.update({spans[position]: rank for rank, position in enumerate(positions_in_order)})
    order.skewed.update(spans[position] for position in late)


def _find_earlier(steps: _Steps, spans: list[int]) -> list[tuple[int, ...]]:
    """Positions that the recorded numbers put before each span: in its part, and where that began.

    Spans of one number (a fork that nobody noticed) stay unordered among themselves.
    """
    of_part: dict[str | None, list[tuple[int, int]]] = defaultdict(list)
    for position, i in enumerate(spans):
        if (step := steps.steps[i]) is not None:
            of_part[steps.parts[i]].append((step, position))
    for numbers in of_part.values():
        numbers.sort()
    earlier: list[tuple[int, ...]] = []
    for i in spans:
        found = []
        if (step := steps.steps[i]) is not None:
            found.append(_last_before(of_part[steps.parts[i]], step))
        if steps.parts[i] is not None:
            begun = steps.branch_point(i)
            found.append(_last_before(of_part.get(steps.parents[i], []), begun))
        earlier.append(tuple(each for each in found if each is not None))
    return earlier


def _last_before(numbers: list[tuple[int, int]], step: int) -> int | None:
    place = bisect_left(numbers, (step, -1))
    return numbers[place - 1][1] if place else None


def _count_before(steps: _Steps, i: int, trajectory: str | None, order: StepOrder) -> int | None:
    """Steps before a span that is none itself (a state, a reward)."""
    step, part = steps.steps[i], steps.parts[i]
    if step is None:
        return None
    places = [_last_before(order.numbers.get((trajectory, part), []), step)]
    if part is not None:
        parents = order.numbers.get((trajectory, steps.parents[i]), [])
        places.append(_last_before(parents, steps.branch_point(i)))
    return max(0 if place is None else place + 1 for place in places)


def _find_place(order: StepOrder, key: Key, step: int | None) -> int | None:
    if step is None:
        return None
    numbers = order.numbers.get(key, [])
    place = bisect_left(numbers, (step, -1))
    if place < len(numbers) and numbers[place][0] == step:
        return numbers[place][1]
    return None


def _have_collisions(steps: _Steps, spans: list[int]) -> bool:
    part_of: dict[int, str | None] = {}
    for i in spans:
        step, part = steps.steps[i], steps.parts[i]
        if step is not None and part_of.setdefault(step, part) != part:
            return True
    return False


def _nearest_steps(forest: SpanForest, columns: SpanColumns) -> list[int]:
    nearest = [NO_PARENT] * len(forest.parents)
    for i in forest.top_down:
        parent = forest.parents[i]
        if parent != NO_PARENT:
            is_step = columns.records[parent] in _STEP_RECORDS
            nearest[i] = parent if is_step else nearest[parent]
    return nearest
