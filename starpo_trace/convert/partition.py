"""Chunks of staged spans -> the dataset's tables of a partition, and where each span went.

A partition holds whole components: every trace that any span of it names or links to. The function
is pure, and its result does not depend on the order of the spans or on what else is built, so
partitions may be built anywhere and in any order.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from starpo_trace.convert.columns import columns_to_frame, polars_schema
from starpo_trace.convert.copies import CONFLICT, DistinctSpans, drop_copies
from starpo_trace.convert.deferred import join_deferred
from starpo_trace.convert.doubles import list_watched
from starpo_trace.convert.forgotten import list_names
from starpo_trace.convert.parts import StepOrder, order_steps, renumber_frames
from starpo_trace.convert.recipe import NO_RECIPE, Recipe
from starpo_trace.convert.rewards import Trust
from starpo_trace.convert.staging import Frames, concat_chunks
from starpo_trace.convert.targets import widen_feedback
from starpo_trace.convert.trajectories import build_tables
from starpo_trace.convert.tree import (
    Assignment,
    SpanColumns,
    SpanForest,
    assign_trajectories,
    build_span_forest,
    read_span_columns,
)
from starpo_trace.convert.twins import follow_twins, list_repeated_answers
from starpo_trace.schema import REJECTED

_LOSSES: Final = frozenset(
    {"history_mismatch", "malformed_attributes", "cycle", "conflicting_root"}
)
"""Reasons to reject a span that its trajectory has too: most leave a hole in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """What a partition's spans became."""

    tables: dict[str, pl.DataFrame]
    """The tables of `starpo_trace.schema`; `rejected` has one row per span that is not used."""
    traces: pl.DataFrame
    """`trace_id`, `num_spans`, `num_duplicates`: where the spans came from."""
    names: pl.DataFrame
    """`trace_id`, `trajectory_id`, `kind`, `name`: whom any span of a trajectory names."""
    num_read: int
    """Spans that came in."""
    num_duplicates: int
    """Further copies of a span that was already there."""

    @property
    def num_used(self) -> int:
        """Spans that made rows."""
        return self.num_read - self.num_duplicates - self.tables["rejected"].height

    @property
    def rejected_by_reason(self) -> Counter[str]:
        """Spans that did not, by reason."""
        return Counter(self.tables["rejected"]["reason"].to_list())


def build_partition(
    chunks: Sequence[Frames], *, trust: Trust, recipe: Recipe = NO_RECIPE
) -> Partition:
    """Chunks that hold whole components -> their tables."""
    frames = concat_chunks(chunks)
    num_read = frames["spans"].height
    counts = frames["spans"].group_by("trace_id").agg(num_spans=pl.len().cast(pl.Int64))
    distinct = drop_copies(frames)
    frames = join_deferred(distinct.frames)
    frames = {
        **frames,
        "spans": frames["spans"].join(frames["runs"], on="row", how="left", maintain_order="left"),
    }
    columns = read_span_columns(frames["spans"])
    forest = build_span_forest(
        columns.trace_ids, columns.span_ids, frames["spans"]["parent_id"].to_list()
    )
    assignment = assign_trajectories(
        forest, columns, list_repeated_answers(frames), list_watched(frames)
    )
    frames = _move_feedback(frames, assignment)
    order = order_steps(frames, columns, forest, assignment)
    losses = _list_losses(distinct, columns, assignment)
    rejected = _list_rejected(frames["spans"], columns, distinct.contradicting)
    placed = _place_spans(frames, columns, forest, assignment, order)
    tables = build_tables(placed, losses, trust=trust, recipe=recipe)
    tables["rejected"] = pl.concat([tables["rejected"], rejected])
    duplicates = pl.DataFrame(
        {
            "trace_id": list(distinct.duplicates),
            "num_duplicates": list(distinct.duplicates.values()),
        },
        schema={"trace_id": pl.String, "num_duplicates": pl.Int64},
    )
    return Partition(
        tables=tables,
        traces=counts.join(duplicates, on="trace_id", how="left").with_columns(
            pl.col("num_duplicates").fill_null(0)
        ),
        names=list_names(frames["spans"], assignment.trajectory_ids),
        num_read=num_read,
        num_duplicates=distinct.num_duplicates,
    )


