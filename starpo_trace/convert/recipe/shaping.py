"""Turns and their trajectories -> `shaping` of each turn, beside the rewards that were recorded.

A potential phi(s) gives the turn gamma * phi(s') - phi(s), which leaves the optimal policy what it
is (Ng, Harada and Russell, "Policy invariance under reward transformations", ICML 1999, theorem 1).
phi of the state after the last turn is 0, as it must be in episodes (Grzes, "Reward shaping in
episodic reinforcement learning", AAMAS 2017).
"""

from collections.abc import Mapping
from typing import Final

import polars as pl

from starpo_trace.convert.recipe.expressions import check_potential, check_shaping, say_briefly
from starpo_trace.convert.recipe.features import list_turn_features
from starpo_trace.convert.recipe.reward_rules import ShapingRule
from starpo_trace.errors import DatasetError

_KEY: Final = ["trajectory_id", "turn"]


def shape_turns(
    turns: pl.DataFrame, trajectories: pl.DataFrame, rules: Mapping[str, ShapingRule]
) -> pl.DataFrame:
    """Tables `turns` and `trajectories` -> turns with `shaping` and `shaping_parts`.

    Raises:
        DatasetError: a value is NaN or infinite, or an expression fails on a turn.
    """
    if not rules:
        return turns
    values = list_turn_features(turns, trajectories)
    for name, rule in rules.items():
        where = f"shaping.{name}"
        try:
            value = _evaluate(values, rule, where)
        except pl.exceptions.PolarsError as error:
            said = say_briefly(error)
            raise DatasetError(f"{where}: fails on these turns: {said}; change it") from None
        _refuse_infinite(values.select(*_KEY, value=value), where)
        if not isinstance(rule.missing, str):
            value = value.fill_null(rule.missing)
        values = values.with_columns(value.alias(where))
    names = list(rules)
    total = pl.sum_horizontal(
        (pl.col(f"shaping.{name}") * rules[name].weight for name in names), ignore_nulls=False
    )
    parts = pl.concat_list(
        pl.struct(name=pl.lit(name), value=f"shaping.{name}", weight=pl.lit(rules[name].weight))
        for name in names
    )
    shaped = values.select(*_KEY, shaping=total, shaping_parts=parts)
    return turns.drop("shaping", "shaping_parts", strict=False).join(
        shaped, on=_KEY, how="left", maintain_order="left"
    )


def _evaluate(values: pl.DataFrame, rule: ShapingRule, where: str) -> pl.Series:
    if rule.expr is not None:
        expression = check_shaping(rule.expr, f"{where}.expr")
        return values.with_columns(value=expression)["value"]
    potential = check_potential(rule.potential, f"{where}.potential")
    if not isinstance(rule.missing, str):
        potential = potential.fill_null(rule.missing)
    following = pl.col("phi").shift(-1).over("trajectory_id")
    following = pl.when("is_last").then(0.0).otherwise(following)
    return values.with_columns(phi=potential).select(value=rule.gamma * following - pl.col("phi"))[
        "value"
    ]


def _refuse_infinite(values: pl.DataFrame, where: str) -> None:
    wrong = values.filter(~pl.col("value").is_finite())
    if wrong.height:
        trajectory, turn, value = wrong.row(0)
        raise DatasetError(
            f"{where}: trajectory {trajectory}, turn {turn}: is {value}; it must be a finite number "
            "or NULL, so guard divisions and logarithms, as in x / NULLIF(y, 0)"
        )
