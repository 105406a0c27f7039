"""Per-task numbers -> estimates, bounds and p-values. Pure numpy and scipy.

The unit is the task: attempts at one task are correlated, so they are averaged first and only
tasks count as independent. Suffix `_T` = one value per task, `_N` = one value per trajectory.

Sources: paired, clustered errors as in Miller, "Adding Error Bars to Evals" (arXiv 2411.00640);
Fieller (1954) for ratios of means; Tango (1998, Statistics in Medicine 17:891) for sparse paired
proportions, McNemar's exact test for one attempt per task; Holm (1979); the unbiased pass^k of tau-bench (arXiv 2406.12045).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, comb, inf, isfinite, sqrt

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Floats = npt.NDArray[np.float64]

SPARSE_TASKS = 20
"""With fewer tasks than this that differ at all, a t bound on success is too narrow."""

_CHUNK_CELLS = 4_000_000  # bootstrap weights held at once: 32 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with what is known about it."""

    value: float
    """The point estimate."""
    low: float
    """Lower bound; -inf when the data cannot bound it."""
    high: float
    """Upper bound; inf when the data cannot bound it."""
    standard_error: float
    """Standard error of `value`; inf with a single task."""
    num_tasks: int
    """Independent units behind the estimate."""


def estimate_mean(values_T: npt.ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Mean over tasks with a two-sided t interval, SE^2 = sum (x - mean)^2 / (T (T - 1)).

    A one-sided bound at level alpha is the end of the interval with confidence 1 - 2 alpha.
    One task: standard error and bounds are infinite. All values equal: the interval has no width,
    which is exact arithmetic but no proof; success differences go through
    `estimate_success_change`, which knows better.

    Raises:
        ValueError: no values, or a value that is not finite.

    >>> estimate_mean([0.0, 0.5, 1.0], confidence=0.95).value
    0.5
    """
    data_T = _as_finite(values_T)
    num_tasks = len(data_T)
    mean = float(data_T.mean())
    if num_tasks == 1:
        return Estimate(value=mean, low=-inf, high=inf, standard_error=inf, num_tasks=1)
    error = float(data_T.std(ddof=1)) / sqrt(num_tasks)
    half = float(stats.t.ppf(0.5 + confidence / 2, num_tasks - 1)) * error
    return Estimate(
        value=mean, low=mean - half, high=mean + half, standard_error=error, num_tasks=num_tasks
    )


def estimate_success_change(change_T: npt.ArrayLike, *, confidence: float = 0.90) -> Estimate:
    """Mean of paired per-task success differences (candidate - baseline, each in [-1, 1]).

    The t interval, widened where it is known to be too narrow. When every difference is -1, 0 or
    1, to Tango's score interval: with sixty tied tasks t would claim a difference of exactly zero,
    while a policy that loses 3% of tasks for good ties all sixty one time in six. When fewer than
    `SPARSE_TASKS` tasks differ, some by fractions, to the t interval with one whole gain and one
    whole loss added (as Agresti and Min 2005 do for proportions).

    Raises:
        ValueError: no values, or a value outside [-1, 1].
    """
    data_T = _as_finite(change_T)
    if np.abs(data_T).max() > 1:
        raise ValueError(
            f"success difference {np.abs(data_T).max():g} is outside [-1, 1]; pass success rates"
        )
    by_t = estimate_mean(data_T, confidence=confidence)
    num_tasks = len(data_T)
    if num_tasks == 1 or not (_is_whole(data_T) or _is_sparse(data_T)):
        return by_t
    quantile = float(stats.norm.ppf(0.5 + confidence / 2))
    if _is_whole(data_T):
        gains, losses = _count_wins(data_T)
        low = _invert_tango(gains, losses, num_tasks, quantile)
        high = -_invert_tango(losses, gains, num_tasks, quantile)
    else:
        padded = estimate_mean(np.append(data_T, (1.0, -1.0)), confidence=confidence)
        low, high = padded.low, padded.high
    return Estimate(
        value=by_t.value,
        low=min(by_t.low, low),
        high=max(by_t.high, high),
        # a zero standard error would promise a decision from any number of tasks
        standard_error=by_t.standard_error or (high - low) / (2 * quantile),
        num_tasks=num_tasks,
    )


def estimate_success_rate(rates_T: npt.ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Mean of per-task success rates in [0, 1] with an interval that stays in [0, 1].

    The t interval over tasks, widened to Wilson's (tasks as trials) when fewer than five
    tasks are anything but failed, or anything but solved: a hundred solved tasks do not prove
    that every task is solved.

    Raises:
        ValueError: no values, or a value outside [0, 1].
    """
    data_T = _as_finite(rates_T)
    if data_T.min() < 0 or data_T.max() > 1:
        raise ValueError(f"success rates reach {data_T.min():g} to {data_T.max():g}, not 0 to 1")
    by_t = estimate_mean(data_T, confidence=confidence)
    num_tasks = len(data_T)
    low, high = by_t.low, by_t.high
    if min(np.count_nonzero(data_T), np.count_nonzero(data_T != 1)) < 5:
        z2 = float(stats.norm.ppf(0.5 + confidence / 2)) ** 2
        middle = (by_t.value + z2 / (2 * num_tasks)) / (1 + z2 / num_tasks)
        spread = by_t.value * (1 - by_t.value) / num_tasks + z2 / (4 * num_tasks**2)
        half = sqrt(z2 * spread) / (1 + z2 / num_tasks)
        low, high = min(low, middle - half), max(high, middle + half)
    return Estimate(
        value=by_t.value,
        low=max(0.0, low),
        high=min(1.0, high),
        standard_error=by_t.standard_error,
        num_tasks=num_tasks,
    )


def p_value_below(change_T: npt.ArrayLike, threshold: float) -> float:
    """P-value of "the mean success difference is at least `threshold`"; small means it is below.

    The one-sided test whose bound `estimate_success_change` gives. One task: 1.
    """
    data_T = _as_finite(change_T)
    if len(data_T) == 1:
        return 1.0
    p_value = _p_value_t(data_T, threshold)
    if _is_whole(data_T):
        gains, losses = _count_wins(data_T)
        z = tango_z(losses, gains, len(data_T), -threshold)
        return max(p_value, float(stats.norm.sf(z)))
    if _is_sparse(data_T):
        return max(p_value, _p_value_t(np.append(data_T, (1.0, -1.0)), threshold))
    return p_value


def p_value_no_gain(change_T: npt.ArrayLike) -> float:
    """P-value of "the mean success difference is at most 0"; small means it is above.

    Exact McNemar (the binomial tail of gains among the tasks that differ) when every difference is
    -1, 0 or 1, as with one attempt at each task; else the test of `p_value_below`.

    >>> p_value_no_gain([1.0, 1.0, 1.0, 1.0, -1.0, 0.0])  # (1 + 5) / 2^5
    0.1875
    """
    data_T = _as_finite(change_T)
    if not _is_whole(data_T):
        return p_value_below(-data_T, 0.0)
    gains, losses = _count_wins(data_T)
    return float(stats.binom.sf(gains - 1, gains + losses, 0.5))


def estimate_relative_change(
    candidate_T: npt.ArrayLike, baseline_T: npt.ArrayLike, *, confidence: float = 0.90
) -> Estimate:
    """mean(candidate) / mean(baseline) - 1 over paired tasks, with Fieller's interval.

    Fieller's bound is the ratio r at which the paired t test of mean(candidate - r baseline) = 0
    turns, so a bound under the margin is exactly that test. When the baseline's own mean is not
    clearly above zero the interval is unbounded.

    Raises:
        ValueError: unequal lengths, no values, or a baseline mean that is not positive.
    """
    cand_T, base_T = _as_finite(candidate_T), _as_finite(baseline_T)
    if len(cand_T) != len(base_T):
        raise ValueError(
            f"{len(cand_T)} candidate tasks but {len(base_T)} baseline tasks: pair them"
        )
    base_mean = float(base_T.mean())
    if base_mean <= 0:
        raise ValueError(f"baseline mean is {base_mean:g}: a relative change needs a positive one")
    num_tasks = len(cand_T)
    ratio = float(cand_T.mean()) / base_mean
    if num_tasks == 1:
        return Estimate(value=ratio - 1, low=-inf, high=inf, standard_error=inf, num_tasks=1)
    (var_c, cov), (_, var_b) = np.cov(cand_T, base_T, ddof=1) / num_tasks
    error = sqrt(max(0.0, var_c - 2 * ratio * cov + ratio**2 * var_b)) / base_mean
    quantile = float(stats.t.ppf(0.5 + confidence / 2, num_tasks - 1))
    # (c - r b)^2 = t^2 (var_c - 2 r cov + r^2 var_b), a quadratic in r
    lead = base_mean**2 - quantile**2 * var_b
    if lead <= 0:
        return Estimate(
            value=ratio - 1, low=-inf, high=inf, standard_error=error, num_tasks=num_tasks
        )
    middle = ratio * base_mean**2 - quantile**2 * cov
    last = (ratio * base_mean) ** 2 - quantile**2 * var_c
    root = sqrt(max(0.0, middle**2 - lead * last))
    return Estimate(
        value=ratio - 1,
        low=float((middle - root) / lead - 1),
        high=float((middle + root) / lead - 1),
        standard_error=error,
        num_tasks=num_tasks,
    )


def estimate_quantile_change(
    candidate: Sequence[npt.ArrayLike],
    baseline: Sequence[npt.ArrayLike],
    *,
    quantile: float,
    confidence: float = 0.90,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """quantile(candidate) / quantile(baseline) - 1 by a paired cluster bootstrap over tasks.

    `candidate[t]` and `baseline[t]` hold the values of all attempts at task t. Each resample draws
    tasks with replacement, the same ones for both sides; bounds are percentiles of the resampled
    change. Quantiles are the inverted CDF, so a step count stays a step count.

    Raises:
        ValueError: unequal or zero numbers of tasks, a task without attempts, or a baseline
            quantile that is not positive.
    """
    num_tasks = len(candidate)
    if num_tasks != len(baseline) or num_tasks == 0:
        raise ValueError(
            f"{num_tasks} candidate tasks but {len(baseline)} baseline tasks: pair them"
        )
    sides = [_flatten_clusters(side) for side in (candidate, baseline)]
    ones = np.ones((1, num_tasks))
    point_c, point_b = (
        float(weighted_quantiles(values_N, tasks_N, ones, quantile)[0])
        for values_N, tasks_N in sides
    )
    if point_b <= 0:
        raise ValueError(
            f"baseline quantile is {point_b:g}: a relative change needs a positive one"
        )
    value = point_c / point_b - 1
    if num_tasks == 1:
        return Estimate(value=value, low=-inf, high=inf, standard_error=inf, num_tasks=1)
    rng = np.random.default_rng(seed)
    per_chunk = max(1, _CHUNK_CELLS // max(len(values_N) for values_N, _ in sides))
    changes = []
    for start in range(0, num_resamples, per_chunk):
        size = min(per_chunk, num_resamples - start)
        counts_BT = rng.multinomial(num_tasks, np.full(num_tasks, 1 / num_tasks), size=size)
        top, bottom = (
            weighted_quantiles(values_N, tasks_N, counts_BT, quantile)
            for values_N, tasks_N in sides
        )
        changes.append(np.divide(top, bottom, out=np.full(size, inf), where=bottom > 0) - 1)
    changes_B = np.concatenate(changes)
    low, high = np.quantile(
        changes_B, [0.5 - confidence / 2, 0.5 + confidence / 2], method="inverted_cdf"
    )
    finite_B = changes_B[np.isfinite(changes_B)]
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        standard_error=float(finite_B.std(ddof=1)) if len(finite_B) > 1 else inf,
        num_tasks=num_tasks,
    )


def weighted_quantiles(
    values_N: Floats, tasks_N: npt.NDArray[np.intp], counts_BT: npt.NDArray, quantile: float
) -> Floats:
    """Inverted-CDF quantile of `values_N` for each row of task multiplicities.

    `tasks_N[i]` is the task of value i; `counts_BT[b, t]` how often task t is in resample b.
    Returns shape (B,): the smallest value whose cumulative weight reaches quantile x total.
    """
    order = np.argsort(values_N, kind="stable")
    cumulative_BN = np.cumsum(counts_BT[:, tasks_N[order]], axis=1, dtype=np.float64)
    targets_B = quantile * cumulative_BN[:, -1:]
    # 0.95 x 20 is 19.000000000000004 in floats: without slack the rank would be one too high
    index_B = (cumulative_BN >= targets_B * (1 - 1e-12)).argmax(axis=1)
    return values_N[order][index_B]


def tasks_needed(
    *, task_deviation: float, distance: float, alpha: float = 0.05, power: float = 0.80
) -> int | None:
    """Tasks for a one-sided decision: n = ((z_{1-alpha} + z_power) sigma / distance)^2, rounded up.

    `task_deviation` is the standard deviation of the per-task difference and `distance` how far
    the true difference is from the margin. None when no number would do (distance 0, or a
    deviation that is not finite).

    >>> tasks_needed(task_deviation=0.31, distance=0.03)
    661
    """
    if distance <= 0 or not isfinite(task_deviation):
        return None
    quantiles = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))
    return max(2, ceil((quantiles * task_deviation / distance) ** 2))


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    >>> [round(p, 3) for p in adjust_holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def pass_hat_k(num_successes_T: Sequence[int], num_trials_T: Sequence[int], k: int) -> float | None:
    """Chance that k fresh attempts at a task all succeed: mean over tasks of C(c,k) / C(n,k).

    Unbiased, unlike mean(success rate ^ k). None when any task has fewer than k trials, or there
    are no tasks: dropping such tasks would bias the mean.

    >>> pass_hat_k([4, 2], [4, 4], 2)
    0.5833333333333334
    """
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1")
    if not num_trials_T or min(num_trials_T) < k:
        return None
    ratios = [comb(c, k) / comb(n, k) for c, n in zip(num_successes_T, num_trials_T, strict=True)]
    return sum(ratios) / len(ratios)


def tango_z(gains: int, losses: int, num_tasks: int, change: float) -> float:
    """Tango's score statistic for "P(gain) - P(loss) = change"; large means truly above.

    A gain is a task that only the candidate solved, a loss one that only the baseline solved.
    """
    b, c, n = gains, losses, num_tasks
    first = 2 * n
    second = -b - c + (2 * n - b + c) * change
    third = -c * change * (1 - change)
    # P(loss) under the constraint, by maximum likelihood
    loss_rate = (sqrt(max(0.0, second**2 - 4 * first * third)) - second) / (2 * first)
    variance = n * (2 * loss_rate + change * (1 - change))
    numerator = b - c - n * change
    if variance <= 0:
        return 0.0 if numerator == 0 else float(np.copysign(inf, numerator))
    return numerator / sqrt(variance)


def _invert_tango(gains: int, losses: int, num_tasks: int, quantile: float) -> float:
    """Lower bound: the change at which Tango's statistic equals the normal quantile."""
    edge = 1 - 1e-9
    point = (gains - losses) / num_tasks

    def excess(change: float) -> float:
        return tango_z(gains, losses, num_tasks, change) - quantile

    if point <= -edge or excess(-edge) <= 0:
        return -1.0
    return float(optimize.brentq(excess, -edge, min(point, edge)))  # pyright: ignore[reportArgumentType]


def _p_value_t(change_T: Floats, threshold: float) -> float:
    error = float(change_T.std(ddof=1)) / sqrt(len(change_T))
    excess = float(change_T.mean()) - threshold
    if error == 0:
        return 1.0 if excess >= 0 else 0.0
    return float(stats.t.cdf(excess / error, len(change_T) - 1))


def _is_whole(change_T: Floats) -> bool:
    return bool(np.isin(change_T, (-1.0, 0.0, 1.0)).all())


def _is_sparse(change_T: Floats) -> bool:
    return int(np.count_nonzero(change_T)) < SPARSE_TASKS


def _count_wins(change_T: Floats) -> tuple[int, int]:
    """Tasks that only the candidate solved, and tasks that only the baseline did."""
    return int(np.count_nonzero(change_T > 0)), int(np.count_nonzero(change_T < 0))


def _flatten_clusters(clusters: Sequence[npt.ArrayLike]) -> tuple[Floats, npt.NDArray[np.intp]]:
    arrays = [_as_finite(cluster) for cluster in clusters]
    tasks_N = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    return np.concatenate(arrays), tasks_N


def _as_finite(values: npt.ArrayLike) -> Floats:
    data = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(data) == 0:
        raise ValueError("no values: at least one task is needed")
    if not np.isfinite(data).all():
        raise ValueError(
            f"value {data[~np.isfinite(data)][0]} is not finite; leave it out or fix it"
        )
    return data