def _move_feedback(frames: Frames, assignment: Assignment) -> Frames:
    """Feedback on a span of a call that is left out -> on the one that stands for it."""
    twins = assignment.twins
    if not twins or not frames["rewards"].height:
        return frames
    moved = [follow_twins(twins, row) for row in frames["rewards"]["row"]]
    rewards = frames["rewards"].with_columns(pl.Series("row", moved, dtype=pl.Int64))
    return {**frames, "rewards": rewards}


def _place_spans(
    frames: Frames,
    columns: SpanColumns,
    forest: SpanForest,
    assignment: Assignment,
    order: StepOrder,
) -> Frames:
    """Frames -> only what is used, with trajectory, order, flags and targets of rewards."""
    count = len(columns.records)
    recorded = frames["spans"]["step"].alias("recorded_step")
    frames = renumber_frames(frames, columns, assignment, order)
    ranks = [order.ranks.get(i) for i in range(count)] if order.ranks else [None] * count
    skewed = [i in order.skewed for i in range(count)] if order.skewed else [False] * count
    # Numbered steps prove by themselves that nothing is missing; an outermost agent span may
    # have a parent elsewhere (the web server's request).
    is_orphan = (
        pl.Series(forest.is_orphan, dtype=pl.Boolean)
        & ~frames["spans"]["is_ours"]
        & frames["spans"]["record"].ne_missing("agent")
    )
    spans = frames["spans"].with_columns(
        recorded,
        pl.Series("record", columns.records, dtype=pl.String),
        pl.Series("trajectory_id", assignment.trajectory_ids, dtype=pl.String),
        pl.Series("step_order", ranks, dtype=pl.Int64),
        flag=pl.concat_str(
            "flag",
            pl.when(is_orphan).then(pl.lit("orphan_span")),
            pl.when(pl.Series(skewed, dtype=pl.Boolean)).then(pl.lit("skewed_clock")),
            separator=",",
            ignore_nulls=True,
        ).replace("", None),
    )
    used = spans.filter(pl.col("record").is_not_null())
    kept = {
        name: frame.join(used, on="row", how="semi", maintain_order="left")
        if used.height < count
        else frame
        for name, frame in frames.items()
    }
    targets = assignment.reward_targets
    is_reward = [record == "reward" for record in columns.records]
    kept["rewards"] = kept["rewards"].with_columns(
        # What stands on a span that is no reward itself is about that span.
        pl.Series(
            "target_row",
            [targets.get(row) if is_reward[row] else row for row in kept["rewards"]["row"]],
            dtype=pl.Int64,
        )
    )
    kept["rewards"] = widen_feedback(kept["rewards"], used)
    return {**kept, "spans": used}


def _list_losses(
    distinct: DistinctSpans, columns: SpanColumns, assignment: Assignment
) -> pl.DataFrame:
    """What the trajectories lack because of spans that are not used -> `trajectory_id`, `reason`."""
    ids = assignment.trajectory_ids
    losses: list[tuple[str | None, str]] = [
        (trajectory, CONFLICT) for trajectory in distinct.contradicting["trajectory_id"]
    ]
    if distinct.contested:
        keys = zip(columns.trace_ids, columns.span_ids, strict=True)
        losses += [(ids[i], CONFLICT) for i, key in enumerate(keys) if key in distinct.contested]
    losses += [(ids[i], reason) for i, reason in enumerate(columns.reasons) if reason in _LOSSES]
    known = [each for each in losses if each[0] is not None]
    schema = {"trajectory_id": "str", "reason": "str"}
    return columns_to_frame(
        {"trajectory_id": [each[0] for each in known], "reason": [each[1] for each in known]},
        schema,
    )


def _list_rejected(
    spans: pl.DataFrame, columns: SpanColumns, contradicting: pl.DataFrame
) -> pl.DataFrame:
    names = list(polars_schema(REJECTED))
    own = spans.with_columns(
        pl.Series("record", columns.records, dtype=pl.String),
        pl.Series("reason", columns.reasons, dtype=pl.String),
        pl.Series("detail", columns.details, dtype=pl.String),
    ).filter(pl.col("record").is_null())
    conflicts = contradicting.with_columns(
        reason=pl.lit(CONFLICT), detail=pl.lit("another copy of this span differs from it")
    )
    return pl.concat([own.select(names), conflicts.select(names)], how="vertical")
