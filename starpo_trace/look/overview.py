"""Tables -> numbers over the whole dataset: rewards, groups, lengths, who played and how it ended.

Of the tables only narrow columns of `trajectories`, `rewards` and `rejected` are read, never texts.
"""

from dataclasses import dataclass
from typing import Final

import polars as pl

from starpo_trace.look.funnel import VERDICTS, Funnel, build_funnel
from starpo_trace.look.numbers import Bins, Distribution, choose_bins, describe
from starpo_trace.look.opened import Opened

MAX_ROWS: Final = 20
"""Rows of a breakdown; what is over is one more row."""
MAX_TASKS: Final = 60
_SAME: Final = 1e-9

_COLUMNS: Final = (
    *("trajectory_id", "task_id", "trace_id", "cohort", "policy_id", "environment_name"),
    *("agent_name", "end", "split", "usable_for", "reasons", "reward"),
    *("num_turns", "num_steps", "num_tool_calls", "num_branches", "input_tokens", "output_tokens"),
)
_BREAKDOWNS: Final = {
    "cohort": "Cohort",
    "policy_id": "Policy",
    "end": "End",
    "split": "Split",
    "environment_name": "Environment",
    "agent_name": "Agent",
}
_LENGTHS: Final = {
    "num_turns": "Turns",
    "num_tool_calls": "Tool calls",
    "num_steps": "Steps",
    "num_branches": "Branches",
    "input_tokens": "Tokens read",
    "output_tokens": "Tokens written",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakdownRow:
    """Trajectories that have one value of a column."""

    name: str | None
    """The value; None: they have none."""
    num_values: int
    """Values in this row: 1, or more in the row of all that are over."""
    verdicts: dict[str, int]
    """Trajectories by `usable_for`."""
    reward: Distribution
    """Their rewards."""

    @property
    def num_trajectories(self) -> int:
        """All of them."""
        return self.reward.num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """All trajectories, divided by the values of a column."""

    column: str
    title: str
    rows: tuple[BreakdownRow, ...]
    """The most frequent first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Attempts at one task."""

    task_id: str
    cohort: str | None
    reward: Distribution
    """Of its attempts, without bins of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """All tasks: StarPO compares attempts within each."""

    shares: tuple[tuple[str, str, int], ...]
    """(kind, what it means, tasks): varied, equal, single, unrewarded; they add up to all tasks."""
    num_groups: int
    num_without_task: int
    """Trajectories that name no task."""
    deviation: Distribution
    """Standard deviation of the reward within each task of two rewarded attempts or more."""
    tasks: tuple[Task, ...]
    """Those whose rewards differ most come first; bounded."""

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """Kind and number of tasks."""
        return [(kind, count) for kind, _, count in self.shares]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A dataset in numbers."""

    num_trajectories: int
    funnel: Funnel
    reward: Distribution
    """Of all trajectories."""
    breakdowns: tuple[Breakdown, ...]
    """Of the columns that say something, the cohorts first."""
    groups: Groups
    lengths: tuple[tuple[str, Distribution], ...]
    """Per trajectory."""
    reward_records: tuple[tuple[str, int], ...]
    """What became of each row of the table `rewards`; they add up to all rows."""
    num_rewards: int


def summarize(opened: Opened) -> Overview:
    """Opened dataset -> its numbers."""
    columns = pl.col(_COLUMNS)
    trajectories = opened.scan("trajectories").select(columns).collect(engine="streaming")
    bins = choose_bins(trajectories["reward"])
    records = _count_records(opened)
    divided = (_divide(trajectories, column, bins) for column in _BREAKDOWNS)
    return Overview(
        num_trajectories=trajectories.height,
        funnel=build_funnel(opened.accounting, trajectories, opened.scan),
        reward=describe(trajectories["reward"], bins),
        breakdowns=tuple(each for each in divided if each is not None),
        groups=_view_groups(trajectories, bins),
        lengths=tuple((title, describe(trajectories[name])) for name, title in _LENGTHS.items()),
        reward_records=tuple(records),
        num_rewards=opened.scan("rewards").select(pl.len()).collect().item(),
    )


def _divide(trajectories: pl.DataFrame, column: str, bins: Bins) -> Breakdown | None:
    """None where no trajectory has a value."""
    if column != "cohort" and trajectories[column].null_count() == trajectories.height:
        return None
    counts = trajectories.group_by(column).len().sort("len", column, descending=[True, False])
    kept = counts[column].head(MAX_ROWS if counts.height > MAX_ROWS + 1 else MAX_ROWS + 1)
    is_kept = pl.col(column).is_in(kept.drop_nulls().to_list())
    if kept.null_count():
        is_kept |= pl.col(column).is_null()
    is_kept = is_kept.fill_null(value=False)
    groups = trajectories.filter(is_kept).partition_by(column, as_dict=True)
    rows = [_describe_row(name, 1, groups[(name,)], bins) for name in kept]
    if counts.height > len(kept):
        rest = trajectories.filter(~is_kept)
        rows.append(_describe_row(None, counts.height - len(kept), rest, bins))
    return Breakdown(column=column, title=_BREAKDOWNS[column], rows=tuple(rows))


def _describe_row(name: str | None, num: int, rows: pl.DataFrame, bins: Bins) -> BreakdownRow:
    verdicts = dict(rows["usable_for"].fill_null("none").value_counts().iter_rows())
    return BreakdownRow(
        name=name,
        num_values=num,
        verdicts={verdict: verdicts.get(verdict, 0) for verdict in VERDICTS},
        reward=describe(rows["reward"], bins),
    )


def _view_groups(trajectories: pl.DataFrame, bins: Bins) -> Groups:
    reward = pl.when(pl.col("reward").is_finite()).then(pl.col("reward"))
    named = trajectories.drop_nulls("task_id")
    tasks = (
        named.group_by("task_id")
        .agg(
            rewarded=reward.count(),
            attempts=pl.len(),
            deviation=reward.std(ddof=0),
            spread=reward.max() - reward.min(),
            cohort=pl.col("cohort").drop_nulls().first(),
        )
        .sort("deviation", "attempts", "task_id", descending=[True, True, False], nulls_last=True)
    )
    many, differ = pl.col("rewarded") > 1, pl.col("spread") > _SAME
    kinds = {
        ("varied", "attempts earned different rewards"): many & differ,
        ("equal", "all attempts earned the same"): many & ~differ,
        ("single", "only one attempt has a reward"): pl.col("rewarded") == 1,
        ("unrewarded", "no attempt has a reward"): pl.col("rewarded") == 0,
    }
    shown = tasks.head(MAX_TASKS)
    of_task = named.filter(pl.col("task_id").is_in(shown["task_id"].to_list())).partition_by(
        "task_id", as_dict=True
    )
    return Groups(
        shares=tuple(
            (name, meaning, int(tasks.select(rule.sum()).item()))
            for (name, meaning), rule in kinds.items()
        ),
        num_groups=tasks.height,
        num_without_task=trajectories.height - named.height,
        deviation=describe(tasks.filter(many)["deviation"]),
        tasks=tuple(
            Task(task_id=name, cohort=cohort, reward=describe(of_task[(name,)]["reward"], bins))
            for name, cohort in shown.select("task_id", "cohort").iter_rows()
        ),
    )


def _count_records(opened: Opened) -> list[tuple[str, int]]:
    fate = (
        pl.when(pl.col("superseded"))
        .then(pl.lit("replaced by a later one"))
        .when(pl.col("trusted"))
        .then(pl.lit("counts"))
        .otherwise(pl.format("does not count: {}", pl.col("untrusted_because").fill_null("?")))
    )
    counts = (
        opened.scan("rewards")
        .group_by(fate=fate)
        .len()
        .sort("len", "fate", descending=[True, False])
        .collect(engine="streaming")
    )
    rows: list[tuple[str, int]] = list(counts.head(MAX_ROWS).iter_rows())
    rest = int(counts["len"][MAX_ROWS:].sum())
    return [*rows, ("does not count: other reasons", rest)] if rest else rows
