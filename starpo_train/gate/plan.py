"""A pilot's runs -> how many tasks a release needs, and what those at hand can decide.

The spread that matters is sigma_d, the standard deviation over tasks of the difference between the
policies' success rates. It has two parts: luck of the attempts, which more attempts average out,
and true differences between tasks, which only more tasks do:

    sigma_d(K)^2 = between^2 + (within_candidate^2 + within_baseline^2) / K

With the baseline alone its luck stands for both, and `between` is taken as 0: a lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import polars as pl
from scipy.stats import norm, t

from starpo_train.errors import DataError
from starpo_train.gate.comparing import split_strata
from starpo_train.gate.margins import GateConfig
from starpo_train.gate.pairing import pair_tasks, summarize_tasks
from starpo_train.gate.sequential import tasks_needed_sequential
from starpo_train.stats import Floats, tasks_needed

MARGINS = (0.01, 0.02, 0.03, 0.05, 0.10)
ATTEMPTS = (1, 2, 4, 8)
_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What a pilot says about the spread, in one stratum."""

    stratum: str
    """all | id | ood."""
    num_tasks: int
    """Tasks with a reward (on both sides where there are two)."""
    attempts: float
    """Rewarded attempts per task and policy, harmonic mean."""
    sigma_d: float
    """Deviation over tasks of the difference, with the pilot's attempts."""
    sigma_d_high: float
    """Its one-sided 95% bound by resampling tasks."""
    within: float | None
    """Deviation of one attempt's luck, both policies' variances added; None: one attempt a task."""
    between: float | None
    """Deviation of the true differences; None: cannot be told from luck, or baseline alone."""

    def find_sigma(self, attempts: int) -> float | None:
        """sigma_d with another number of attempts; None when the pilot cannot tell."""
        if self.within is None:
            return self.sigma_d if attempts == self.attempts else None
        return sqrt((self.between or 0.0) ** 2 + self.within**2 / attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """What one margin costs."""

    margin: float
    """Largest acceptable drop."""
    attempts: int
    """Per task and policy."""
    sigma_d: float
    """With these attempts."""
    tasks: int | None
    """For a single look."""
    tasks_sequential: int | None
    """At most about so many, looking as often as one likes."""

    @property
    def runs(self) -> int | None:
        """Runs of both policies together, for a single look."""
        return None if self.tasks is None else 2 * self.attempts * self.tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What the tasks at hand can decide, with the pilot's attempts."""

    num_tasks: int
    margin: float
    promote_at_zero: float
    """Chance of PROMOTE on success when the policies are equal."""
    promote_at_margin: float
    """Chance of PROMOTE when the candidate is exactly at the margin: alpha."""
    smallest_margin: float
    """Smallest margin that equal policies pass with the power asked for."""
    smallest_gain: float
    """Smallest gain that is shown as improvement with that power."""
    smallest_loss: float
    """Smallest loss that is blocked with that power."""
    is_too_few: bool
    """Fewer than `min_tasks`: nothing is decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumPlan:
    """The plan for one stratum; each needs its own tasks."""

    pilot: Pilot
    rows: tuple[PlanRow, ...]
    reach: Reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large an evaluation must be."""

    is_from_both: bool
    """Both policies ran; else the baseline alone."""
    alpha: float
    power: float
    true_change: float
    """Difference of the policies that the tasks are for."""
    strata: tuple[StratumPlan, ...]


def plan_release(
    baseline: pl.DataFrame,
    candidate: pl.DataFrame | None = None,
    *,
    config: GateConfig,
    true_change: float = 0.0,
    margins: Sequence[float] = MARGINS,
) -> Plan:
    """Rows of the `trajectories` table of a pilot -> plan. Pure.

    Raises:
        DataError: no rewards, too few tasks, or the baseline alone with one attempt a task.
    """
    strata = _find_spreads(baseline, candidate, config=config)
    plans = []
    for stratum, spreads in strata.items():
        pilot = _describe_pilot(stratum, spreads, config=config)
        own = config.margin_success_ood if stratum == "ood" else config.margin_success
        rows = [
            row
            for margin in sorted({*margins, own})
            for attempts in _list_attempts(pilot)
            if (row := _plan_row(pilot, margin, attempts, true_change, config=config))
        ]
        plans.append(
            StratumPlan(pilot=pilot, rows=tuple(rows), reach=_find_reach(pilot, own, config=config))
        )
    return Plan(
        is_from_both=candidate is not None,
        alpha=config.alpha,
        power=config.power,
        true_change=true_change,
        strata=tuple(plans),
    )


def chance_of_promotion(
    *, sigma_d: float, num_tasks: int, margin: float, change: float, alpha: float
) -> float:
    """Chance that the lower bound on success lies above the margin (t bound, normal mean).

    >>> round(chance_of_promotion(sigma_d=.31, num_tasks=100, margin=.03, change=0, alpha=.05), 2)
    0.24
    """
    distance = (change + margin) * sqrt(num_tasks) / sigma_d if sigma_d else np.inf
    return float(norm.cdf(distance - t.ppf(1 - alpha, num_tasks - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spreads:
    """Per task: the difference if both ran, variance of one attempt's luck, attempts."""

    change_T: Floats | None
    luck_T: Floats
    """Sum over the policies of the attempts' unbiased variance; nan with one attempt."""
    luck_of_mean_T: Floats
    """The same, of the means over attempts."""
    attempts: float


def _find_spreads(
    baseline: pl.DataFrame, candidate: pl.DataFrame | None, *, config: GateConfig
) -> dict[str, _Spreads]:
    threshold = config.success_threshold
    # alone, the baseline is paired with itself: two equal policies with its luck
    paired = pair_tasks(
        baseline if candidate is None else candidate, baseline, success_threshold=threshold
    )
    if candidate is None and summarize_tasks(baseline, threshold)["num_rewarded"].max() == 1:
        raise DataError(
            "the baseline has one attempt at each task, so its luck cannot be told; give attempts "
            "> 1, or --candidate too"
        )
    found = {}
    for stratum, part in split_strata(paired, config=config).items():
        cand, base = part.candidate, part.baseline
        keep_T = (cand.rewarded_T > 0) & (base.rewarded_T > 0)
        if keep_T.sum() < 2:
            raise DataError(f"the pilot has {keep_T.sum()} tasks with rewards; give at least two")
        with np.errstate(divide="ignore", invalid="ignore"):
            # unbiased: p (1 - p) n / (n - 1)
            luck = [
                np.where(
                    side.rewarded_T > 1,
                    side.success_T * (1 - side.success_T) * side.rewarded_T / (side.rewarded_T - 1),
                    np.nan,
                )[keep_T]
                for side in (cand, base)
            ]
        counts = [side.rewarded_T[keep_T] for side in (cand, base)]
        found[stratum] = _Spreads(
            change_T=None if candidate is None else (cand.success_T - base.success_T)[keep_T],
            luck_T=luck[0] + luck[1],
            luck_of_mean_T=luck[0] / counts[0] + luck[1] / counts[1],
            attempts=float(2 / np.mean(1 / counts[0] + 1 / counts[1])),
        )
    return found


def _describe_pilot(stratum: str, spreads: _Spreads, *, config: GateConfig) -> Pilot:
    num_tasks = len(spreads.luck_T)
    rng = np.random.default_rng(config.seed)
    has_luck = bool(np.isfinite(spreads.luck_T).any())
    within = sqrt(float(np.nanmean(spreads.luck_T))) if has_luck else None
    between = None
    if spreads.change_T is None:
        if within is None:
            raise DataError(f"no task of stratum {stratum} has two rewarded attempts")
        known_T = spreads.luck_of_mean_T[np.isfinite(spreads.luck_of_mean_T)]
        sigma_d = sqrt(float(known_T.mean()))
        draws_BT = rng.choice(known_T, (_RESAMPLES, len(known_T)))
        sigmas_B = np.sqrt(draws_BT.mean(axis=1))
    else:
        sigma_d = float(spreads.change_T.std(ddof=1))
        draws_BT = rng.choice(spreads.change_T, (_RESAMPLES, num_tasks))
        sigmas_B = draws_BT.std(axis=1, ddof=1)
        if has_luck:
            between = sqrt(max(0.0, sigma_d**2 - float(np.nanmean(spreads.luck_of_mean_T))))
    return Pilot(
        stratum=stratum,
        num_tasks=num_tasks,
        attempts=spreads.attempts,
        sigma_d=sigma_d,
        sigma_d_high=float(np.quantile(sigmas_B, 0.95)),
        within=within,
        between=between,
    )


def _list_attempts(pilot: Pilot) -> list[int]:
    own = round(pilot.attempts)
    return [own] if pilot.within is None else sorted({*ATTEMPTS, own})


def _plan_row(
    pilot: Pilot, margin: float, attempts: int, true_change: float, *, config: GateConfig
) -> PlanRow | None:
    sigma_d = pilot.find_sigma(attempts)
    if sigma_d is None:
        return None
    counted = [
        count(
            task_deviation=sigma_d,
            distance=margin + true_change,
            alpha=config.alpha,
            power=config.power,
        )
        for count in (tasks_needed, tasks_needed_sequential)
    ]
    tasks, tasks_sequential = (n if n is None else max(n, config.min_tasks) for n in counted)
    return PlanRow(
        margin=margin,
        attempts=attempts,
        sigma_d=sigma_d,
        tasks=tasks,
        tasks_sequential=tasks_sequential,
    )


def _find_reach(pilot: Pilot, margin: float, *, config: GateConfig) -> Reach:
    num_tasks, sigma_d = pilot.num_tasks, pilot.sigma_d
    quantiles = float(t.ppf(1 - config.alpha, num_tasks - 1) + norm.ppf(config.power))
    smallest = quantiles * sigma_d / sqrt(num_tasks)
    return Reach(
        num_tasks=num_tasks,
        margin=margin,
        promote_at_zero=chance_of_promotion(
            sigma_d=sigma_d, num_tasks=num_tasks, margin=margin, change=0.0, alpha=config.alpha
        ),
        promote_at_margin=config.alpha,
        smallest_margin=smallest,
        smallest_gain=smallest,
        smallest_loss=margin + smallest,
        is_too_few=num_tasks < config.min_tasks,
    )
