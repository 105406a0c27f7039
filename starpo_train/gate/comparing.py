"""Paired tasks -> comparisons of every metric, cohort and piece of evidence."""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
from scipy.stats import norm

from starpo_train import stats
from starpo_train.gate.margins import GateConfig
from starpo_train.gate.pairing import PairedTasks
from starpo_train.gate.sequential import (
    estimate_sequential,
    spend_alpha,
    tasks_needed_sequential,
)
from starpo_train.gate.verdict import CohortResult, Comparison, EvidenceResult, finite_or_none
from starpo_train.stats import Estimate, Floats

NO_COHORT = "(no cohort)"

_MOST_TASKS = 1_000_000  # nobody evaluates more; such a number would only look like advice


def split_strata(paired: PairedTasks, *, config: GateConfig) -> dict[str, PairedTasks]:
    """All tasks as `all`, or `id` and `ood` apart when any cohort is out of distribution."""
    is_ood = [
        cohort is not None and (cohort.lower().startswith("ood") or cohort in config.ood_cohorts)
        for cohort in paired.cohorts
    ]
    if not any(is_ood):
        return {"all": paired}
    strata = {
        "id": [row for row, ood in enumerate(is_ood) if not ood],
        "ood": [row for row, ood in enumerate(is_ood) if ood],
    }
    return {name: paired.select(rows) for name, rows in strata.items() if rows}


def compare_metrics(
    paired: PairedTasks, *, stratum: str, config: GateConfig, look: int = 1
) -> list[Comparison]:
    """One stratum -> success, tokens per trace, p95 and p99 of steps.

    With sequential looks success has bounds that hold at every look; of the others this is look
    number `look`, and has its share of alpha.
    """
    results = [_compare_success(paired, stratum=stratum, config=config)]
    config = allot_look(config, look=look)
    if "tokens_per_trace" in config.guardrails:
        results.append(_compare_tokens(paired, stratum=stratum, config=config))
    if "steps_p95" in config.guardrails:
        margin = config.margin_steps_p95
        results.append(_compare_steps(paired, 0.95, margin, stratum=stratum, config=config))
        results.append(_compare_steps(paired, 0.99, None, stratum=stratum, config=config))
    if len(paired.task_ids) >= config.min_tasks:
        return results
    return [_refuse_few_tasks(result, config=config) for result in results]


def allot_look(config: GateConfig, *, look: int) -> GateConfig:
    """What holds for everything but success: with sequential looks, this look's share of alpha."""
    if config.looks == "once":
        return config
    return replace(config, looks="once", alpha=spend_alpha(config.alpha, look))


def estimate_success(paired: PairedTasks, *, config: GateConfig) -> Estimate | None:
    """Change of success; missing rewards widen it to their worst and best case.

    None when no task has a reward on both sides.
    """
    change_T = paired.candidate.success_T - paired.baseline.success_T
    known_T = np.isfinite(change_T)
    if not known_T.any():
        return None
    value = float(change_T[known_T].mean())
    worst_T, best_T = paired.bound_changes()
    if config.looks == "sequential":
        return estimate_sequential(worst_T, best_T, value=value, alpha=config.alpha)
    worst = stats.estimate_success_change(worst_T, confidence=config.confidence)
    best = worst
    if not np.array_equal(worst_T, best_T):
        best = stats.estimate_success_change(best_T, confidence=config.confidence)
    return Estimate(
        value=value,
        low=worst.low,
        high=best.high,
        standard_error=max(worst.standard_error, best.standard_error),
        num_tasks=len(change_T),
    )


def compare_cohorts(paired: PairedTasks, *, config: GateConfig) -> list[CohortResult]:
    """Success by cohort, each tested for harm beyond the cohort margin; Holm over the tests.

    Missing rewards count in the candidate's favour here: harm must be shown.
    """
    results, p_values = [], []
    for cohort in sorted({cohort or NO_COHORT for cohort in paired.cohorts}):
        rows = [i for i, name in enumerate(paired.cohorts) if (name or NO_COHORT) == cohort]
        part = paired.select(rows)
        estimate = estimate_success(part, config=config)
        tested = len(rows) >= config.min_cohort_tasks and estimate is not None
        _, best_T = part.bound_changes()
        p_values.append(stats.p_value_below(best_T, -config.margin_cohort) if tested else None)
        results.append(
            CohortResult(
                cohort=cohort,
                num_tasks=len(rows),
                baseline=_mean_known(part.baseline.success_T),
                candidate=_mean_known(part.candidate.success_T),
                change=estimate.value if estimate else None,
                low=finite_or_none(estimate.low) if estimate else None,
                high=finite_or_none(estimate.high) if estimate else None,
                p_value_harm=None,
                harmed=False,
            )
        )
    adjusted = iter(stats.adjust_holm([p for p in p_values if p is not None]))
    tested_results = []
    for result, p_value in zip(results, p_values, strict=True):
        p_holm = next(adjusted) if p_value is not None else None
        harmed = p_holm is not None and p_holm <= config.alpha
        tested_results.append(replace(result, p_value_harm=p_holm, harmed=harmed))
    return tested_results


