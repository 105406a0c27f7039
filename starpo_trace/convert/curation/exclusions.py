"""Trajectories -> why each is left out on its own account: age, outliers, conditions."""

from typing import Final

import polars as pl

from starpo_trace.convert.curation.splits import to_ns
from starpo_trace.convert.recipe.curation_rules import FreshnessRules, OutlierRule
from starpo_trace.convert.recipe.expressions import check_condition, check_number, say_briefly
from starpo_trace.convert.recipe.sections import Recipe
from starpo_trace.errors import DatasetError

_DAY_NS: Final = 86_400 * 1_000_000_000
_FROM_MAD: Final = 1.4826
"""Median absolute deviation -> standard deviation, for normal data."""
_FROM_MEAN: Final = 1.2533
"""Mean absolute deviation -> standard deviation (Iglewicz and Hoaglin, 1993)."""


def count_policy_lag(policy_id: pl.Expr, rules: FreshnessRules) -> pl.Expr:
    """How many policies lie between a trajectory's and the current one; null when unknown.

    Example:
        With policies a, b, c and the current one b: a has lag 1, b 0, c -1.
    """
    current = rules.current_policy or (rules.policies[-1] if rules.policies else None)
    if current is None:
        return pl.lit(None, dtype=pl.Int64)
    policies = rules.policies or (current,)
    lags = {policy: policies.index(current) - i for i, policy in enumerate(policies)}
    return policy_id.replace_strict(lags, default=None, return_dtype=pl.Int64)


def list_own_faults(trajectories: pl.DataFrame, recipe: Recipe) -> dict[str, pl.Series]:
    """Trajectories with `policy_lag` -> reason -> whether it holds, in the order of the rows.

    Raises:
        DatasetError: an expression fails on a trajectory.
    """
    table = trajectories.with_columns(trajectory_end="end")
    faults = {
        reason: _evaluate(table, holds, "freshness")
        for reason, holds in _find_stale(recipe.freshness, table).items()
    }
    for name, rule in recipe.outliers.items():
        where = f"outliers.{name}.expr"
        faults[f"outlier:{name}"] = _evaluate(table, _is_outlier(rule, where), where)
    for name, rule in recipe.exclude.items():
        where = f"exclude.{name}.where"
        faults[f"exclude:{name}"] = _evaluate(table, check_condition(rule.where, where), where)
    return faults


def _evaluate(table: pl.DataFrame, holds: pl.Expr, where: str) -> pl.Series:
    try:
        return table.with_columns(holds=holds.fill_null(value=False))["holds"]
    except pl.exceptions.PolarsError as error:
        said = say_briefly(error)
        raise DatasetError(f"{where}: fails on these trajectories: {said}; change it") from None


def _find_stale(rules: FreshnessRules, trajectories: pl.DataFrame) -> dict[str, pl.Expr]:
    faults = {}
    if rules.max_policy_lag is not None:
        lag = pl.col("policy_lag")
        faults["policy_lag"] = lag.abs() > rules.max_policy_lag
        if rules.unknown == "exclude":
            faults["policy_unknown"] = lag.is_null()
    if rules.environment_versions:
        version = pl.col("environment_version")
        named = pl.format("{}@{}", "environment_name", version)
        allowed = list(rules.environment_versions)
        is_known = version.is_not_null()
        is_allowed = version.is_in(allowed) | named.is_in(allowed).fill_null(value=False)
        faults["environment_version"] = is_known & ~is_allowed
        if rules.unknown == "exclude":
            faults["environment_unknown"] = ~is_known
    if rules.max_age_days is not None:
        newest = trajectories["started_ns"].max()
        as_of_ns = to_ns(rules.as_of) if rules.as_of is not None else newest
        age_ns = pl.lit(as_of_ns, dtype=pl.Int64) - pl.col("started_ns")
        faults["too_old"] = age_ns > rules.max_age_days * _DAY_NS
        if rules.unknown == "exclude":
            faults["age_unknown"] = age_ns.is_null()
    return faults


def _is_outlier(rule: OutlierRule, where: str) -> pl.Expr:
    value = check_number(rule.expr, where)
    known = pl.when(value.is_finite()).then(value)
    signs = [~value.is_finite()]
    if rule.min is not None:
        signs.append(value < rule.min)
    if rule.max is not None:
        signs.append(value > rule.max)
    if rule.robust_z is not None:
        distance = (known - known.median()).abs()
        # More than half of the values are equal: their spread is that of the others.
        spread = (
            pl.when(distance.median() > 0)
            .then(distance.median() * _FROM_MAD)
            .otherwise(distance.mean() * _FROM_MEAN)
        )
        signs.append(distance > rule.robust_z * spread)
    if rule.iqr is not None:
        low, high = (known.quantile(q, interpolation="linear") for q in (0.25, 0.75))
        reach = (high - low) * rule.iqr
        signs.append((value < low - reach) | (value > high + reach))
    return pl.any_horizontal(sign.fill_null(value=False) for sign in signs)
