"""Trajectories -> `group_id`: attempts at the same thing.

A task that is there more than once is a group by itself. For the others the recipe says how to
find what belongs together; without it the task is the group, also of one.
"""

from typing import Final

import polars as pl

from starpo_trace.convert.curation.similar import cluster_sketches
from starpo_trace.convert.recipe.curation_rules import GroupRules

_ID: Final = "trajectory_id"


def group_trajectories(trajectories: pl.DataFrame, rules: GroupRules) -> pl.Series:
    """Trajectories sorted by id -> their `group_id`; null: comparable with nothing."""
    if rules.lone == "none":
        return trajectories["task_id"].alias("group_id")
    is_repeated = pl.col("task_id").is_not_null() & (pl.len().over("task_id") > 1)
    if rules.lone == "signature":
        found = trajectories.with_columns(found=pl.format("signature:{}", "signature"))
    else:
        lone = trajectories.filter(~is_repeated)
        found = trajectories.join(
            _name_clusters(lone, rules.similarity), on=_ID, how="left", maintain_order="left"
        )
    return found.select(
        group_id=pl.when(is_repeated)
        .then(pl.col("task_id"))
        .otherwise(pl.coalesce("found", "task_id"))
    )["group_id"]


def _name_clusters(lone: pl.DataFrame, similarity: float) -> pl.DataFrame:
    """Each cluster is called by its earliest trajectory, which later ones do not change."""
    clusters = cluster_sketches(lone.select(_ID, sketch="task_sketch"), similarity)
    earliest = pl.col(_ID).sort_by("started_ns", _ID, nulls_last=True).first().over("cluster")
    return clusters.join(lone.select(_ID, "started_ns"), on=_ID).select(
        _ID, found=pl.format("cluster:{}", earliest)
    )
