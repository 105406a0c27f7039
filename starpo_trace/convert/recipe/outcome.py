"""Judged rewards -> the reward of each trajectory and turn, as the recipe's `[rewards]` says.

Nothing that was recorded changes: late rewards and those that count for nothing stay rows of the
table `rewards`.
"""

from collections.abc import Mapping
from typing import Final

import polars as pl

from starpo_trace.convert.recipe.reward_rules import RewardRule
from starpo_trace.errors import DatasetError

Rules = Mapping[str, RewardRule]

_ID: Final = "trajectory_id"
_IS_NUMBERED: Final = pl.col("scope").is_in(["step", "turn"])


def reward_trajectories(
    trajectories: pl.DataFrame, rewards: pl.DataFrame, rules: Rules
) -> pl.DataFrame:
    """All trajectories and their judged rewards -> `trajectory_id`, `reward`, `reward_parts`.

    Without a rule for trajectories the reward is the one that counts most, without parts. With
    rules it is the sum of weight * value over their names. A part's value is what counts: the
    recorded one, mapped to 0..1 or negated where the rule says so.

    Example:
        With `quality` (weight 1, 0.8 recorded) and `cost` (weight 0.1, lower is better, 3 recorded)
        the reward is 1 * 0.8 + 0.1 * -3 = 0.5.

    Raises:
        DatasetError: a sum is beyond all numbers.
    """
    chosen = {name: rule for name, rule in rules.items() if rule.counts_into == "trajectory"}
    if not chosen:
        return _pick_outcome(rewards)
    return _combine_rewards(trajectories, rewards, chosen)


def reward_turns(rewards: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """Judged rewards -> `trajectory_id`, `turn`, `reward`: the sum of the turn's own.

    Without a rule for turns all process rewards count as they are, else the named ones weighted.
    """
    chosen = {name: rule for name, rule in rules.items() if rule.counts_into == "turn"}
    own = _list_counting(rewards).filter(_IS_NUMBERED, pl.col("turn").is_not_null())
    if chosen:
        value = pl.lit(None, dtype=pl.Float64)
        for name, rule in chosen.items():
            counted = _count_value(pl.col("value"), rule) * rule.weight
            value = pl.when(pl.col("name") == name).then(counted).otherwise(value)
        own = own.filter(pl.col("name").is_in(list(chosen))).with_columns(value=value)
    else:
        own = own.filter(pl.col("kind") == "process")
    return (
        own.group_by(_ID, "turn")
        .agg(reward=pl.col("value").sort_by("reward_id").sum())
        .with_columns(pl.col("turn").cast(pl.Int64))
    )


def _combine_rewards(
    trajectories: pl.DataFrame, rewards: pl.DataFrame, rules: Rules
) -> pl.DataFrame:
    table = trajectories.select(_ID)
    for i, name in enumerate(rules):
        values = _pick_values(rewards, name, rules[name]).rename({"value": f"value_{i}"})
        table = table.join(values, on=_ID, how="left")
    parts, totals, gaps = [], [], []
    for i, name in enumerate(rules):
        rule = rules[name]
        value = pl.col(f"value_{i}")
        if not isinstance(rule.missing, str):
            value = value.fill_null(rule.missing)
        counted = _count_value(value, rule)
        parts.append(pl.struct(name=pl.lit(name), value=counted, weight=pl.lit(rule.weight)))
        totals.append(counted * rule.weight)
        gaps.append(counted.is_null() if rule.missing == "missing" else pl.lit(value=False))
    is_empty = pl.all_horizontal(total.is_null() for total in totals)
    combined = table.select(
        _ID,
        reward=pl.when(~pl.any_horizontal(gaps) & ~is_empty).then(pl.sum_horizontal(totals)),
        reward_parts=pl.concat_list(parts),
    )
    if (wrong := combined.filter(~pl.col("reward").is_finite())).height:
        raise DatasetError(
            f"rewards: trajectory {wrong[_ID].min()}: they add up to no finite number; "
            "lower the weights or declare ranges"
        )
    return combined


def _list_counting(rewards: pl.DataFrame) -> pl.DataFrame:
    return rewards.filter(pl.col("trusted"), ~pl.col("superseded"), pl.col("value").is_not_null())


def _pick_values(rewards: pl.DataFrame, name: str, rule: RewardRule) -> pl.DataFrame:
    """One recorded value per trajectory that has any."""
    is_of_scope = pl.col("scope") == "trajectory" if rule.scope == "trajectory" else _IS_NUMBERED
    value = pl.col("value").sort_by("reward_id")
    default = "latest" if rule.scope == "trajectory" else "sum"
    # As without a recipe: a signed one before all others, then the latest.
    last = pl.col("value").sort_by(pl.col("signature") == "valid", "made_ns", "reward_id").last()
    several = {
        "latest": last,
        "mean": value.mean(),
        "sum": value.sum(),
        "min": value.min(),
        "max": value.max(),
    }
    return (
        _list_counting(rewards)
        .filter(pl.col("name") == name, is_of_scope)
        .group_by(_ID)
        .agg(value=several[rule.several or default])
    )


def _count_value(value: pl.Expr, rule: RewardRule) -> pl.Expr:
    is_lower = rule.direction == "lower"
    if rule.normalise and rule.range is not None:
        low, high = rule.range
        share = (value - low) / (high - low)
        return 1.0 - share if is_lower else share
    return -value if is_lower else value


def _pick_outcome(rewards: pl.DataFrame) -> pl.DataFrame:
    """The trajectory's reward without rules: the one named `reward`, the latest otherwise.

    One with a valid signature comes before all others, and its time is the one under signature:
    that of its span can be written by anybody who sends it again.
    """
    return (
        rewards.filter(
            pl.col("trusted"),
            ~pl.col("superseded"),
            pl.col("scope") == "trajectory",
            pl.col("kind") == "outcome",
        )
        .sort(
            pl.col("signature") == "valid",
            pl.col("name") == "reward",
            "made_ns",
            "reward_id",
            descending=True,
        )
        .group_by(_ID, maintain_order=True)
        .agg(reward=pl.col("value").first())
    )
