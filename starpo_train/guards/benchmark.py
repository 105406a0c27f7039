"""Runs -> do the tasks still tell policies apart, and what does success cost?"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from starpo_train.guards.finding import GuardFinding
from starpo_train.guards.freshness import order_policies
from starpo_train.guards.reading import Run

SATURATED: Final = 0.95
"""Share of the runs with the greatest reward from which a benchmark is solved."""
DOUBLED: Final = 2.0
FEWEST_RUNS: Final = 10
"""Runs on each side of a comparison of costs, and runs before a benchmark is called solved."""


def check_saturated_benchmark(runs: Sequence[Run]) -> GuardFinding | None:
    """Nearly every run has the greatest reward that there can be."""
    rewards = [run.trajectory.reward for run in runs if run.trajectory.reward is not None]
    if len(rewards) < FEWEST_RUNS:
        return None
    top = _find_top(runs, max(rewards))
    if top is None:
        return None
    share = sum(reward >= top for reward in rewards) / len(rewards)
    if share < SATURATED:
        return None
    return GuardFinding(
        name="saturated_benchmark",
        severity="warn",
        numbers={"num_rewarded": len(rewards), "share_at_top": round(share, 4), "top": top},
        explanation=(
            f"{share:.1%} of {len(rewards)} runs have the greatest reward ({top:g}): there is "
            "next to nothing to learn here, and no better policy could show"
        ),
        advice="record harder tasks: longer, or ones that the policy solves about half the time",
    )


def check_single_turn(runs: Sequence[Run]) -> GuardFinding | None:
    """No run has a second model call."""
    longest = max((len(run.trajectory.turns) for run in runs), default=0)
    if not runs or longest > 1:
        return None
    return GuardFinding(
        name="single_turn",
        severity="warn",
        numbers={"num_trajectories": len(runs), "max_turns": longest},
        explanation=(
            f"none of {len(runs)} runs has more than one model call: what trajectory training is "
            "good at, credit over turns, cannot show here"
        ),
        advice=(
            "record whole runs (one `trajectory()` around all calls of a task), and judge on "
            "multi-turn tasks such as tau-bench, SWE-bench Verified or GAIA"
        ),
    )


def check_token_cost_doubled(
    runs: Sequence[Run], *, policy_id: str | None = None, baseline_policy_id: str | None = None
) -> GuardFinding | None:
    """Tokens for each run twice those of the baseline policy, or of the failing runs.

    Compared on the tasks of both sides where they share some, each task weighing the same. Without
    names the baseline is the policy whose runs begin first, the other the one that begins last.
    """
    known = {run.trajectory.policy_id for run in runs}
    policies = order_policies(runs)
    baseline = baseline_policy_id or (policies[0] if policies else None)
    policy = policy_id if policy_id in known else (policies[-1] if policies else None)
    numbers: dict[str, Any] = {}
    found = []
    if baseline in known and None not in (policy, baseline) and policy != baseline:
        ratio = _compare_costs(
            runs,
            lambda run: run.trajectory.policy_id == policy,
            lambda run: run.trajectory.policy_id == baseline,
        )
        if ratio is not None and ratio >= DOUBLED:
            numbers |= {"policy": policy, "baseline": baseline, "ratio_to_baseline": ratio}
            found.append(f"runs of {policy} take {ratio:.3g} times the tokens of {baseline}'s")
    low, high = _find_range(runs)
    if low < high:
        middle = (low + high) / 2
        ratio = _compare_costs(
            runs,
            lambda run: run.trajectory.reward is not None and run.trajectory.reward > middle,
            lambda run: run.trajectory.reward is not None and run.trajectory.reward <= middle,
        )
        if ratio is not None and ratio >= DOUBLED:
            numbers["ratio_of_successful_to_failing"] = ratio
            found.append(f"successful runs take {ratio:.3g} times the tokens of failing ones")
    if not found:
        return None
    return GuardFinding(
        name="token_cost_doubled",
        severity="review",
        numbers=numbers,
        explanation="; ".join(found) + ": a gain in reward is paid for in tokens",
        advice=(
            "review quality against cost before deployment: the gate's margin_tokens, or tokens "
            "as a cost among the recipe's [rewards]"
        ),
    )


def _find_top(runs: Sequence[Run], highest: float) -> float | None:
    """Greatest possible outcome: as recorded, else the greatest seen; None: cannot be known."""
    recorded = [
        reward.max
        for run in runs
        for reward in run.rewards
        if reward.scope == "trajectory" and reward.max is not None
    ]
    if recorded and max(recorded) >= highest:
        return max(recorded)
    return highest if highest > 0 else None  # all failing looks the same as all solved


def _find_range(runs: Sequence[Run]) -> tuple[float, float]:
    rewards = [run.trajectory.reward for run in runs if run.trajectory.reward is not None]
    return min(rewards, default=0.0), max(rewards, default=0.0)


def _compare_costs(
    runs: Sequence[Run], is_first: Callable[[Run], bool], is_second: Callable[[Run], bool]
) -> float | None:
    """Mean tokens of the first over those of the second; None where either has too few runs."""
    tokens: tuple[dict[str, list[int]], ...] = (defaultdict(list), defaultdict(list))
    for run in runs:
        if run.num_tokens is not None:
            for side, is_of in enumerate((is_first, is_second)):
                if is_of(run):
                    tokens[side][run.task].append(run.num_tokens)
    shared = tokens[0].keys() & tokens[1].keys()
    sides = [{task: of[task] for task in shared} if shared else of for of in tokens]
    if any(sum(map(len, side.values())) < FEWEST_RUNS for side in sides):
        return None
    first, second = (float(np.mean([np.mean(found) for found in s.values()])) for s in sides)
    return round(first / second, 4) if second else None
