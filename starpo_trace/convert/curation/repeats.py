"""Trajectories -> which are repeats of another, and which are more than a quota allows."""

from typing import Final

import polars as pl

from starpo_trace.convert.curation.similar import cluster_sketches
from starpo_trace.convert.curation.stable import hash_texts
from starpo_trace.convert.recipe.curation_rules import DuplicateRules, QuotaRule
from starpo_trace.errors import DatasetError

_ID: Final = "trajectory_id"
_QUOTA_COLUMNS: Final = {
    "source": "source",
    "cohort": "cohort",
    "task": "task_id",
    "policy": "policy_id",
    "environment": "environment_name",
    "group": "group_id",
}
_NULL_IS_NONE: Final = ("task", "group")
"""Without one a trajectory shares it with nobody; of other keys all without are one value."""


def find_exact_repeats(kept: pl.DataFrame, rules: DuplicateRules) -> pl.DataFrame:
    """Trajectories still in -> `trajectory_id`, `duplicate_of` of those to leave out."""
    same = kept.filter(pl.col("content_digest").is_not_null())
    return _keep_one(same.with_columns(same="content_digest"), rules)


def find_near_repeats(kept: pl.DataFrame, rules: DuplicateRules) -> pl.DataFrame:
    """As `find_exact_repeats`, for those at least `near` alike, directly or over others."""
    if rules.near is None:
        return _keep_one(kept.head(0).with_columns(same=_ID), rules)
    clusters = cluster_sketches(kept.select(_ID, sketch="content_sketch"), rules.near)
    return _keep_one(kept.join(clusters.rename({"cluster": "same"}), on=_ID), rules)


def _keep_one(rows: pl.DataFrame, rules: DuplicateRules) -> pl.DataFrame:
    order = {
        "first": [pl.col("started_ns")],
        "latest": [-pl.col("started_ns")],
        "best": [-pl.col("reward"), pl.col("started_ns")],
    }[rules.keep]
    ranked = rows.sort(*order, _ID, nulls_last=True).with_columns(
        duplicate_of=pl.col(_ID).first().over("same")
    )
    return ranked.filter(pl.col(_ID) != pl.col("duplicate_of")).select(_ID, "duplicate_of")


def find_excess(kept: pl.DataFrame, name: str, rule: QuotaRule) -> pl.DataFrame:
    """Trajectories still in -> `trajectory_id` of those beyond the quota, chosen by hash.

    Raises:
        DatasetError: a share is too small for the number of values there are.
    """
    column = _QUOTA_COLUMNS[rule.by]
    rows = kept.filter(pl.col("split").is_in(list(rule.splits)))
    if rule.by in _NULL_IS_NONE:
        rows = rows.filter(pl.col(column).is_not_null())
    draw = hash_texts(rows[_ID], prefix=f"quota:{name}:{rule.seed}:").alias("draw")
    key = ["split", column]
    ranked = (
        rows.select(_ID, *key)
        .with_columns(draw)
        .sort("draw", _ID)
        .with_columns(rank=pl.int_range(pl.len()).over(key))
    )
    caps = {
        str(split): rule.max or _find_cap(part[column], name, rule, str(split))
        for (split,), part in ranked.group_by(["split"])
    }
    cap = pl.col("split").replace_strict(caps, default=0, return_dtype=pl.Int64)
    return ranked.filter(pl.col("rank") >= cap).select(_ID)


def _find_cap(values: pl.Series, name: str, rule: QuotaRule, split: str) -> int:
    """Most trajectories c per value with which no value has more than its share of what is left.

    c <= share * sum(min(n, c)) over the values' counts n holds from 0 up to a greatest c.
    """
    counts = values.value_counts()["count"].cast(pl.Int64)
    share = rule.max_share or 1.0
    low, high = 0, int(counts.max() or 0)  # pyright: ignore[reportArgumentType]

    def holds(cap: int) -> bool:
        return cap <= share * int(counts.clip(upper_bound=cap).sum()) + 1e-9

    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    if low == 0:
        raise DatasetError(
            f"quotas.{name}: max_share = {share} cannot hold in {split}: {rule.by} has "
            f"{counts.len()} value(s) there; raise it, or give max = N"
        )
    return low
