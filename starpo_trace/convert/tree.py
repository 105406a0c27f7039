"""Canonical spans -> span forest -> the trajectory that each span belongs to.

Plain Python, linear in the number of spans, without recursion: a chain of 100,000 spans, a cycle
or a span that is its own parent cannot hang it. Spans on a cycle have no place in a tree and are
rejected; what hangs below them is kept as an orphan.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.targets import index_targets, widen_feedback

Converted = CanonicalSpan | Rejection

NO_PARENT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanForest:
    """Parents of N spans as indices, safe to walk."""

    parents: list[int]
    """Index of each span's parent, or `NO_PARENT`."""
    top_down: list[int]
    """Every index once, parents before children."""
    on_cycle: list[bool]
    """The span is its own ancestor as recorded (its parent here is `NO_PARENT`)."""
    is_orphan: list[bool]
    """The span names a parent that was not read, or that is on a cycle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Where each of N spans ended up."""

    spans: list[Converted]
    """The spans, some of them now rejected."""
    trajectory_ids: list[str | None]
    """Trajectory of each span, of rejected ones too where the tree tells it."""
    reward_targets: dict[int, int]
    """Reward span -> span that it is linked to."""


def build_span_forest(
    trace_ids: Sequence[str], span_ids: Sequence[str], parent_ids: Sequence[str | None]
) -> SpanForest:
    """Ids of N spans -> their forest; of spans with the same ids the last one is the parent."""
    index = {key: i for i, key in enumerate(zip(trace_ids, span_ids, strict=True))}
    parents = [
        NO_PARENT if parent is None else index.get((trace_id, parent), NO_PARENT)
        for trace_id, parent in zip(trace_ids, parent_ids, strict=True)
    ]
    on_cycle = _find_cycles(parents)
    for i, parent in enumerate(parents):
        if on_cycle[i] or (parent != NO_PARENT and on_cycle[parent]):
            parents[i] = NO_PARENT
    is_orphan = [
        parent == NO_PARENT and named is not None and not cyclic
        for parent, named, cyclic in zip(parents, parent_ids, on_cycle, strict=True)
    ]
    return SpanForest(
        parents=parents,
        top_down=_order_top_down(parents),
        on_cycle=on_cycle,
        is_orphan=is_orphan,
    )


def assign_trajectories(
    forest: SpanForest, rows: Sequence[SpanRow], spans: Sequence[Converted]
) -> Assignment:
    """Forest and canonical spans -> each span's trajectory.

    A trajectory is, in this order: what `starpo.trajectory.id` says on the span or its nearest
    ancestor that has one; the conversation; the outermost agent span; the trace. A reward goes
    where its link points, else to the trajectory it names.
    """
    spans = [
        Rejection(reason="cycle", detail="the span is its own ancestor") if cyclic else span
        for span, cyclic in zip(spans, forest.on_cycle, strict=True)
    ]
    explicit = _inherit(forest, [_column(span, "trajectory_id") for span in spans])
    generic = _generic_trajectories(forest, rows, spans)
    ids: list[str | None] = [own or other for own, other in zip(explicit, generic, strict=True)]
    _reject_conflicting_roots(rows, spans, ids)
    _reject_duplicate_calls(forest, spans, ids)
    _reject_without_calls(spans, ids, explicit)
    targets = _place_rewards(rows, spans, ids)
    return Assignment(spans=spans, trajectory_ids=ids, reward_targets=targets)


def _find_cycles(parents: Sequence[int]) -> list[bool]:
    on_cycle = [False] * len(parents)
    walk_of = [0] * len(parents)  # 0: not visited, else the number of the walk that came by
    for walk, start in enumerate(range(len(parents)), start=1):
        i = start
        while i != NO_PARENT and walk_of[i] == 0:
            walk_of[i] = walk
            i = parents[i]
        if i != NO_PARENT and walk_of[i] == walk:  # met its own steps
            while not on_cycle[i]:
                on_cycle[i] = True
                i = parents[i]
    return on_cycle


def _order_top_down(parents: Sequence[int]) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for i, parent in enumerate(parents):
        children[parent].append(i)
    order = list(children[NO_PARENT])
    for i in order:  # grows while it is read
        order.extend(children.get(i, ()))
    return order


def _inherit(forest: SpanForest, own: Sequence[str | None]) -> list[str | None]:
    values = list(own)
    for i in forest.top_down:
        parent = forest.parents[i]
        if values[i] is None and parent != NO_PARENT:
            values[i] = values[parent]
    return values


def _column(span: Converted, name: str) -> Any:
    return span.columns[name] if isinstance(span, CanonicalSpan) else None


def _generic_trajectories(
    forest: SpanForest, rows: Sequence[SpanRow], spans: Sequence[Converted]
) -> list[str]:
    outermost: list[int] = [NO_PARENT] * len(spans)
    for i in forest.top_down:
        parent = forest.parents[i]
        if parent != NO_PARENT:
            outermost[i] = outermost[parent]
        if outermost[i] == NO_PARENT and _record(spans[i]) == "agent":
            outermost[i] = i
    groups = [
        f"{rows[agent].trace_id}-{rows[agent].span_id}" if agent != NO_PARENT else row.trace_id
        for agent, row in zip(outermost, rows, strict=True)
    ]
    conversations = _inherit(forest, [_column(span, "conversation_id") for span in spans])
    of_group: dict[str, set[str]] = defaultdict(set)
    for group, conversation in zip(groups, conversations, strict=True):
        if conversation is not None:
            of_group[group].add(conversation)
    # A conversation id that only the calls carry is also that of the agent span around them.
    single = {group: next(iter(ids)) for group, ids in of_group.items() if len(ids) == 1}
    return [
        conversation or single.get(group) or group
        for group, conversation in zip(groups, conversations, strict=True)
    ]


