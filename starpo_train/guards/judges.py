"""Rewards of judges -> is the judge pinned, and does it judge today as it did yesterday?"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np

from starpo_train.guards.finding import GuardFinding
from starpo_train.guards.reading import Reward, Run
from starpo_train.guards.trend import estimate_trend

DRIFT_P: Final = 0.01
DRIFT_CHANGE: Final = 0.1
"""Change of the mean, relative to the range of a judge's values, that is worth a word."""
DRIFT_TASKS: Final = 10
"""Tasks in which a judge's values have to be comparable over time."""
_DIGEST: Final = re.compile(r"sha256:|@[0-9a-f]{7,}\b|\b[0-9a-f]{12,}\b")
_SNAPSHOT: Final = re.compile(r"[-_.@](?:v?\d{3,}(?![bBkKmM\d])|20\d{2}[-_.]?\d{2}[-_.]?\d{2}).*$")
"""A date or a number of three digits that is no number of parameters: gpt-4o-2024-08-06, -0613, -002."""


def check_judge_not_pinned(runs: Sequence[Run]) -> GuardFinding | None:
    """Rewards of judges without id or prompt hash, or whose id names no snapshot of a model."""
    rewards = [reward for _, reward in _list_judged(runs)]
    without_id = sum(reward.judge_id is None for reward in rewards)
    without_hash = sum(reward.judge_prompt_hash is None for reward in rewards)
    ids = sorted({reward.judge_id for reward in rewards if reward.judge_id is not None})
    floating = [judge_id for judge_id in ids if not names_snapshot(judge_id)]
    if not (without_id or without_hash or floating):
        return None
    faults = [
        f"{without_id} of {len(rewards)} rewards of judges name no judge" if without_id else "",
        f"{without_hash} have no hash of its prompt" if without_hash else "",
        f"{', '.join(floating[:5])} may be another model tomorrow" if floating else "",
    ]
    return GuardFinding(
        name="judge_not_pinned",
        severity="warn",
        numbers={
            "num_rewards": len(rewards),
            "num_without_judge_id": without_id,
            "num_without_prompt_hash": without_hash,
            "floating_ids": floating[:5],
        },
        explanation="; ".join(fault for fault in faults if fault)
        + ": a vendor's update would change the reward in the middle of training",
        advice=(
            "give `reward(judge_id=, judge_prompt_hash=)`, the id with the snapshot's date or digest "
            "(gpt-4o-2024-08-06), and judge again what was judged by anything else"
        ),
    )


def check_judge_drifting(runs: Sequence[Run]) -> GuardFinding | None:
    """One judge with several prompts or snapshots, or whose mean moves for the same tasks."""
    judged = _list_judged(runs)
    versions: dict[tuple[str, str], set[tuple[str | None, str | None]]] = defaultdict(set)
    for _, reward in judged:
        if reward.judge_id is not None:
            family = _SNAPSHOT.sub("", reward.judge_id)
            versions[reward.name, family].add((reward.judge_id, reward.judge_prompt_hash))
    several = {
        f"{name} by {family}": len(found)
        for (name, family), found in sorted(versions.items())
        if len(found) > 1
    }
    moved = _find_moved(judged)
    if not several and not moved:
        return None
    faults = [f"{what}: {count} snapshots or prompts" for what, count in several.items()]
    faults += [
        f"{name} moves by {change:+.3g} over the data (p {p_value:.1g}, {num} tasks)"
        for name, change, p_value, num in moved
    ]
    return GuardFinding(
        name="judge_drifting",
        severity="warn",
        numbers={
            "num_versions": several,
            "moved": {name: round(change, 4) for name, change, _, _ in moved},
            "p_values": {name: p_value for name, _, p_value, _ in moved},
        },
        explanation=(
            "; ".join(faults) + ": the same run would be worth something else on another day"
        ),
        advice=(
            "judge everything again with one pinned snapshot and one prompt, or keep only the "
            "rewards of one in the recipe"
        ),
    )


def names_snapshot(judge_id: str) -> bool:
    """Whether a judge's id can mean one model only: it has a date, a digest or a revision.

    >>> names_snapshot("gpt-4o-2024-08-06"), names_snapshot("gpt-4o"), names_snapshot("x-latest")
    (True, False, False)
    """
    if "latest" in judge_id.lower():
        return False
    return bool(_DIGEST.search(judge_id) or _SNAPSHOT.search(judge_id))


def _list_judged(runs: Sequence[Run]) -> list[tuple[Run, Reward]]:
    return [(run, reward) for run in runs for reward in run.rewards if reward.source == "judge"]


def _find_moved(judged: Sequence[tuple[Run, Reward]]) -> list[tuple[str, float, float, int]]:
    """(reward, change over the data, p, tasks) of rewards whose mean moves.

    Compared within a policy and a task, so that neither a better policy nor other tasks look like
    another judge.
    """
    values_of: dict[str, list[tuple[Run, Reward]]] = defaultdict(list)
    for run, reward in judged:
        if reward.time_ns is not None:
            values_of[reward.name].append((run, reward))
    moved = []
    for name, found in sorted(values_of.items()):
        values_N = np.array([reward.value for _, reward in found])
        span = float(np.ptp(values_N))
        first_ns = min(reward.time_ns or 0 for _, reward in found)
        trend = estimate_trend(
            values_N,
            [((reward.time_ns or 0) - first_ns) / 1e9 for _, reward in found],
            [(run.task, run.trajectory.policy_id, reward.step) for run, reward in found],
            [run.task for run, _ in found],
        )
        if trend is None or trend.num_clusters < DRIFT_TASKS or trend.p_value >= DRIFT_P:
            continue
        if abs(trend.change) >= DRIFT_CHANGE * span:
            moved.append((name, trend.change, trend.p_value, trend.num_clusters))
    return moved