def compare_evidence(paired: PairedTasks, *, name: str, config: GateConfig) -> EvidenceResult:
    """Success of the candidate against another policy, two-sided at 1 - alpha."""
    estimate = estimate_success(paired, config=replace(config, alpha=config.alpha / 2))
    if estimate is None:
        statement = f"not comparable with {name}: no task has a reward on both sides"
    elif estimate.low > 0:
        statement = f"better than {name} by {100 * estimate.value:.1f} points"
    elif estimate.high < 0:
        statement = f"worse than {name} by {-100 * estimate.value:.1f} points"
    else:
        statement = f"not distinguishable from {name} ({100 * estimate.value:+.1f} points)"
    return EvidenceResult(
        name=name,
        num_tasks=len(paired.task_ids),
        candidate=_mean_known(paired.candidate.success_T),
        other=_mean_known(paired.baseline.success_T),
        change=estimate.value if estimate else None,
        low=finite_or_none(estimate.low) if estimate else None,
        high=finite_or_none(estimate.high) if estimate else None,
        statement=statement,
    )


def _compare_success(paired: PairedTasks, *, stratum: str, config: GateConfig) -> Comparison:
    estimate = estimate_success(paired, config=config)
    missing = paired.candidate.num_missing_rewards + paired.baseline.num_missing_rewards
    return _judge(
        estimate,
        Comparison(
            metric="success",
            stratum=stratum,
            relative=False,
            higher_is_better=True,
            baseline=_mean_known(paired.baseline.success_T),
            candidate=_mean_known(paired.candidate.success_T),
            change=None,
            low=None,
            high=None,
            margin=config.margin_success_ood if stratum == "ood" else config.margin_success,
            outcome="unclear",
            decides=stratum != "ood" or config.ood_decides == "both",
            num_tasks=len(paired.task_ids),
            tasks_needed=None,
            note=f"{missing} rewards are missing, counted at their worst and best"
            if estimate and missing
            else None
            if estimate
            else "no task has a reward on both sides",
        ),
        config=config,
    )


def _compare_tokens(paired: PairedTasks, *, stratum: str, config: GateConfig) -> Comparison:
    cand_T, base_T = paired.candidate.tokens_T, paired.baseline.tokens_T
    return _compare_relative(
        paired,
        np.isfinite(cand_T) & np.isfinite(base_T),
        lambda rows: stats.estimate_relative_change(
            cand_T[rows], base_T[rows], confidence=config.confidence
        ),
        lambda rows: (float(cand_T[rows].mean()), float(base_T[rows].mean())),
        Comparison(
            metric="tokens_per_trace",
            stratum=stratum,
            relative=True,
            higher_is_better=False,
            baseline=None,
            candidate=None,
            change=None,
            low=None,
            high=None,
            margin=config.margin_tokens,
            outcome="unclear",
            decides=stratum != "ood" or config.ood_decides == "both",
            num_tasks=len(paired.task_ids),
            tasks_needed=None,
        ),
        config=config,
    )


def _compare_steps(
    paired: PairedTasks,
    quantile: float,
    margin: float | None,
    *,
    stratum: str,
    config: GateConfig,
) -> Comparison:
    cand, base = paired.candidate.steps, paired.baseline.steps

    def pick(side: tuple[Floats, ...], rows: np.ndarray) -> list[Floats]:
        return [side[row] for row in rows]

    return _compare_relative(
        paired,
        np.array([len(c) > 0 and len(b) > 0 for c, b in zip(cand, base, strict=True)]),
        lambda rows: stats.estimate_quantile_change(
            pick(cand, rows),
            pick(base, rows),
            quantile=quantile,
            confidence=config.confidence,
            num_resamples=config.bootstrap_resamples,
            seed=config.seed,
        ),
        lambda rows: (
            _pooled_quantile(pick(cand, rows), quantile),
            _pooled_quantile(pick(base, rows), quantile),
        ),
        Comparison(
            metric=f"steps_p{round(100 * quantile)}",
            stratum=stratum,
            relative=True,
            higher_is_better=False,
            baseline=None,
            candidate=None,
            change=None,
            low=None,
            high=None,
            margin=margin,
            outcome="reported" if margin is None else "unclear",
            decides=margin is not None and (stratum != "ood" or config.ood_decides == "both"),
            num_tasks=len(paired.task_ids),
            tasks_needed=None,
        ),
        config=config,
    )