def _record(span: Converted) -> str | None:
    return span.record if isinstance(span, CanonicalSpan) else None


def _reject_conflicting_roots(
    rows: Sequence[SpanRow], spans: list[Converted], ids: Sequence[str | None]
) -> None:
    """A trajectory id that was made of a root's own ids says which of several roots it is."""
    roots: dict[str, list[int]] = defaultdict(list)
    for i, (span, trajectory) in enumerate(zip(spans, ids, strict=True)):
        if _record(span) == "trajectory" and trajectory and _column(span, "part") is None:
            roots[trajectory].append(i)
    for trajectory, several in roots.items():
        own = [i for i in several if f"{rows[i].trace_id}-{rows[i].span_id}" == trajectory]
        for i in several:
            if own and i not in own:
                detail = f"trajectory {trajectory} has another root, which its id is made of"
                spans[i] = Rejection(reason="conflicting_root", detail=detail)


def _reject_duplicate_calls(
    forest: SpanForest, spans: list[Converted], ids: Sequence[str | None]
) -> None:
    """A call directly around another is one call seen twice.

    Ours is kept, else the one that has content, else the inner one.
    """
    nearest: list[int] = [NO_PARENT] * len(spans)  # nearest agent span above, by record
    seen_twice: set[int] = set()
    for i in forest.top_down:
        parent = forest.parents[i]
        if parent == NO_PARENT:
            continue
        nearest[i] = parent if _record(spans[parent]) is not None else nearest[parent]
        above = nearest[i]
        if above == NO_PARENT or ids[above] != ids[i]:
            continue
        if _record(spans[i]) == "llm" and _record(spans[above]) == "llm":
            seen_twice.add(i if _worth(spans[above]) > _worth(spans[i]) else above)
    for i in seen_twice:
        spans[i] = Rejection(reason="duplicate_llm_call", detail="another span is the same call")


def _worth(span: Converted) -> tuple[bool, bool]:
    """What of two records of one call is kept: the greater."""
    has_content = isinstance(span, CanonicalSpan) and bool(span.call and span.call["has_input"])
    return bool(_column(span, "is_ours")), has_content


def _reject_without_calls(
    spans: list[Converted], ids: Sequence[str | None], explicit: Sequence[str | None]
) -> None:
    """Traces of other libraries are trajectories only when a model was called in them."""
    kept = {
        trajectory
        for span, trajectory, own in zip(spans, ids, explicit, strict=True)
        if _record(span) == "llm" or (own is not None and _record(span) not in (None, "reward"))
    }
    for i, span in enumerate(spans):
        if _record(span) not in (None, "reward") and ids[i] not in kept:
            spans[i] = Rejection(reason="no_llm_call", detail="no model call in this trajectory")


def _place_rewards(
    rows: Sequence[SpanRow], spans: list[Converted], ids: list[str | None]
) -> dict[int, int]:
    known = {
        trajectory
        for span, trajectory in zip(spans, ids, strict=True)
        if _record(span) not in (None, "reward")
    }
    rewards = [i for i, span in enumerate(spans) if _record(span) == "reward"]
    if not rewards:
        return {}
    index = index_targets(rows, spans, ids)
    targets: dict[int, int] = {}
    for i in rewards:
        named = _column(spans[i], "trajectory_id")
        placed = _find_target(rows[i], ids[i], spans, ids, index, known, named)
        if isinstance(placed, Rejection):
            spans[i] = placed
            continue
        ids[i], target = placed
        if target is not None:
            targets[i] = target
            spans[i] = widen_feedback(spans[i], spans[target])
    return targets


def _find_target(
    row: SpanRow,
    own: str | None,
    spans: Sequence[Converted],
    ids: Sequence[str | None],
    index: dict[tuple[str, str], int],
    known: set[str | None],
    named: str | None,
) -> tuple[str, int | None] | Rejection:
    if len(row.links) > 1:
        return Rejection(reason="reward_target_ambiguous", detail=f"{len(row.links)} links")
    target = index.get(row.links[0]) if row.links else None
    if target is not None and _record(spans[target]) in (None, "reward"):
        target = None
    linked = ids[target] if target is not None else None
    if linked is None and row.links and (generated := "-".join(row.links[0])) in known:
        linked = generated  # the root span itself was never written
    if linked is not None and named is not None and linked != named:
        return Rejection(
            reason="reward_target_conflict", detail=f"linked to {linked}, names {named}"
        )
    trajectory = linked or named
    if trajectory is None and not row.links:  # a reward inside the trajectory's own tree
        trajectory = own
    if trajectory is None or trajectory not in known:
        return Rejection(reason="reward_target_missing", detail=f"trajectory {trajectory}")
    return trajectory, target
