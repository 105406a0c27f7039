"""Evaluated policies, tables of scores -> how often each cohort fails, evaluator by evaluator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from starpo_train import stats
from starpo_train.errors import DataError
from starpo_train.gate.comparing import NO_COHORT
from starpo_train.report.inputs import Role
from starpo_train.report.policies import EvaluatedPolicy, draw_rates, estimate_success
from starpo_train.stats import Estimate

MOST_COHORTS = 24
_SCORE_COLUMNS = ("trajectory_id", "task_id", "cohort", "evaluator", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailRow:
    """One cohort: the share of runs of each policy that failed."""

    cohort: str
    num_tasks: int
    rates: tuple[tuple[str, Role, Estimate | None], ...]
    """Policy's name, role, share that failed with its 95% interval over tasks."""
    picture: Markup
    harmed: bool
    """The gate found the candidate harmed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailTable:
    """One evaluator, every cohort."""

    title: str
    rows: tuple[FailRow, ...]
    num_hidden: int
    """Cohorts that are not shown."""
    without: tuple[tuple[str, int, int], ...] = ()
    """(policy, runs without a score, runs): they count neither as failed nor as passed."""


def read_scores(path: Path, policy: EvaluatedPolicy) -> pl.DataFrame:
    """What `starpo-train score` wrote of a policy's dataset -> its rows.

    Raises:
        DataError: it cannot be read, has other columns, or is about other runs.
    """
    return read_table(path, _SCORE_COLUMNS, policy, command="score")


def read_table(
    path: Path, columns: Sequence[str], policy: EvaluatedPolicy, *, command: str
) -> pl.DataFrame:
    """A Parquet file about a policy's runs -> some of its columns."""
    again = f"run `starpo-train {command} {policy.dataset} -o {path}`"
    if not path.is_file():
        raise DataError(f"{path}: no such file; {again}")
    try:
        rows = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {again}") from None
    if missing := [column for column in columns if column not in rows.columns]:
        raise DataError(f"{path}: has no column {missing[0]!r}; {again}")
    known = set(policy.rows["trajectory_id"])
    if len(rows) and not known & set(rows["trajectory_id"]):
        raise DataError(f"{path}: is about none of the runs in {policy.dataset}; {again}")
    return rows.filter(pl.col("trajectory_id").is_in(list(known))).select(*columns)


def build_fail_tables(
    policies: Sequence[EvaluatedPolicy],
    scores: Mapping[str, pl.DataFrame],
    *,
    fail_below: float,
    harmed: frozenset[str],
) -> list[FailTable]:
    """The gate's success first, then each evaluator by name."""
    failed = {policy.name: _fail_by_reward(policy) for policy in policies}
    tables = [build_fail_table("No success, as the gate counts it", policies, failed, harmed)]
    names = sorted({name for rows in scores.values() for name in rows["evaluator"].unique()})
    for name in names:
        parts = {who: rows.filter(pl.col("evaluator") == name) for who, rows in scores.items()}
        shown = [policy for policy in policies if policy.name in parts]
        rates = {who: _fail_by_score(rows, fail_below) for who, rows in parts.items()}
        table = build_fail_table(name, shown, rates, frozenset())
        without = tuple(
            (who, rows["score"].null_count(), len(rows))
            for who, rows in parts.items()
            if rows["score"].null_count()
        )
        tables.append(replace(table, without=without))
    return [table for table in tables if table.rows or table.without]


def build_fail_table(
    title: str,
    policies: Sequence[EvaluatedPolicy],
    failed: Mapping[str, Mapping[str, tuple[int, Estimate | None]]],
    harmed: frozenset[str],
) -> FailTable:
    """Policy -> cohort -> (tasks, share failed): a row for each cohort, most tasks first if many."""
    sizes: dict[str, int] = {}
    for by_cohort in failed.values():
        for cohort, (num_tasks, rate) in by_cohort.items():
            if rate is not None:
                sizes[cohort] = max(num_tasks, sizes.get(cohort, 0))
    names = sorted(sizes, key=lambda cohort: (-sizes[cohort], cohort))[:MOST_COHORTS]
    rows = []
    for cohort in sorted(names):
        rates: tuple[tuple[str, Role, Estimate | None], ...] = tuple(
            (policy.name, policy.role, failed[policy.name].get(cohort, (0, None))[1])
            for policy in policies
        )
        said = ", ".join(f"{name} {rate.value:.0%}" for name, _, rate in rates if rate is not None)
        rows.append(
            FailRow(
                cohort="all tasks (none names a cohort)" if sizes.keys() == {NO_COHORT} else cohort,
                num_tasks=sizes[cohort],
                rates=rates,
                picture=draw_rates(
                    [(rate, role) for _, role, rate in rates], label=f"Failed on {cohort}: {said}"
                ),
                harmed=cohort in harmed,
            )
        )
    return FailTable(title=title, rows=tuple(rows), num_hidden=len(sizes) - len(names))


def find_harmed(verdict: dict[str, Any] | None) -> frozenset[str]:
    """Cohorts that the gate found harmed."""
    return frozenset(
        str(row["cohort"]) for row in (verdict or {}).get("cohorts", ()) if row.get("harmed")
    )


def _fail_by_reward(policy: EvaluatedPolicy) -> dict[str, tuple[int, Estimate | None]]:
    return {
        str(cohort): (len(tasks), _turn_round(estimate_success(tasks)))
        for (cohort,), tasks in policy.tasks.group_by("cohort")
    }


def _fail_by_score(rows: pl.DataFrame, fail_below: float) -> dict[str, tuple[int, Estimate | None]]:
    """Runs at one task are averaged first; a run without a task stands for itself."""
    tasks = (
        rows.drop_nulls("score")
        .with_columns(
            task=pl.coalesce("task_id", "trajectory_id"),
            cohort=pl.col("cohort").fill_null(NO_COHORT),
        )
        .group_by("cohort", "task")
        .agg(rate=(pl.col("score") < fail_below).mean())
        .sort("cohort", "task")
    )
    return {
        str(cohort): (
            len(part),
            stats.estimate_success_rate(part["rate"].to_numpy(), confidence=0.95),
        )
        for (cohort,), part in tasks.group_by("cohort")
    }


def _turn_round(success: Estimate | None) -> Estimate | None:
    """Success -> failure."""
    if success is None:
        return None
    return replace(success, value=1 - success.value, low=1 - success.high, high=1 - success.low)
