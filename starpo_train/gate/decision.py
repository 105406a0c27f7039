"""Two evaluated policies -> may the candidate ship?

PROMOTE needs every metric to be shown no worse than its margin (an intersection-union test, so no
multiplicity penalty); BLOCK needs one metric shown worse than its margin, or one cohort shown
harmed; anything else is INCONCLUSIVE, with the number of tasks that would decide. "The mean is at
least the baseline's" promotes a policy five points worse one time in five; this does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import polars as pl

from starpo_train import stats
from starpo_train.gate.comparing import (
    allot_look,
    compare_cohorts,
    compare_metrics,
    split_strata,
)
from starpo_train.gate.evidence import OpeEvidence, weigh_evidence
from starpo_train.gate.looks import Accumulated, Looks, accumulate_tasks
from starpo_train.gate.margins import GateConfig
from starpo_train.gate.pairing import (
    PairedTasks,
    find_faults,
    find_obstacles,
    list_notes,
    pair_tasks,
)
from starpo_train.gate.preflight import check_preflight
from starpo_train.gate.sequential import p_value_sequential
from starpo_train.gate.verdict import (
    METRIC_TITLES,
    STRATUM_TITLES,
    CohortResult,
    Comparison,
    GateDecision,
    Verdict,
    format_p_value,
)


def decide_release(
    candidate: pl.DataFrame,
    baseline: pl.DataFrame,
    *,
    config: GateConfig,
    evidence: Mapping[str, pl.DataFrame] | None = None,
    preflight: Mapping[str, pl.DataFrame] | None = None,
    ope: OpeEvidence | None = None,
    earlier: Looks | None = None,
) -> GateDecision:
    """Rows of the `trajectories` table of both policies -> decision. Pure.

    Tasks are paired by `task_id`; attempts at a task are averaged first. In- and
    out-of-distribution tasks are judged apart. `evidence` and `ope` stand beside the verdict and
    never change it. `preflight` has the runs of an "oracle" and of a "null" agent: tasks they find
    broken leave it INCONCLUSIVE. `earlier` are looks at the same evaluation before this one: they
    are counted in with sequential looks, and leave a verdict of a single look INCONCLUSIVE.

    Raises:
        DataError: a column is missing, no task is shared, or a task has two cohorts.
    """
    paired = pair_tasks(candidate, baseline, success_threshold=config.success_threshold)
    seen = _count_in(paired, earlier, config=config)
    checks = check_preflight(
        seen.paired.task_ids,
        preflight or {},
        candidate,
        success_threshold=config.success_threshold,
    )
    look = earlier.number if earlier else 1
    faults = find_faults(candidate, baseline, seen.paired, config=config)
    decision = decide_paired(
        seen.paired,
        config=config,
        look=look,
        obstacles=[
            *find_obstacles(candidate, baseline),
            *faults,
            *(fault for check in checks for fault in check.describe_faults()),
            *_object_to_look(earlier, config=config),
        ],
    )
    return replace(
        decision,
        evidence=tuple(
            weigh_evidence(candidate, evidence or {}, config=allot_look(config, look=look))
        ),
        notes=(*list_notes(candidate, baseline, seen.paired), *seen.notes),
        preflight=tuple(asdict(check) for check in checks),
        ope=None if ope is None else {**asdict(ope), "statement": ope.statement},
        looks=_describe_look(earlier, config=config),
        faults=tuple(faults),
    )


def decide_paired(
    paired: PairedTasks, *, config: GateConfig, look: int = 1, obstacles: Sequence[str] = ()
) -> GateDecision:
    """Per-task numbers of both policies -> decision, with nothing beside it. Pure.

    With sequential looks `paired` holds the tasks of all looks up to this one, number `look`.
    `obstacles` are reasons for which nothing can be decided.
    """
    strata = split_strata(paired, config=config)
    comparisons = [
        comparison
        for stratum, part in strata.items()
        for comparison in compare_metrics(part, stratum=stratum, config=config, look=look)
    ]
    if list(strata) == ["ood"]:  # nothing else decides, so these must
        comparisons = [_let_decide(comparison) for comparison in comparisons]
    cohorts = compare_cohorts(paired, config=allot_look(config, look=look))
    verdict, reasons = _judge_release(comparisons, cohorts, obstacles)
    needed = _largest_needed(comparisons) if verdict is Verdict.INCONCLUSIVE else None
    p_value, superiority = _test_superiority(next(iter(strata.values())), config=config)
    return GateDecision(
        verdict=verdict,
        sentence=_summarize(verdict, comparisons, cohorts, obstacles),
        reasons=tuple(reasons),
        tasks_needed=needed,
        comparisons=tuple(comparisons),
        improved=p_value is not None and p_value <= config.alpha,
        superiority_p_value=p_value,
        superiority=superiority,
        cohorts=tuple(cohorts),
        evidence=(),
        notes=(),
        accounting={
            "tasks_paired": len(paired.task_ids),
            "tasks_only_candidate": len(paired.only_candidate),
            "tasks_only_baseline": len(paired.only_baseline),
            "only_candidate": list(paired.only_candidate[:20]),
            "only_baseline": list(paired.only_baseline[:20]),
            "trajectories_without_task": paired.num_without_task,
            "trajectories_candidate": paired.candidate.num_trajectories,
            "trajectories_baseline": paired.baseline.num_trajectories,
            "rewards_missing_candidate": paired.candidate.num_missing_rewards,
            "rewards_missing_baseline": paired.baseline.num_missing_rewards,
            "tasks_by_stratum": {name: len(part.task_ids) for name, part in strata.items()},
        },
    )


def _count_in(paired: PairedTasks, earlier: Looks | None, *, config: GateConfig) -> Accumulated:
    """With sequential looks, the tasks of earlier ones too."""
    if earlier is None or config.looks == "once":
        return Accumulated(paired=paired)
    return accumulate_tasks(paired, earlier.tasks)


def _object_to_look(earlier: Looks | None, *, config: GateConfig) -> list[str]:
    """Bounds for a single look at what was looked at before hold no longer."""
    if earlier is None or not earlier.looks or config.looks == "sequential":
        return []
    return [
        f"This evaluation was looked at {len(earlier.looks)} times before, and the bounds hold for a "
        'single look: set gate.looks = "sequential", or evaluate tasks that nobody has seen.'
    ]


def _describe_look(earlier: Looks | None, *, config: GateConfig) -> dict[str, Any]:
    number = earlier.number if earlier else 1
    num_once = sum(look.get("mode") == "once" for look in earlier.looks) if earlier else 0
    told = {"mode": config.looks, "number": number, "earlier": number - 1}
    if config.looks == "sequential":
        told["alpha_others"] = allot_look(config, look=number).alpha
        if num_once:
            told["note"] = (
                f"{num_once} earlier looks had bounds for a single look; with them the error of all "
                f"looks together is at most {2 * config.alpha:g}, not {config.alpha:g}."
            )
    return told


def _judge_release(
    comparisons: Sequence[Comparison], cohorts: Sequence[CohortResult], obstacles: Sequence[str]
) -> tuple[Verdict, list[str]]:
    """The rule of the module docstring, with its reasons."""
    failed = [c.describe() for c in comparisons if c.outcome == "fail"]
    failed += [
        f"Cohort {c.cohort}: success fell by {-100 * (c.change or 0):.1f} points, more than the "
        f"cohort margin (Holm-adjusted {format_p_value(c.p_value_harm or 0.0)})."
        for c in cohorts
        if c.harmed
    ]
    unclear = [c.describe() for c in comparisons if c.decides and c.outcome == "unclear"]
    passed = [c.describe() for c in comparisons if c.decides and c.outcome == "pass"]
    if obstacles:
        return Verdict.INCONCLUSIVE, [*obstacles, *failed, *unclear, *passed]
    if failed:
        return Verdict.BLOCK, [*failed, *unclear, *passed]
    if unclear:
        return Verdict.INCONCLUSIVE, [*unclear, *passed]
    return Verdict.PROMOTE, passed


def _summarize(
    verdict: Verdict,
    comparisons: Sequence[Comparison],
    cohorts: Sequence[CohortResult],
    obstacles: Sequence[str],
) -> str:
    """The verdict in one sentence, two when it takes more tasks."""
    success = comparisons[0]
    if verdict is Verdict.PROMOTE:
        rates = [_format_rate(rate) for rate in (success.candidate, success.baseline)]
        return (
            f"The candidate may ship: success is {rates[0]} against {rates[1]}, and every metric "
            "is shown to stay within its margin."
        )
    if verdict is Verdict.BLOCK:
        return f"The candidate must not ship: {_list_faults(comparisons, cohorts)}."
    if obstacles:
        return f"The data does not decide. {obstacles[0]}"
    unclear = [c for c in comparisons if c.decides and c.outcome == "unclear"]
    if unmeasured := _list_unmeasured(comparisons):
        return (
            f"The data does not say whether the candidate stays within margin on "
            f"{_list_titles(unmeasured)}: {unmeasured[0].note}. More tasks would not decide; record "
            "it, or leave it out of gate.guardrails."
        )
    widest = max(unclear, key=lambda c: c.tasks_needed or 0)
    more = ""
    if widest.tasks_needed:
        where = f" {STRATUM_TITLES.get(widest.stratum, '')}".rstrip()
        more = f" About {widest.tasks_needed:,} paired tasks{where} would decide."
    return f"The data does not show that the candidate stays within margin on {_list_titles(unclear)}.{more}"


def _list_faults(comparisons: Sequence[Comparison], cohorts: Sequence[CohortResult]) -> str:
    """The first fault in full, the others by name."""
    failed = [c for c in comparisons if c.outcome == "fail"]
    harmed = [f"cohort {c.cohort}" for c in cohorts if c.harmed]
    if not failed:
        return f"success fell beyond the cohort margin in {', '.join(harmed)}"
    first = failed[0]
    others = [_list_titles(failed[1:]), *harmed]
    listed = ", ".join(other for other in others if other)
    return (
        f"{first.title.lower()} changed by {first.format_change(first.change)}, beyond the margin "
        f"of {first.format_change(first.signed_margin)}"
        + (f"; also beyond theirs: {listed}" if listed else "")
    )


def _list_titles(comparisons: Sequence[Comparison]) -> str:
    """Comparisons -> "success, tokens per trace; out of distribution: success"."""
    parts = []
    for stratum in dict.fromkeys(c.stratum for c in comparisons):
        metrics = [METRIC_TITLES[c.metric].lower() for c in comparisons if c.stratum == stratum]
        where = STRATUM_TITLES.get(stratum, stratum)
        parts.append(f"{', '.join(metrics)}{' ' * bool(where)}{where}")
    return "; ".join(parts)


def _largest_needed(comparisons: Sequence[Comparison]) -> int | None:
    if _list_unmeasured(comparisons):
        return None
    unclear = [c for c in comparisons if c.decides and c.outcome == "unclear"]
    return max((c.tasks_needed for c in unclear if c.tasks_needed), default=None)


def _list_unmeasured(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """What no number of tasks can decide, because the datasets do not tell it."""
    unclear = [c for c in comparisons if c.decides and c.outcome == "unclear" and c.note]
    return [c for c in unclear if c.change is None or c.tasks_needed is None]


def _format_rate(rate: float | None) -> str:
    return "unknown" if rate is None else f"{100 * rate:.1f}%"


def _let_decide(comparison: Comparison) -> Comparison:
    return replace(comparison, decides=comparison.margin is not None)


def _test_superiority(paired: PairedTasks, *, config: GateConfig) -> tuple[float | None, str]:
    """P-value of "success did not rise", missing rewards at their worst, and what it says."""
    cand = paired.candidate
    worst_T, _ = paired.bound_changes()
    if cand.num_missing_rewards == cand.num_trajectories:
        return None, "Improvement cannot be judged: the candidate has no rewards."
    if config.looks == "sequential":
        p_value = p_value_sequential(worst_T, 0.0)
    else:
        p_value = stats.p_value_no_gain(worst_T)
    if p_value <= config.alpha:
        return p_value, f"Success improved over the baseline (one-sided {format_p_value(p_value)})."
    return p_value, f"An improvement of success is not shown (one-sided {format_p_value(p_value)})."
