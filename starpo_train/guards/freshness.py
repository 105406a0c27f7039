"""Runs -> how old are they, whose are they, and of which distribution?"""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from starpo_train.guards.finding import GuardFinding
from starpo_train.guards.reading import Run

OLD_DAYS: Final = 30.0
OLD_LAG: Final = 2
"""Policies between the one that acted and the current one."""
STALE_SHARE: Final = 0.2
"""Share of the runs that may be old before it is worth a word."""
_DAY_NS: Final = 86_400_000_000_000
_NO_CLOCK_NS: Final = 10_000 * _DAY_NS
"""Before May 1997: a source that has no times."""


def check_stale_rollouts(
    runs: Sequence[Run], *, policy_id: str | None = None, now_ns: int | None = None
) -> GuardFinding | None:
    """Runs that are old, of policies or environments that have been replaced since.

    `policy_id`: the policy that is trained; without it, the one whose runs begin last is taken.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    ages = [
        (now_ns - run.started_ns) / _DAY_NS
        for run in runs
        if run.started_ns is not None and run.started_ns > _NO_CLOCK_NS
    ]
    share_old = sum(age > OLD_DAYS for age in ages) / max(1, len(runs))
    policies = order_policies(runs)
    current = policy_id if policy_id is not None else (policies[-1] if policies else None)
    lags = _find_lags(runs, current)
    share_lagging = sum(lag >= OLD_LAG for lag in lags) / max(1, len(runs))
    share_gone = _find_replaced_environments(runs)
    numbers: dict[str, Any] = {}
    found = []
    if share_old > STALE_SHARE:
        numbers |= {
            "share_older_than_30_days": round(share_old, 4),
            "oldest_days": round(max(ages), 1),
            "newest_days": round(min(ages), 1),
        }
        found.append(f"{share_old:.0%} are older than {OLD_DAYS:.0f} days (up to {max(ages):.0f})")
    if share_lagging > STALE_SHARE:
        numbers |= {
            "share_of_replaced_policies": round(share_lagging, 4),
            "current_policy": current,
            "largest_lag": max(lags),
        }
        found.append(
            f"{share_lagging:.0%} are of policies {OLD_LAG} or more before {current or 'the current'}"
        )
    if share_gone > STALE_SHARE:
        numbers["share_of_replaced_environments"] = round(share_gone, 4)
        found.append(f"{share_gone:.0%} are of an earlier version of their environment")
    if not found:
        return None
    return GuardFinding(
        name="stale_rollouts",
        severity="warn",
        numbers={"num_trajectories": len(runs), **numbers},
        explanation=(
            f"of {len(runs)} runs {'; '.join(found)}: agents overfit environments that are no "
            "longer there, and ratios to an old policy leave the clip range"
        ),
        advice=(
            "record fresh runs of the policy that is trained, or leave old ones out with the "
            "recipe's [freshness]; watch the effective sample size and set algorithm.kl_ceiling"
        ),
    )


def check_id_ood_mixed(runs: Sequence[Run]) -> GuardFinding | None:
    """Runs that the recipe calls in distribution beside others that it calls out of it."""
    rewards_of: dict[str, list[float]] = defaultdict(list)
    counts = Counter(run.distribution for run in runs)
    for run in runs:
        if run.distribution in ("id", "ood") and run.trajectory.reward is not None:
            rewards_of[run.distribution].append(run.trajectory.reward)
    if not (counts["id"] and counts["ood"]):
        return None
    means = {name: round(float(np.mean(found)), 4) for name, found in rewards_of.items() if found}
    return GuardFinding(
        name="id_ood_mixed",
        severity="warn",
        numbers={
            "num_id": counts["id"],
            "num_ood": counts["ood"],
            "reward_mean_id": means.get("id"),
            "reward_mean_ood": means.get("ood"),
        },
        explanation=(
            f"{counts['id']} runs are in distribution and {counts['ood']} out of it (mean reward "
            f"{means.get('id')} and {means.get('ood')}): one number over both says nothing of "
            "either, as the reward was shaped for the first"
        ),
        advice=(
            "hold what is out of distribution out of training (the recipe's distribution.hold_out), "
            "and report the two apart"
        ),
    )


def order_policies(runs: Sequence[Run]) -> list[str]:
    """Policies by the time of their first run; those whose runs have no time are left out."""
    times = _find_times(runs)
    return sorted(times, key=lambda policy: (times[policy], policy))


def _find_times(runs: Sequence[Run]) -> dict[str, tuple[int, int]]:
    """Policy -> when its first and its last run began."""
    times: dict[str, tuple[int, int]] = {}
    for run in runs:
        policy, started = run.trajectory.policy_id, run.started_ns
        if policy is not None and started is not None and started > _NO_CLOCK_NS:
            first, last = times.get(policy, (started, started))
            times[policy] = (min(first, started), max(last, started))
    return times


def _find_lags(runs: Sequence[Run], current: str | None) -> list[int]:
    """Policies that have replaced each run's: as the recipe says, else by the clock.

    A policy has replaced another where all of its runs began later, so that policies side by side
    replace none. One that is not in the data is newer than all of it.
    """
    times = _find_times(runs)
    latest = times[current][0] if current in times else None
    lag_of = {}
    for policy, (_, last) in times.items():
        later = [first for first, _ in times.values() if first > last]
        if latest is not None:
            later = [first for first in later if first <= latest]
        lag_of[policy] = len(later) + (latest is None and current is not None)
    lags = []
    for run in runs:
        if run.policy_lag is not None:
            lags.append(run.policy_lag)
        else:
            lags.append(lag_of.get(run.trajectory.policy_id or "", 0))
    return lags


def _find_replaced_environments(runs: Sequence[Run]) -> float:
    """Share of the runs whose environment has a version that began later."""
    latest: dict[str, tuple[int, str]] = {}
    known = [run for run in runs if run.environment_name and run.environment_version]
    first: dict[tuple[str, str], int] = {}
    for run in known:
        key = (str(run.environment_name), str(run.environment_version))
        first[key] = min(first.get(key, run.started_ns or 0), run.started_ns or 0)
    for (name, version), started in first.items():
        latest[name] = max(latest.get(name, (started, version)), (started, version))
    gone = [latest[str(run.environment_name)][1] != run.environment_version for run in known]
    return sum(gone) / len(runs) if runs else 0.0
