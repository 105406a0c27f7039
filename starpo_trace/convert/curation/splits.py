"""Grouped trajectories -> `split` and `distribution`. A group is never in two splits."""

from datetime import datetime
from typing import Final

import polars as pl

from starpo_trace.convert.curation.stable import hash_texts
from starpo_trace.convert.recipe.curation_rules import DistributionRules, SplitRules

SEEN_COLUMNS: Final = {
    "tools": "tool_names",
    "environment": "environment_name",
    "cohort": "cohort",
    "agent": "agent_name",
}


def split_trajectories(
    trajectories: pl.DataFrame, rules: SplitRules, distribution: DistributionRules
) -> pl.DataFrame:
    """Trajectories with `group_id` -> `split`, `straddles` (left out for it), in the same order.

    A trajectory without a group is split by time alone; a share holds out groups only.
    """
    # Nobody else shares a unit with one that has no group.
    unit = pl.coalesce("group_id", pl.format("\0{}", "trajectory_id"))
    rows = trajectories.select("group_id", "started_ns", unit=unit, ood=_is_declared(distribution))
    units = (
        rows.group_by("unit")
        .agg(
            pl.col("group_id").first(),
            first=pl.col("started_ns").min(),
            last=pl.col("started_ns").max(),
            is_ood=pl.col("ood").any(),
        )
        .sort("unit")
    )
    if rules.test or rules.validation:
        prefix = f"{rules.seed}/" if rules.seed else ""
        units = units.with_columns(
            share=hash_texts(units["group_id"], prefix=prefix).cast(pl.Float64) / 2**64
        )
    else:
        units = units.with_columns(share=pl.lit(None, dtype=pl.Float64))
    split, straddles = _decide_splits(rules, holds_out=distribution.hold_out)
    decided = units.select("unit", split=split, straddles=straddles)
    return rows.join(decided, on="unit", how="left", maintain_order="left").select(
        "split", "straddles"
    )


def _decide_splits(rules: SplitRules, *, holds_out: bool) -> tuple[pl.Expr, pl.Expr]:
    when = "last" if rules.straddling == "test" else "first"
    split = pl.lit("train")
    straddles = pl.lit(value=False)
    share = pl.col("share")
    split = (
        pl.when(share < rules.test + rules.validation).then(pl.lit("validation")).otherwise(split)
    )
    split = pl.when(share < rules.test).then(pl.lit("test")).otherwise(split)
    for name, cutoff in (("validation", rules.validation_after), ("test", rules.test_after)):
        if cutoff is not None:
            since_ns = to_ns(cutoff)
            split = pl.when(pl.col(when) >= since_ns).then(pl.lit(name)).otherwise(split)
            is_across = (pl.col("first") < since_ns) & (pl.col("last") >= since_ns)
            straddles = straddles | is_across.fill_null(value=False)
    if holds_out:
        split = pl.when("is_ood").then(pl.lit("test")).otherwise(split)
        straddles = straddles & ~pl.col("is_ood")
    if rules.straddling != "exclude":
        straddles = pl.lit(value=False)
    return split, straddles


def to_ns(time: datetime) -> int:
    """Moment with a zone -> nanoseconds since 1970."""
    return int(time.timestamp()) * 1_000_000_000 + time.microsecond * 1000


def label_distribution(
    trajectories: pl.DataFrame, rules: DistributionRules, is_kept: pl.Series
) -> pl.Series:
    """Trajectories with `split` -> `distribution`: id | ood | unknown.

    One sign of being out of distribution is enough; `id` needs every sign to be known and absent.
    """
    if not rules.is_declared:
        return pl.repeat("unknown", trajectories.height, dtype=pl.String, eager=True).alias(
            "distribution"
        )
    signs = _list_declared(rules)
    trained = trajectories.filter(is_kept & (trajectories["split"] == "train"))
    for each in rules.unseen:
        signs.append(_is_unseen(SEEN_COLUMNS[each], trained))
    is_ood = pl.any_horizontal(signs)
    label = pl.when(is_ood).then(pl.lit("ood")).when(is_ood.is_null()).then(pl.lit("unknown"))
    return trajectories.select(distribution=label.otherwise(pl.lit("id")))["distribution"]


def _is_declared(rules: DistributionRules) -> pl.Expr:
    return pl.any_horizontal(*_list_declared(rules), pl.lit(value=False)).fill_null(value=False)


def _list_declared(rules: DistributionRules) -> list[pl.Expr]:
    """Each kind of declaration -> whether it holds; null where the trajectory does not say."""
    signs = []
    if rules.ood_cohorts:
        signs.append(pl.col("cohort").is_in(list(rules.ood_cohorts)))
    if rules.ood_environments:
        signs.append(pl.col("environment_name").is_in(list(rules.ood_environments)))
    if rules.ood_tools:
        tools = pl.col("tool_names")
        signs.append(tools.list.set_intersection(list(rules.ood_tools)).list.len() > 0)
    if rules.ood_task_prefixes:
        starts = [pl.col("task_id").str.starts_with(each) for each in rules.ood_task_prefixes]
        signs.append(pl.any_horizontal(starts))
    return signs


def _is_unseen(column: str, trained: pl.DataFrame) -> pl.Expr:
    if trained.is_empty():
        return pl.lit(None, dtype=pl.Boolean)
    if column == "tool_names":
        seen = trained[column].drop_nulls().explode().drop_nulls().unique().to_list()
        return pl.col(column).list.set_difference(seen).list.len() > 0
    return ~pl.col(column).is_in(trained[column].drop_nulls().unique().to_list())
