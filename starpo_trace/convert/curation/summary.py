"""Labelled trajectories -> what the manifest says about how they were chosen."""

from typing import Any, Final

import polars as pl

from starpo_trace.convert.curation.similar import choose_rows_per_band
from starpo_trace.convert.curation.sketch import MAX_WORDS, SKETCH_LENGTH
from starpo_trace.convert.recipe.sections import Recipe

_SPLITS: Final = ("train", "validation", "test")


def summarise_curation(
    trajectories: pl.DataFrame, recipe: Recipe, reward_names: pl.Series | None = None
) -> dict[str, Any]:
    """Labelled trajectories -> counts: kept + excluded by first reason = all.

    Of `reward_names`, the names of all recorded rewards, those are counted that the recipe has.
    """
    names = pl.Series(dtype=pl.String) if reward_names is None else reward_names
    because = pl.col("excluded_because")
    is_kept = because.list.len() == 0
    kept = trajectories.filter(is_kept)
    first = trajectories.filter(~is_kept).select(because.list.first().alias("reason"))
    any_of = trajectories.select(reason=because).explode("reason").drop_nulls()
    return {
        "trajectories": trajectories.height,
        "kept": kept.height,
        "excluded_by_first_reason": _count(first["reason"]),
        "excluded_by_any_reason": _count(any_of["reason"]),
        "splits": {
            split: {
                "trajectories": rows.height,
                "kept": rows.filter(is_kept).height,
                "groups": rows["group_id"].drop_nulls().n_unique(),
            }
            for split in _SPLITS
            for rows in [trajectories.filter(pl.col("split") == split)]
        },
        "distribution": _count(trajectories["distribution"]),
        "policy_lag": _count(trajectories["policy_lag"].cast(pl.String).fill_null("unknown")),
        "rewards": {name: int((names == name).sum()) for name in recipe.rewards},
        "groups": _summarise_groups(kept, recipe),
        "duplicates": _summarise_method(recipe.duplicates.near),
    }


def _summarise_groups(kept: pl.DataFrame, recipe: Recipe) -> dict[str, Any]:
    groups = (
        kept.filter(pl.col("group_id").is_not_null())
        .group_by("group_id")
        .agg(size=pl.len(), is_varied=pl.col("reward").min() < pl.col("reward").max())
    )
    similarity = recipe.groups.similarity if recipe.groups.lone == "cluster" else None
    return {
        "method": "task" if recipe.groups.lone == "none" else f"task, else {recipe.groups.lone}",
        "parameters": _summarise_method(similarity),
        "groups": groups.height,
        "of_two_or_more": groups.filter(pl.col("size") > 1).height,
        "with_reward_variance": groups.filter("is_varied").height,
        "largest": groups["size"].max() or 0,
        "trajectories_without": kept["group_id"].null_count(),
    }


def _summarise_method(similarity: float | None) -> dict[str, Any]:
    if similarity is None:
        return {}
    rows = choose_rows_per_band(similarity)
    return {
        "method": "MinHash of three-word runs by one permutation, banded, single linkage",
        "similarity": similarity,
        "sketch_length": SKETCH_LENGTH,
        "rows_per_band": rows,
        "bands": SKETCH_LENGTH // rows,
        "max_words": MAX_WORDS,
    }


def _count(values: pl.Series) -> dict[str, int]:
    counts = values.alias("value").value_counts().sort("value")
    return dict(counts.iter_rows())
