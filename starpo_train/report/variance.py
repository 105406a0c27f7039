"""Rewards of attempts -> how much of their variance lies within tasks, how much between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from markupsafe import Markup

from starpo_train.report import svg
from starpo_train.report.inputs import Role
from starpo_train.report.policies import EvaluatedPolicy

NUM_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """Rewards of all attempts at each task (a group)."""

    num_groups: int
    num_varied: int
    """Groups whose attempts differ in reward: the only ones that teach a group-relative loss."""
    within: float | None
    """Mean variance among attempts at one task; None when no task has two."""
    between: float | None
    """Variance of the tasks' own means, what attempts' luck adds to it taken off."""
    shares: tuple[tuple[str, str, int], ...]
    """(name, css, count): all failed, varied, all solved, single attempt."""
    shares_picture: Markup
    split_picture: Markup | None
    """Within and between as parts of the whole."""
    histogram: Markup
    largest_deviation: float

    @property
    def num_still(self) -> int:
        """Groups of several attempts that all earned the same."""
        return sum(count for name, _, count in self.shares if name.startswith("all "))

    @property
    def share_within(self) -> float | None:
        """Of the whole variance."""
        if self.within is None or self.between is None or self.within + self.between == 0:
            return None
        return self.within / (self.within + self.between)


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceRow:
    """One policy's evaluation, or the training split."""

    name: str
    role: Role | None
    """None: the training data."""
    groups: GroupView


def view_variance(
    policies: Sequence[EvaluatedPolicy], train: pl.DataFrame | None, *, success_threshold: float
) -> list[VarianceRow]:
    """Each policy, then the training split; what has no reward of a named task is left out."""
    sources: list[tuple[str, Role | None, pl.DataFrame]] = [
        (policy.name, policy.role, policy.rows) for policy in policies
    ]
    if train is not None:
        sources.append(("training data", None, train))
    return [
        VarianceRow(name=name, role=role, groups=groups)
        for name, role, rows in sources
        if (groups := view_groups(rows, success_threshold)) is not None
    ]


def split_variance(groups: pl.DataFrame) -> tuple[float | None, float | None]:
    """Per-task `size`, `mean`, `variance` (of the sample) -> (within, between), both unbiased.

    One-way random effects: within is the pooled variance of attempts at a task; between is
    (MSB - MSW) / n0 with n0 = (N - sum n^2 / N) / (T - 1), and 0 where that is negative.
    """
    several = groups.filter(pl.col("size") > 1)
    if several.is_empty():
        return None, None
    size, mean, variance = (several[name].to_numpy() for name in ("size", "mean", "variance"))
    num_runs, num_tasks = int(size.sum()), len(several)
    within = float(((size - 1) * variance).sum() / (num_runs - num_tasks))
    if num_tasks == 1:
        return within, None
    grand = float((size * mean).sum() / num_runs)
    among = float((size * (mean - grand) ** 2).sum() / (num_tasks - 1))
    usual = (num_runs - float((size**2).sum()) / num_runs) / (num_tasks - 1)
    return within, max(0.0, (among - within) / usual)


def view_groups(rows: pl.DataFrame, success_threshold: float) -> GroupView | None:
    """Trajectories -> GroupView; None without a rewarded attempt at a named task."""
    groups = (
        rows.drop_nulls(["task_id", "reward"])
        .filter(pl.col("reward").is_finite())
        .group_by("task_id")
        .agg(
            size=pl.len(),
            mean=pl.col("reward").mean(),
            variance=pl.col("reward").var(),
            deviation=pl.col("reward").std(ddof=0),
        )
        .sort("task_id")
    )
    if groups.is_empty():
        return None
    single = pl.col("size") == 1
    varied = ~single & (pl.col("deviation") > 1e-9)
    solved = pl.col("mean") >= success_threshold
    kinds = {
        ("all failed", "share-failed"): ~single & ~varied & ~solved,
        ("varied", "share-varied"): varied,
        ("all solved", "share-solved"): ~single & ~varied & solved,
        ("one attempt only", "share-single"): single,
    }
    shares = tuple(
        (name, css, int(groups.select(rule.sum()).item())) for (name, css), rule in kinds.items()
    )
    within, between = split_variance(groups)
    largest = float(groups["deviation"].max() or 0.0)  # pyright: ignore[reportArgumentType]
    bins = [0] * NUM_BINS
    for deviation in groups["deviation"]:
        bins[min(NUM_BINS - 1, int(NUM_BINS * deviation / largest)) if largest else 0] += 1
    return GroupView(
        num_groups=len(groups),
        num_varied=shares[1][2],
        within=within,
        between=between,
        shares=shares,
        shares_picture=svg.draw_shares(
            [(count / len(groups), css, f"{name}: {count}") for name, css, count in shares],
            label=", ".join(f"{count} {name}" for name, _, count in shares),
        ),
        split_picture=_draw_split(within, between),
        histogram=svg.draw_histogram(
            bins, label=f"Groups by deviation of reward, from 0 to {largest:.2g}"
        ),
        largest_deviation=largest,
    )


def _draw_split(within: float | None, between: float | None) -> Markup | None:
    if within is None or between is None or within + between == 0:
        return None
    share = within / (within + between)
    return svg.draw_shares(
        [
            (share, "share-within", f"within tasks {share:.0%}"),
            (1 - share, "share-between", f"between tasks {1 - share:.0%}"),
        ],
        label=f"{share:.0%} of the variance lies within tasks, {1 - share:.0%} between them",
    )
