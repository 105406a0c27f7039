"""Accounting and tables -> how many went on at each stage, and why the others did not.

Each stage is divided exactly: the counts of its parts add up to its total.
"""

from dataclasses import dataclass

import polars as pl

from starpo_trace.convert.manifest import Accounting
from starpo_trace.convert.verdict import INFORMATION, NOT_EVEN_SFT
from starpo_trace.look.opened import Scan
from starpo_trace.look.reasons import MEANINGS

VERDICTS = ("rl", "sft", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of a stage."""

    name: str
    """What these are."""
    count: int
    """How many."""
    tone: str
    """kept | rl | sft | none | lost | copy: what became of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """All of one kind, and what became of them."""

    title: str
    """What is counted."""
    total: int
    """From the manifest or a table, not the sum of the parts."""
    shares: tuple[Share, ...]
    """Those that go on come first."""
    num_kept: int
    """Those that the next stage is made of; of the last one, those that can be trained on."""

    @property
    def is_closed(self) -> bool:
        """Whether the parts add up to the total."""
        return self.total == sum(share.count for share in self.shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonCount:
    """Why trajectories are not better than their verdict."""

    verdict: str
    """Of these trajectories: rl (a remark only) | sft | none."""
    reason: str
    """As in the table."""
    meaning: str
    """In words; empty for one that is not known here."""
    num_trajectories: int
    """That have it, maybe beside others."""
    num_alone: int | None
    """For which it is all that stands against a better verdict; None for a remark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Funnel:
    """From spans to what can be trained on."""

    stages: tuple[Stage, ...]
    """Spans, trees, trajectories."""
    rejected: tuple[tuple[str, str, int], ...]
    """Reason, its meaning, spans; the most frequent first."""
    reasons: tuple[ReasonCount, ...]
    """By verdict, the most frequent first."""
    num_damaged: int
    """Pieces of the sources that hold no readable spans."""
    damage: tuple[str, ...]
    """What is wrong with the first of them, of the first few files."""

    @property
    def is_closed(self) -> bool:
        """Whether every stage is."""
        return all(stage.is_closed for stage in self.stages)


def build_funnel(accounting: Accounting, trajectories: pl.DataFrame, scan: Scan) -> Funnel:
    """Accounting, all trajectories (without their texts) and tables -> funnel."""
    rejected = accounting.spans_rejected_by_reason
    return Funnel(
        stages=(
            _count_spans(accounting),
            _count_trees(trajectories, scan),
            _count_trajectories(trajectories),
        ),
        rejected=tuple(
            (reason, MEANINGS.get(reason, ""), count)
            for reason, count in sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
        ),
        reasons=count_reasons(trajectories),
        num_damaged=accounting.damaged_records,
        damage=tuple(accounting.damage[:5]),
    )


def count_reasons(trajectories: pl.DataFrame) -> tuple[ReasonCount, ...]:
    """`usable_for` and `reasons` -> how often each reason is there, and is the only hindrance."""
    hinders = {
        "sft": pl.col("reasons").list.set_difference(list(INFORMATION)),
        "none": pl.col("reasons").list.set_intersection(list(NOT_EVEN_SFT)),
    }
    counts = []
    for verdict in VERDICTS:
        of_verdict = trajectories.filter(pl.col("usable_for") == verdict)
        has = _count_values(of_verdict["reasons"].explode().drop_nulls())
        alone: dict[str, int] = {}
        if verdict in hinders:
            lists = of_verdict.select(hinders[verdict]).to_series()
            alone = _count_values(lists.filter(lists.list.len() == 1).explode())
        counts += [
            ReasonCount(
                verdict=verdict,
                reason=reason,
                meaning=MEANINGS.get(reason, ""),
                num_trajectories=count,
                num_alone=None if _is_remark(reason, verdict) else alone.get(reason, 0),
            )
            for reason, count in has.items()
        ]
    return tuple(counts)


def _is_remark(reason: str, verdict: str) -> bool:
    return reason in INFORMATION or (verdict == "none" and reason not in NOT_EVEN_SFT)


def _count_spans(accounting: Accounting) -> Stage:
    rejected = sorted(
        accounting.spans_rejected_by_reason.items(), key=lambda item: (-item[1], item[0])
    )
    return Stage(
        title="spans",
        total=accounting.spans_read,
        shares=(
            Share(name="used", count=accounting.spans_used, tone="kept"),
            *(Share(name=f"rejected: {name}", count=n, tone="lost") for name, n in rejected),
            Share(name="further copies", count=accounting.duplicates, tone="copy"),
        ),
        num_kept=accounting.spans_used,
    )


def _count_trees(trajectories: pl.DataFrame, scan: Scan) -> Stage:
    kept = trajectories.select(pl.col("trace_id").drop_nulls().unique())
    lost = scan("rejected").select(pl.col("trace_id").drop_nulls().unique())
    every = pl.concat([kept.lazy(), lost], how="vertical").unique().collect()
    num_lost = lost.join(kept.lazy(), on="trace_id", how="anti").select(pl.len()).collect().item()
    return Stage(
        title="trees",
        total=every.height,
        shares=(
            Share(name="with a trajectory", count=kept.height, tone="kept"),
            Share(
                name="with rejected spans, where no trajectory begins", count=num_lost, tone="lost"
            ),
        ),
        num_kept=kept.height,
    )


def _count_trajectories(trajectories: pl.DataFrame) -> Stage:
    counts = _count_values(trajectories["usable_for"].fill_null("none"))
    names = {"rl": "for RL", "sft": "for imitation (sft)", "none": "for nothing"}
    return Stage(
        title="trajectories",
        total=trajectories.height,
        shares=tuple(
            Share(name=names[verdict], count=counts.get(verdict, 0), tone=verdict)
            for verdict in VERDICTS
        ),
        num_kept=counts.get("rl", 0) + counts.get("sft", 0),
    )


def _count_values(values: pl.Series) -> dict[str, int]:
    counts = (
        values.alias("value").value_counts(name="n").sort("n", "value", descending=[True, False])
    )
    return dict(counts.iter_rows())
