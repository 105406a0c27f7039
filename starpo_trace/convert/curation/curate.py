"""Trajectories of a whole dataset and a recipe -> the same trajectories, labelled.

Nothing is removed: what is left out says why in `excluded_because`, first reason first. What a
trajectory is left out for on its own account comes first, then repeats among what is left, then
quotas among what is left of that. No decision depends on the order of rows or files.
"""

from typing import Final

import polars as pl

from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.curation.exclusions import count_policy_lag, list_own_faults
from starpo_trace.convert.curation.groups import group_trajectories
from starpo_trace.convert.curation.repeats import (
    find_exact_repeats,
    find_excess,
    find_near_repeats,
)
from starpo_trace.convert.curation.splits import label_distribution, split_trajectories
from starpo_trace.convert.recipe.sections import Recipe
from starpo_trace.schema import TRAJECTORIES

LABELS: Final = (
    "group_id",
    "split",
    "distribution",
    "policy_lag",
    "duplicate_of",
    "excluded_because",
)
_ID: Final = "trajectory_id"


def curate_trajectories(trajectories: pl.DataFrame, recipe: Recipe) -> pl.DataFrame:
    """Table `trajectories` -> sorted by id, with `LABELS` made anew.

    Raises:
        DatasetError: a quota's share cannot hold.
    """
    columns = polars_schema(TRAJECTORIES)
    table = trajectories.drop(LABELS, strict=False).sort(_ID)
    table = table.with_columns(group_trajectories(table, recipe.groups))
    table = table.with_columns(
        *split_trajectories(table, recipe.splits, recipe.distribution).get_columns(),
        policy_lag=count_policy_lag(pl.col("policy_id"), recipe.freshness),
    )
    reasons = _Reasons(table)
    reasons.add("straddles_cutoff", table["straddles"])
    for reason, holds in list_own_faults(table, recipe).items():
        reasons.add(reason, holds)
    repeats = [pl.DataFrame(schema={_ID: pl.String, "duplicate_of": pl.String})]
    for reason, find, is_wanted in (
        ("duplicate", find_exact_repeats, recipe.duplicates.exact),
        ("near_duplicate", find_near_repeats, recipe.duplicates.near is not None),
    ):
        if is_wanted:
            found = find(table.filter(reasons.is_kept), recipe.duplicates)
            reasons.add(reason, table[_ID].is_in(found[_ID].implode()))
            repeats.append(found)
    for name, rule in recipe.quotas.items():
        found = find_excess(table.filter(reasons.is_kept), name, rule)
        reasons.add(f"quota:{name}", table[_ID].is_in(found[_ID].implode()))
    table = table.with_columns(
        label_distribution(table, recipe.distribution, reasons.is_kept),
        excluded_because=reasons.list_all(),
    ).join(pl.concat(repeats), on=_ID, how="left", maintain_order="left")
    labelled = table.drop("straddles").with_columns(pl.col(c).cast(columns[c]) for c in LABELS)
    return labelled.select([c for c in columns if c in labelled.columns])


class _Reasons:
    """Why rows are left out, in the order in which it was decided."""

    def __init__(self, table: pl.DataFrame) -> None:
        self._found: dict[str, pl.Series] = {}
        self.is_kept = pl.repeat(value=True, n=table.height, dtype=pl.Boolean, eager=True)

    def add(self, reason: str, holds: pl.Series) -> None:
        if holds.any():
            self._found[reason] = holds
            self.is_kept = self.is_kept & ~holds

    def list_all(self) -> pl.Series:
        if not self._found:
            return pl.Series([[]], dtype=pl.List(pl.String)).new_from_index(0, len(self.is_kept))
        named = pl.DataFrame(
            [pl.Series(reason, holds) for reason, holds in self._found.items()]
        ).select(
            pl.when(pl.col(reason)).then(pl.lit(reason)).alias(reason) for reason in self._found
        )
        return named.select(because=pl.concat_list(list(self._found)).list.drop_nulls())["because"]
