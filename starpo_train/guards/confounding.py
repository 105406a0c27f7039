"""Runs of several policies -> does the reward say who acted, before it says what was done?

Suffix: T tasks.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt
from typing import Final

import numpy as np
from scipy import stats

from starpo_train.guards.finding import GuardFinding
from starpo_train.guards.reading import Run

CONFOUNDED_P: Final = 0.01
FEWEST_TASKS: Final = 5
"""Tasks of a policy from which its mean is compared with another's."""
_ROUNDING: Final = 1e-12
"""Deviations below this share of the mean are rounding."""


def check_confounding_by_policy_version(runs: Sequence[Run]) -> GuardFinding | None:
    """Policies whose rewards differ more than attempts of one policy at one task do.

    The two policies with the most different means over tasks: a paired t test over the tasks that
    both played, where there are five, else Welch's over tasks, times the number of pairs.
    """
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        trajectory = run.trajectory
        if trajectory.reward is not None and trajectory.policy_id is not None:
            cells[trajectory.policy_id][run.task].append(trajectory.reward)
    means = {
        policy: {task: float(np.mean(rewards)) for task, rewards in tasks.items()}
        for policy, tasks in cells.items()
        if len(tasks) >= FEWEST_TASKS
    }
    if len(means) < 2:
        return None
    average = {policy: float(np.mean(list(tasks.values()))) for policy, tasks in means.items()}
    low, high = min(average, key=average.__getitem__), max(average, key=average.__getitem__)
    shared = sorted(means[low].keys() & means[high].keys())
    gap, p_value = _compare(means[low], means[high], shared)
    p_value = min(1.0, p_value * len(means) * (len(means) - 1) / 2)
    within = _pool_deviation([rewards for tasks in cells.values() for rewards in tasks.values()])
    is_larger = within is None or gap > within
    if p_value >= CONFOUNDED_P or not is_larger:
        return None
    return GuardFinding(
        name="confounding_by_policy_version",
        severity="warn",
        numbers={
            "low": low,
            "high": high,
            "gap": round(gap, 4),
            "deviation_within_task_and_policy": None if within is None else round(within, 4),
            "p_value": p_value,
            "num_shared_tasks": len(shared),
        },
        explanation=(
            f"{high} earns {gap:.3g} more than {low} (p {p_value:.1g}, {len(shared)} shared tasks), "
            + (
                f"while attempts of one policy at one task deviate by {within:.3g}"
                if within is not None
                else "and no policy tried a task twice"
            )
            + ": the reward says who acted before it says what was done"
        ),
        advice=(
            "train on one policy's runs, the others left out by policy_id in the recipe's [exclude], "
            "so that an attempt is compared with others of the same policy"
        ),
    )


def _compare(
    low_of: dict[str, float], high_of: dict[str, float], shared: list[str]
) -> tuple[float, float]:
    """Difference of means over tasks and its two-sided p; paired where both played enough tasks."""
    if len(shared) >= FEWEST_TASKS:
        change_T = np.array([high_of[task] - low_of[task] for task in shared])
        error = float(change_T.std(ddof=1)) / sqrt(len(change_T))
        return _test(float(change_T.mean()), error, len(change_T) - 1)
    sides = [np.array(list(side.values())) for side in (high_of, low_of)]
    parts = [float(side_T.var(ddof=1)) / len(side_T) for side_T in sides]
    error = sqrt(sum(parts))
    freedom = 1.0
    if error > 0:  # Welch (1947)
        shares = (part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
        freedom = error**4 / sum(shares)
    return _test(float(sides[0].mean() - sides[1].mean()), error, freedom)


def _test(gap: float, error: float, freedom: float) -> tuple[float, float]:
    if error <= _ROUNDING * abs(gap):
        return gap, 0.0 if gap else 1.0
    return gap, float(2 * stats.t.sf(abs(gap) / error, freedom))


def _pool_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Deviation within groups (ddof 1 each), pooled; None where no group has two values."""
    repeated = [np.array(group) for group in groups if len(group) > 1]
    if not repeated:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in repeated)
    return (squares / sum(len(group) - 1 for group in repeated)) ** 0.5
