"""Evaluated policies -> success with intervals, cost and length, overall and by cohort."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from markupsafe import Markup

from starpo_train import stats
from starpo_train.dataset import scan_table
from starpo_train.gate.comparing import NO_COHORT
from starpo_train.gate.pairing import NEEDED_COLUMNS, summarize_tasks
from starpo_train.report import svg
from starpo_train.stats import Estimate

Role = Literal["baseline", "candidate", "evidence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """A policy that was evaluated."""

    name: str
    """As the page calls it."""
    dataset: Path
    """Folder of the evaluation's dataset."""
    role: Role
    """baseline | candidate | evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySummary:
    """One row of the policy table."""

    name: str
    role: Role
    policy_ids: tuple[str, ...]
    num_tasks: int
    num_trajectories: int
    num_missing_rewards: int
    success: Estimate | None
    """Task-clustered mean with a 95% interval; None without rewards."""
    success_ood: Estimate | None
    """The same on out-of-distribution tasks, which `success` then leaves out."""
    pass_k: float | None
    """Chance that `k` attempts all succeed; None when it cannot be estimated."""
    k: int
    tokens_per_trace: float | None
    steps_p95: float | None
    picture: Markup
    """The success interval, drawn."""
    tasks: pl.DataFrame
    """Per-task numbers, see `summarize_tasks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortRow:
    """Success of every policy on one cohort."""

    cohort: str
    num_tasks: int
    rates: tuple[tuple[str, Role, Estimate | None], ...]
    """Policy name, role, success."""
    picture: Markup
    harmed: bool
    """The gate found the candidate harmed here."""


def summarize_policy(
    policy: PolicyResult, *, success_threshold: float, ood_cohorts: Sequence[str]
) -> PolicySummary:
    """Evaluation dataset -> PolicySummary.

    Raises:
        DataError: the dataset is missing or unreadable.
    """
    rows = scan_table(policy.dataset, "trajectories").select(NEEDED_COLUMNS).collect()
    tasks = summarize_tasks(rows, success_threshold).with_columns(
        cohort=pl.col("cohorts").list.first().fill_null(NO_COHORT)
    )
    is_ood = tasks["cohort"].str.to_lowercase().str.starts_with("ood") | tasks["cohort"].is_in(
        list(ood_cohorts)
    )
    inside, outside = tasks.filter(~is_ood), tasks.filter(is_ood)
    if inside.is_empty():
        inside, outside = outside, inside
    success = estimate_success(inside)
    k = int(tasks["num_rewarded"].min() or 0)  # pyright: ignore[reportArgumentType]
    steps = rows["num_steps"].drop_nulls()
    return PolicySummary(
        name=policy.name,
        role=policy.role,
        policy_ids=tuple(sorted(map(str, rows["policy_id"].drop_nulls().unique()))),
        num_tasks=len(tasks),
        num_trajectories=len(rows),
        num_missing_rewards=len(rows) - int(rows["reward"].is_finite().sum()),
        success=success,
        success_ood=estimate_success(outside),
        pass_k=stats.pass_hat_k(
            tasks["num_successes"].to_list(), tasks["num_rewarded"].to_list(), k
        )
        if k > 1
        else None,
        k=k,
        tokens_per_trace=_as_number(tasks["tokens"].mean()),
        steps_p95=float(np.quantile(steps.to_numpy(), 0.95, method="inverted_cdf"))
        if len(steps)
        else None,
        picture=draw_success([(success, policy.role)], label=f"Success of {policy.name}"),
        tasks=tasks,
    )


def estimate_success(tasks: pl.DataFrame) -> Estimate | None:
    """Per-task numbers -> success over the tasks that have a reward."""
    known = tasks.filter(pl.col("num_rewarded") > 0)
    if known.is_empty():
        return None
    return stats.estimate_success_rate(
        (known["num_successes"] / known["num_rewarded"]).to_numpy(), confidence=0.95
    )


def draw_success(rates: Sequence[tuple[Estimate | None, Role]], *, label: str) -> Markup:
    """Success of several policies below each other."""
    rows = [
        (rate.low, rate.value, rate.high, role) if rate else (None, None, None, role)
        for rate, role in rates
    ]
    return svg.draw_rates(rows, label=label)


def compare_cohorts(
    summaries: Sequence[PolicySummary], *, harmed: frozenset[str]
) -> list[CohortRow]:
    """Policies -> one row per cohort; none when there is only one."""
    names = sorted({name for summary in summaries for name in summary.tasks["cohort"]})
    if len(names) < 2:
        return []
    rows = []
    for name in names:
        parts = [summary.tasks.filter(pl.col("cohort") == name) for summary in summaries]
        rates: tuple[tuple[str, Role, Estimate | None], ...] = tuple(
            (summary.name, summary.role, estimate_success(part))
            for summary, part in zip(summaries, parts, strict=True)
        )
        rows.append(
            CohortRow(
                cohort=name,
                num_tasks=max(len(part) for part in parts),
                rates=rates,
                picture=draw_success(
                    [(rate, role) for _, role, rate in rates], label=f"Success on {name}"
                ),
                harmed=name in harmed,
            )
        )
    return rows


def _as_number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
