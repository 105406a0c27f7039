"""Runs -> is there a reward to learn from, and can it be trusted to mean something?"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np

from starpo_train.guards.finding import GuardFinding
from starpo_train.guards.reading import Reward, Run

FEW_PROCESS_REWARDS: Final = 0.1
"""Share of runs of several turns with a reward along the way, under which the end decides alone."""
MANY_VALUES: Final = 5
"""Distinct outcome values from which a judge's scale is taken to be a matter of degree."""
HIGH_DISAGREEMENT: Final = 0.2
"""Deviation of outcomes within a task, relative to their range over all tasks."""


def check_terminal_reward_only(runs: Sequence[Run]) -> GuardFinding | None:
    """Runs of several turns whose turns have no reward or shaping of their own."""
    several = [r.trajectory for r in runs if len(r.trajectory.turns) > 1]
    several = [t for t in several if t.reward is not None]
    num_with = sum(
        any(turn.reward is not None or turn.shaping is not None for turn in t.turns)
        for t in several
    )
    if not several or num_with >= FEW_PROCESS_REWARDS * len(several):
        return None
    mean_turns = float(np.mean([len(t.turns) for t in several]))
    return GuardFinding(
        name="terminal_reward_only",
        severity="warn",
        numbers={
            "num_multi_turn": len(several),
            "num_with_process_rewards": num_with,
            "mean_turns": round(mean_turns, 2),
        },
        explanation=(
            f"{num_with} of {len(several)} rewarded runs of several turns ({mean_turns:.1f} on "
            "average) say anything about a turn: every turn of a lucky run is reinforced, unsafe "
            "and wrong ones too"
        ),
        advice=(
            "record `reward(..., scope='turn')` where the environment can tell, or shape turns in "
            'the recipe; or take algorithm.advantage = "bilevel_gae", whose critic tells turns apart'
        ),
    )


def check_zero_variance(runs: Sequence[Run]) -> GuardFinding | None:
    """Tasks tried more than once of which none has attempts with different rewards."""
    rewards_of: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.trajectory.reward is not None:
            rewards_of[run.task].append(run.trajectory.reward)
    repeated = [rewards for rewards in rewards_of.values() if len(rewards) > 1]
    if not repeated or any(min(rewards) < max(rewards) for rewards in repeated):
        return None
    everything = [reward for rewards in rewards_of.values() for reward in rewards]
    is_constant = min(everything) == max(everything)
    return GuardFinding(
        name="zero_variance",
        severity="refuse" if is_constant else "warn",
        numbers={
            "num_groups": len(repeated),
            "num_trajectories": len(everything),
            "reward_low": min(everything),
            "reward_high": max(everything),
        },
        explanation=(
            f"all {len(repeated)} tasks with several attempts have equal rewards within the task, "
            "so no attempt is better than another"
            + (f"; every reward is {everything[0]:g}" if is_constant else "")
        ),
        advice=(
            "record tasks that the policy solves sometimes, or a reward that tells attempts apart"
            + ("" if is_constant else "; a learned baseline or filtered_bc can compare tasks")
        ),
    )


def check_open_ended_surface(runs: Sequence[Run]) -> GuardFinding | None:
    """Outcomes of many values that only judges or users give, and on which attempts disagree."""
    outcomes = [
        (run, reward) for run in runs for reward in run.rewards if reward.scope == "trajectory"
    ]
    if not outcomes or any(r.source in ("environment", "rule", None) for _, r in outcomes):
        return None
    values = [reward.value for _, reward in outcomes]
    num_values, span = len(set(values)), max(values) - min(values)
    if num_values < MANY_VALUES:
        return None
    disagreement = _measure_disagreement(outcomes, span)
    if disagreement is not None and disagreement < HIGH_DISAGREEMENT:
        return None
    measured = (
        f"attempts at one task deviate by {disagreement:.0%} of the whole range"
        if disagreement is not None
        else "no task has two outcomes, so whether they agree cannot be seen"
    )
    return GuardFinding(
        name="open_ended_surface",
        severity="hold_back",
        numbers={
            "num_outcomes": len(outcomes),
            "num_distinct_values": num_values,
            "disagreement_within_tasks": None if disagreement is None else round(disagreement, 4),
        },
        explanation=(
            f"{len(outcomes)} outcomes of {num_values} different values come from judges and users "
            f"alone, and {measured}: trajectory training is least reliable on such a signal"
        ),
        advice=(
            "hold the checkpoint back from this surface; train first where an environment or a "
            "rule says what succeeded, or add such a check beside the judge"
        ),
    )


def _measure_disagreement(outcomes: Sequence[tuple[Run, Reward]], span: float) -> float | None:
    """Pooled deviation (ddof 1) of outcomes within task and name, over their range; None: no pair."""
    values_of: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run, reward in outcomes:
        values_of[run.task, reward.name].append(reward.value)
    repeated = [np.array(values) for values in values_of.values() if len(values) > 1]
    if not repeated:
        return None
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in repeated)
    return (squares / sum(len(values) - 1 for values in repeated)) ** 0.5 / span
