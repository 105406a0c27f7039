"""Spans of a partition -> span forest -> the trajectory that each span belongs to.

Plain Python, linear in the number of spans, without recursion: a chain of 100,000 spans, a cycle
or a span that is its own parent cannot hang it. Spans on a cycle have no place in a tree and are
rejected; what hangs below them is kept as an orphan.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from starpo_trace.convert.doubles import Watched, find_doubles
from starpo_trace.convert.targets import index_targets
from starpo_trace.convert.twins import Answer, find_same_answers, follow_twins

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


@dataclass(slots=True, kw_only=True)
class SpanColumns:
    """What N spans say of themselves, one list a column; spans are rejected by `reject`."""

    trace_ids: list[str]
    """Trace of each span."""
    span_ids: list[str]
    """Its id."""
    records: list[str | None]
    """Its kind; None once it is rejected."""
    reasons: list[str | None]
    """Why it is rejected."""
    details: list[str | None]
    """What exactly was found."""
    are_ours: list[bool]
    """Written by starpo_trace."""
    trajectory_ids: list[str | None]
    """Trajectory that the span names."""
    conversation_ids: list[str | None]
    """Conversation that the span names."""
    parts: list[str | None]
    """Process that recorded it; None where the trajectory began."""
    have_input: list[bool]
    """A call whose prompt was recorded."""
    num_links: list[int]
    """How many spans it links to."""
    links: list[tuple[str, str] | None]
    """Trace id and span id of the first."""

    def reject(self, i: int, reason: str, detail: str) -> None:
        """Leave a span out, with its reason."""
        self.records[i] = None
        self.reasons[i] = reason
        self.details[i] = detail


def read_span_columns(spans: pl.DataFrame) -> SpanColumns:
    """Frame `spans` joined with `runs` -> its columns as lists."""
    traces, ids = spans["link_trace_id"].to_list(), spans["link_span_id"].to_list()
    return SpanColumns(
        trace_ids=spans["trace_id"].to_list(),
        span_ids=spans["span_id"].to_list(),
        records=spans["record"].to_list(),
        reasons=spans["reason"].to_list(),
        details=spans["detail"].to_list(),
        are_ours=spans["is_ours"].to_list(),
        trajectory_ids=spans["trajectory_id"].to_list(),
        conversation_ids=spans["conversation_id"].to_list(),
        parts=spans["part"].to_list(),
        have_input=spans["has_input"].to_list(),
        num_links=spans["num_links"].to_list(),
        links=[
            None if trace is None or span is None else (trace, span)
            for trace, span in zip(traces, ids, strict=True)
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Where each of N spans ended up."""

    trajectory_ids: list[str | None]
    """Trajectory of each span, of rejected ones too where the tree tells it."""
    reward_targets: dict[int, int]
    """Reward span -> span that it is linked to."""
    twins: dict[int, int] = field(default_factory=dict)
    """Span of a call that is left out -> the one that stands for it."""


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
    forest: SpanForest,
    spans: SpanColumns,
    answers: Sequence[Answer] = (),
    watched: Sequence[Watched] = (),
) -> Assignment:
    """Forest and spans -> each span's trajectory; spans that belong to none are rejected.

    A trajectory is, in this order: what `starpo.trajectory.id` says on the span or its nearest
    ancestor that has one; the conversation; the outermost agent span; the trace. A reward goes
    where its link points, else to the trajectory it names.
    """
    own: list[str | None] = list(spans.trajectory_ids)
    for i, is_cyclic in enumerate(forest.on_cycle):
        if is_cyclic:
            spans.reject(i, "cycle", "the span is its own ancestor")
        if spans.records[i] is None:
            own[i] = None
    explicit = _inherit(forest, own)
    ids: list[str | None] = list(explicit)
    if None in ids:
        generic = _generic_trajectories(forest, spans, explicit)
        ids = [one or other for one, other in zip(explicit, generic, strict=True)]
    _reject_conflicting_roots(spans, ids)
    twins = _reject_duplicate_calls(forest, spans, ids, answers)
    if watched:
        twins |= _reject_doubles(spans, watched, twins)
    _reject_without_calls(spans, ids, explicit)
    targets = _place_rewards(spans, ids, own, twins)
    return Assignment(trajectory_ids=ids, reward_targets=targets, twins=twins)


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


def _generic_trajectories(
    forest: SpanForest, spans: SpanColumns, explicit: Sequence[str | None]
) -> list[str]:
    outermost: list[int] = [NO_PARENT] * len(spans.records)
    for i in forest.top_down:
        parent = forest.parents[i]
        if parent != NO_PARENT:
            outermost[i] = outermost[parent]
        if outermost[i] == NO_PARENT and spans.records[i] == "agent":
            outermost[i] = i
    groups = [
        f"{trace_id}-{spans.span_ids[agent]}" if agent != NO_PARENT else trace_id
        for agent, trace_id in zip(outermost, spans.trace_ids, strict=True)
    ]
    # The conversation of a span that names its trajectory is nobody else's; `routing` says the same.
    own = [
        None if record is None or trajectory is not None else conversation
        for record, trajectory, conversation in zip(
            spans.records, explicit, spans.conversation_ids, strict=True
        )
    ]
    conversations = _inherit(forest, own)
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