def _compare_relative(
    paired: PairedTasks,
    measured_T: np.ndarray,
    estimate: Callable[[np.ndarray], Estimate],
    levels: Callable[[np.ndarray], tuple[float, float]],
    empty: Comparison,
    *,
    config: GateConfig,
) -> Comparison:
    """A relative metric on the tasks that measured it; unclear when too many did not."""
    rows = np.flatnonzero(measured_T)
    num_unmeasured = len(paired.task_ids) - len(rows)
    if len(rows) == 0:
        return replace(empty, note="the datasets do not record it")
    candidate, baseline = levels(rows)
    empty = replace(empty, candidate=candidate, baseline=baseline, num_tasks=len(rows))
    if baseline <= 0:
        return replace(empty, note=f"the baseline's value is {baseline:g}")
    if num_unmeasured > config.max_unmeasured_fraction * len(paired.task_ids):
        note = f"{num_unmeasured} of {len(paired.task_ids)} tasks do not record it"
        judged = _judge(estimate(rows), empty, config=config)
        unclear = "reported" if empty.margin is None else "unclear"
        return replace(judged, outcome=unclear, tasks_needed=None, note=note)
    return _judge(estimate(rows), empty, config=config)


def _judge(estimate: Estimate | None, empty: Comparison, *, config: GateConfig) -> Comparison:
    """Estimate -> outcome against the margin, and the tasks that would settle it."""
    if estimate is None:
        return empty
    filled = replace(
        empty,
        change=finite_or_none(estimate.value),
        low=finite_or_none(estimate.low),
        high=finite_or_none(estimate.high),
    )
    if filled.margin is None:
        return filled
    # turned so that lower is worse and the margin is below zero
    sign = 1.0 if filled.higher_is_better else -1.0
    worst, best = sorted((sign * estimate.low, sign * estimate.high))
    if worst > -filled.margin:
        return replace(filled, outcome="pass")
    if best < -filled.margin:
        return replace(filled, outcome="fail")
    needed = _count_needed(estimate, sign * estimate.value, margin=filled.margin, config=config)
    return replace(filled, tasks_needed=needed)


def _count_needed(
    estimate: Estimate, change: float, *, margin: float, config: GateConfig
) -> int | None:
    """Tasks to decide if the true change is zero, or as seen where the bounds or the tasks exclude that.

    The spread is that of the per-task differences; when even that promises a decision that the
    bounds did not give, it is the spread that the bounds imply. None: out of reach.
    """
    implied = (estimate.high - estimate.low) / (2 * float(norm.ppf(1 - config.alpha)))
    is_sequential = config.looks == "sequential"
    as_seen = abs(change + margin)
    may_be_zero = estimate.low <= 0.0 <= estimate.high
    count = tasks_needed_sequential if is_sequential else stats.tasks_needed
    for error in (
        (estimate.standard_error,) if is_sequential else (estimate.standard_error, implied)
    ):
        for distance in (margin, as_seen) if may_be_zero else (as_seen,):
            needed = count(
                task_deviation=error * sqrt(estimate.num_tasks),
                distance=distance,
                alpha=config.alpha,
                power=config.power,
            )
            if needed is not None and needed > estimate.num_tasks:
                return max(needed, config.min_tasks) if needed <= _MOST_TASKS else None
    return None


def _refuse_few_tasks(result: Comparison, *, config: GateConfig) -> Comparison:
    if result.margin is None:
        return result
    note = f"{result.num_tasks} paired tasks are fewer than the minimum of {config.min_tasks}"
    needed = max(result.tasks_needed or 0, config.min_tasks)
    return replace(result, outcome="unclear", tasks_needed=needed, note=result.note or note)


def _mean_known(values_T: Floats) -> float | None:
    known_T = values_T[np.isfinite(values_T)]
    return float(known_T.mean()) if len(known_T) else None


def _pooled_quantile(clusters: list[Floats], quantile: float) -> float:
    return float(np.quantile(np.concatenate(clusters), quantile, method="inverted_cdf"))
