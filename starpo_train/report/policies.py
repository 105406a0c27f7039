"""Evaluated policies -> success with intervals, cost and length, in and out of distribution apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from markupsafe import Markup

from starpo_train import stats
from starpo_train.dataset import scan_table
from starpo_train.gate.comparing import NO_COHORT
from starpo_train.gate.pairing import NEEDED_COLUMNS, summarize_tasks
from starpo_train.report import svg
from starpo_train.report.inputs import PolicyResult, Role
from starpo_train.stats import Estimate

STRATA = {"all": "All tasks", "id": "In distribution", "ood": "Out of distribution"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPolicy:
    """A policy with what its runs did, read once."""

    name: str
    role: Role
    dataset: Path
    rows: pl.DataFrame
    """Trajectories, a row each."""
    tasks: pl.DataFrame
    """Per-task numbers, see `summarize_tasks`, with `cohort` and `is_ood`."""

    @property
    def policy_ids(self) -> tuple[str, ...]:
        """As recorded."""
        return tuple(sorted(map(str, self.rows["policy_id"].drop_nulls().unique())))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """One policy in one stratum."""

    name: str
    role: Role
    policy_ids: tuple[str, ...]
    num_tasks: int
    num_trajectories: int
    num_missing_rewards: int
    success: Estimate | None
    """Task-clustered mean with a 95% interval; None without rewards."""
    pass_k: float | None
    """Chance that `k` attempts all succeed; None when it cannot be estimated."""
    k: int
    tokens_per_trace: float | None
    steps_p95: float | None
    picture: Markup
    """The success interval, drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumTable:
    """Every policy on the tasks of one stratum."""

    stratum: str
    """all | id | ood; the last two are never pooled."""
    title: str
    rows: tuple[PolicyRow, ...]

    def find_role(self, role: Role) -> PolicyRow | None:
        """The first policy of a role."""
        return next((row for row in self.rows if row.role == role), None)


def read_policy(
    policy: PolicyResult, *, success_threshold: float, ood_cohorts: Sequence[str]
) -> EvaluatedPolicy:
    """Evaluation dataset -> EvaluatedPolicy.

    Raises:
        DataError: the dataset is missing or unreadable.
    """
    columns = dict.fromkeys((*NEEDED_COLUMNS, "trajectory_id", "attempt"))
    rows = scan_table(policy.dataset, "trajectories").select(*columns).collect()
    cohort = pl.col("cohorts").list.first().fill_null(NO_COHORT)
    is_ood = cohort.str.to_lowercase().str.starts_with("ood") | cohort.is_in(list(ood_cohorts))
    return EvaluatedPolicy(
        name=policy.name,
        role=policy.role,
        dataset=policy.dataset,
        rows=rows,
        tasks=summarize_tasks(rows, success_threshold).with_columns(cohort=cohort, is_ood=is_ood),
    )


def build_strata(policies: Sequence[EvaluatedPolicy]) -> list[StratumTable]:
    """One table of all tasks, or one in and one out of distribution."""
    if not policies:
        return []
    has_ood = any(policy.tasks["is_ood"].any() for policy in policies)
    parts = {"id": ~pl.col("is_ood"), "ood": pl.col("is_ood")} if has_ood else {"all": pl.lit(True)}
    tables = []
    for stratum, rule in parts.items():
        rows = [summarize_policy(policy, policy.tasks.filter(rule)) for policy in policies]
        if any(row.num_tasks for row in rows):
            tables.append(StratumTable(stratum=stratum, title=STRATA[stratum], rows=tuple(rows)))
    return tables


def summarize_policy(policy: EvaluatedPolicy, tasks: pl.DataFrame) -> PolicyRow:
    """A policy's numbers on some of its tasks."""
    success = estimate_success(tasks)
    k = int(tasks["num_rewarded"].min() or 0)  # pyright: ignore[reportArgumentType]
    num_runs = int(tasks["num_trajectories"].sum())
    return PolicyRow(
        name=policy.name,
        role=policy.role,
        policy_ids=policy.policy_ids,
        num_tasks=len(tasks),
        num_trajectories=num_runs,
        num_missing_rewards=num_runs - int(tasks["num_rewarded"].sum()),
        success=success,
        pass_k=stats.pass_hat_k(
            tasks["num_successes"].to_list(), tasks["num_rewarded"].to_list(), k
        )
        if k > 1
        else None,
        k=k,
        tokens_per_trace=_as_number(tasks["tokens"].mean()),
        steps_p95=find_quantile(list_steps(tasks), 0.95),
        picture=draw_rates([(success, policy.role)], label=f"Success of {policy.name}"),
    )


def list_steps(tasks: pl.DataFrame) -> list[int]:
    """Steps of every attempt at these tasks that recorded them."""
    return [step for steps in tasks["steps"] for step in steps]


def find_quantile(values: Sequence[float], level: float) -> float | None:
    """The smallest value that at least this share does not exceed, as the gate has it."""
    return float(np.quantile(values, level, method="inverted_cdf")) if len(values) else None


def estimate_success(tasks: pl.DataFrame) -> Estimate | None:
    """Per-task numbers -> success over the tasks that have a reward."""
    known = tasks.filter(pl.col("num_rewarded") > 0)
    if known.is_empty():
        return None
    return stats.estimate_success_rate(
        (known["num_successes"] / known["num_rewarded"]).to_numpy(), confidence=0.95
    )


def draw_rates(rates: Sequence[tuple[Estimate | None, Role]], *, label: str) -> Markup:
    """A rate of several policies, below each other."""
    rows = [
        (rate.low, rate.value, rate.high, role) if rate else (None, None, None, role)
        for rate, role in rates
    ]
    return svg.draw_rates(rows, label=label)


def _as_number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
