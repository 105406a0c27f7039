"""Paired differences that are looked at again and again -> bounds that hold at every look.

A gambler starts with 1 and meets the tasks one by one. Against "the mean difference is at most m"
they keep a share 1 - c of their money and stake the rest on the task's difference d in [-1, 1]:

    wealth *= 1 - c + c (1 + d) / (1 + m)

If the mean is at most m, the expected factor is at most 1, so the chance that wealth ever reaches
1 / alpha is at most alpha (Ville 1939), whenever and however often one looks. The gamblers with every
c in (0, 1) play side by side, and their mean wealth counts (Cover's universal portfolio, Mathematical
Finance 1991): no c must be chosen, and the order of the tasks plays no part.

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS-B
2024, arXiv 2010.09686); Orabona and Jun, "Tight concentrations and confidence sequences from the
regret of universal portfolio" (arXiv 2110.14099). Suffix `_T`: one value per task.
"""

from math import ceil, exp, isfinite, log, sqrt

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import norm

from starpo_train.stats import Estimate, Floats

NUM_BETS = 64
_BETS = (np.arange(NUM_BETS) + 0.5) / NUM_BETS  # a finite mixture is as valid as the integral
_EDGE = 1 - 1e-9
_COST_OF_MIXING = 1.8
"""Log-wealth that not knowing the best c costs within some hundred tasks; only for planning."""


def log_wealth(change_T: npt.ArrayLike, mean: float) -> float:
    """Log of the wealth that was won against "the mean difference is at most `mean`".

    Evidence against it: exp of it is an e-value at every look. Falls as `mean` rises.

    Raises:
        ValueError: a difference outside [-1, 1] or not finite, or a mean outside (-1, 1).

    >>> round(log_wealth([1.0] * 8, 0.0), 3)  # log of (2^9 - 1) / 9, the mean of (1 + c)^8
    4.039
    """
    if not -1 < mean < 1:
        raise ValueError(f"mean {mean:g} is outside (-1, 1)")
    return _sum_wealth(*_count_values(change_T), mean)


def estimate_sequential(
    worst_T: npt.ArrayLike, best_T: npt.ArrayLike, *, value: float, alpha: float
) -> Estimate:
    """Bounds on the mean difference, each wrong at any look ever with chance at most alpha.

    `worst_T` and `best_T` differ where rewards are missing; `value` is the point estimate to carry.

    Raises:
        ValueError: see `log_wealth`.
    """
    worst = _count_values(worst_T)
    best = _count_values(-np.asarray(best_T, dtype=np.float64))
    num_tasks = int(worst[1].sum())
    deviation = max(_find_deviation(worst), _find_deviation(best))
    return Estimate(
        value=value,
        low=_find_bound(*worst, alpha=alpha),
        high=-_find_bound(*best, alpha=alpha),
        standard_error=deviation / sqrt(num_tasks),
        num_tasks=num_tasks,
    )


def p_value_sequential(change_T: npt.ArrayLike, mean: float) -> float:
    """1 / wealth: a p-value of "the mean is at most `mean`" that is valid at every look."""
    return exp(-max(0.0, log_wealth(change_T, mean)))


def tasks_needed_sequential(
    *, task_deviation: float, distance: float, alpha: float = 0.05, power: float = 0.80
) -> int | None:
    """About how many tasks decide with the given chance; most decisions come earlier.

    A gambler with the best c gains distance^2 / (2 sigma^2) a task on average, with deviation
    distance / sigma; they must reach log(1 / alpha) and the cost of mixing.

    >>> tasks_needed_sequential(task_deviation=0.31, distance=0.03)
    1753
    """
    if distance <= 0 or not isfinite(task_deviation):
        return None
    quantile = float(norm.ppf(power))
    root = quantile + sqrt(quantile**2 + 2 * (log(1 / alpha) + _COST_OF_MIXING))
    return max(2, ceil((root * task_deviation / distance) ** 2))


def spend_alpha(alpha: float, look: int) -> float:
    """Error that look 1, 2, ... may spend so that all looks together spend `alpha`.

    For metrics without bounds, on which nobody can bet: alpha / (k (k + 1)).

    >>> [spend_alpha(0.06, look) for look in (1, 2, 3)]
    [0.03, 0.01, 0.005]
    """
    if look < 1:
        raise ValueError(f"look is {look}: the first one is 1")
    return alpha / (look * (look + 1))


def _count_values(change_T: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Differences -> distinct ones and how often each occurs."""
    data_T = np.asarray(change_T, dtype=np.float64).reshape(-1)
    if not len(data_T) or not np.isfinite(data_T).all() or np.abs(data_T).max() > 1:
        raise ValueError("differences must be at least one, finite and in [-1, 1]")
    values, counts = np.unique(data_T, return_counts=True)
    return values, counts.astype(np.float64)


def _sum_wealth(values: Floats, counts: Floats, mean: float) -> float:
    factors = np.log1p(_BETS[:, None] * ((1 + values) / (1 + mean) - 1))
    return float(np.asarray(logsumexp(factors @ counts))) - log(NUM_BETS)


def _find_bound(values: Floats, counts: Floats, *, alpha: float) -> float:
    """Largest mean that is rejected, for it and every smaller one: the lower bound."""

    def excess(mean: float) -> float:
        return _sum_wealth(values, counts, mean) - log(1 / alpha)

    if excess(-_EDGE) <= 0:
        return -1.0
    return float(brentq(excess, -_EDGE, _EDGE, xtol=1e-9))  # pyright: ignore[reportArgumentType]


def _find_deviation(counted: tuple[Floats, Floats]) -> float:
    values, counts = counted
    num = counts.sum()
    if num < 2:
        return float("inf")
    mean = (values * counts).sum() / num
    return sqrt(((values - mean) ** 2 * counts).sum() / (num - 1))