def _reject_conflicting_roots(spans: SpanColumns, ids: Sequence[str | None]) -> None:
    """A trajectory id that was made of a root's own ids says which of several roots it is."""
    roots: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(spans.records):
        if record == "trajectory" and spans.parts[i] is None and (trajectory := ids[i]):
            roots[trajectory].append(i)
    for trajectory, several in roots.items():
        if len(several) == 1:
            continue
        own = [i for i in several if f"{spans.trace_ids[i]}-{spans.span_ids[i]}" == trajectory]
        for i in several if own else ():
            if i not in own:
                detail = f"trajectory {trajectory} has another root, which its id is made of"
                spans.reject(i, "conflicting_root", detail)


def _reject_duplicate_calls(
    forest: SpanForest,
    spans: SpanColumns,
    ids: Sequence[str | None],
    answers: Sequence[Answer],
) -> dict[int, int]:
    """A call directly around another is one call seen twice; so are two with one answer's id.

    Ours is kept, else the one that has content, else the inner one. Returns which span stands for
    each that is left out.
    """
    records = spans.records
    nearest: list[int] = [NO_PARENT] * len(records)  # nearest agent span above, by record
    twins: dict[int, int] = {}
    for i in forest.top_down:
        parent = forest.parents[i]
        if parent == NO_PARENT:
            continue
        above = nearest[i] = parent if records[parent] is not None else nearest[parent]
        if above == NO_PARENT or records[i] != "llm" or records[above] != "llm":
            continue
        if ids[above] == ids[i]:
            above = follow_twins(twins, above)
            worse, better = (i, above) if _worth(spans, above) > _worth(spans, i) else (above, i)
            twins[worse] = better
    if answers:
        twins |= find_same_answers(answers, ids, twins, lambda i: _worth(spans, i))
    for i in twins:
        spans.reject(i, "duplicate_llm_call", "another span is the same call")
    return twins


def _reject_doubles(
    spans: SpanColumns, watched: Sequence[Watched], known: dict[int, int]
) -> dict[int, int]:
    """What others recorded of our calls and tools, wherever in the trace. Returns which is ours."""
    left = [each for each in watched if spans.records[each.row] is not None or each.row in known]
    doubles = find_doubles(left, {i: follow_twins(known, i) for i in known})
    for i in doubles:
        if spans.records[i] == "llm":
            spans.reject(i, "duplicate_llm_call", "a span of ours is the same call")
        else:
            spans.reject(i, "duplicate_tool_run", "a span of ours is the same run of the tool")
    return doubles


def _worth(spans: SpanColumns, i: int) -> tuple[bool, bool]:
    """What of two records of one call is kept: the greater."""
    return spans.are_ours[i], spans.have_input[i]


def _reject_without_calls(
    spans: SpanColumns, ids: Sequence[str | None], explicit: Sequence[str | None]
) -> None:
    """Traces of other libraries are trajectories only when a model was called in them."""
    records = spans.records
    kept = {
        trajectory
        for record, trajectory, own in zip(records, ids, explicit, strict=True)
        if record == "llm" or (own is not None and record is not None and record != "reward")
    }
    for i, trajectory in enumerate(ids):
        if trajectory not in kept and records[i] is not None and records[i] != "reward":
            spans.reject(i, "no_llm_call", "no model call in this trajectory")


def _place_rewards(
    spans: SpanColumns,
    ids: list[str | None],
    named: Sequence[str | None],
    twins: dict[int, int],
) -> dict[int, int]:
    rewards = [i for i, record in enumerate(spans.records) if record == "reward"]
    if not rewards:
        return {}
    known = {
        trajectory
        for record, trajectory in zip(spans.records, ids, strict=True)
        if record is not None and record != "reward"
    }
    index = index_targets(spans, ids)
    if twins:
        index = {key: follow_twins(twins, i) for key, i in index.items()}
    targets: dict[int, int] = {}
    for i in rewards:
        target = _find_linked(spans, i, index)
        trajectory = _find_trajectory(spans, i, target, ids, known, named[i])
        if trajectory is None:
            continue
        ids[i] = trajectory
        if target is not None:
            targets[i] = target
    return targets


def _find_linked(spans: SpanColumns, i: int, index: dict[tuple[str, str], int]) -> int | None:
    link = spans.links[i]
    target = index.get(link) if link else None
    if target is None or spans.records[target] in (None, "reward"):
        return None
    return target


def _find_trajectory(
    spans: SpanColumns,
    i: int,
    target: int | None,
    ids: Sequence[str | None],
    known: set[str | None],
    named: str | None,
) -> str | None:
    """Trajectory that a reward is about; None once it is rejected because there is none."""
    if spans.num_links[i] > 1:
        spans.reject(i, "reward_target_ambiguous", f"{spans.num_links[i]} links")
        return None
    link = spans.links[i]
    linked = ids[target] if target is not None else None
    if linked is None and link and (generated := "-".join(link)) in known:
        linked = generated  # the root span itself was never written
    if linked is not None and named is not None and linked != named:
        spans.reject(i, "reward_target_conflict", f"linked to {linked}, names {named}")
        return None
    trajectory = linked or named
    if trajectory is None and not link:  # a reward inside the trajectory's own tree
        trajectory = ids[i]
    if trajectory is None or trajectory not in known:
        spans.reject(i, "reward_target_missing", f"trajectory {trajectory}")
        return None
    return trajectory
