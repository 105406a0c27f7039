"""Trajectories + rewards -> what each turn, and each step that was judged, earned or lost.

Suffixes: N trajectories, K turns of one trajectory.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Final, Literal

import torch

from starpo_train.credit.bilevel_gae import compute_turn_advantages
from starpo_train.credit.critic import compute_turn_returns
from starpo_train.dataset import Trajectory

Estimator = Literal["returns", "rloo", "grpo", "dr_grpo", "bilevel_gae"]
Singleton = Literal["drop", "global_baseline"]
ESTIMATORS: tuple[Estimator, ...] = ("returns", "rloo", "grpo", "dr_grpo", "bilevel_gae")
SINGLETONS: tuple[Singleton, ...] = ("drop", "global_baseline")
STD_EPSILON: Final = 1e-6
"""Added to a group's deviation, as verl does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRule:
    """How credit is computed."""

    estimator: Estimator = "returns"
    gamma: float = 1.0
    """Discount from turn to turn."""
    lam: float = 1.0
    """Of bi-level GAE."""
    process_weight: float = 1.0
    """Weight of the turns' own rewards beside the outcome at the last turn."""
    singleton: Singleton = "drop"
    """A task with one attempt: no credit, or against the mean over all other trajectories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCredit:
    """What one turn of a trajectory was worth."""

    turn: int
    reward: float
    """Its own rewards, weighted, and at the last turn the outcome."""
    return_to_go: float
    """Rewards from this turn on, discounted."""
    baseline: float | None
    """What was expected; None: there is nothing to compare with."""
    advantage: float | None
    """What the turn earned (above 0) or lost; None without a baseline."""


def assign_turn_credit(
    trajectories: Sequence[Trajectory],
    rule: CreditRule,
    *,
    values: Mapping[tuple[str, int], float] | None = None,
) -> dict[str, list[TurnCredit]]:
    """Trajectory id -> credit of its turns, of every trajectory with a reward and a turn.

    returns: A_k = G_k - b, G_k the return from turn k on and b the mean whole return of the other
    attempts at the task, the same for every turn: a mean by turn index would pay for stopping.
    Without process rewards and discount it is RLOO at every turn. rloo, grpo, dr_grpo: the
    outcome against the attempts at the task, at every turn. bilevel_gae: GAE over turns with
    `values`, by trajectory id and turn; turns without a value are left out of it.

    Two attempts of rewards (0, 0, 1) and (0): b is 0 and 1, so credit is (1, 1, 1) and (-1).

    Raises:
        ValueError: bi-level GAE without values.
    """
    known = [t for t in trajectories if t.reward is not None and t.turns]
    if rule.estimator == "bilevel_gae":
        if values is None:
            raise ValueError("bilevel_gae needs the critic's values; give `values`.")
        return {t.trajectory_id: _estimate_gae(t, rule, values) for t in known}
    spread = {t.trajectory_id: _spread_returns(t, rule) for t in known}
    totals_N = [t.reward or 0.0 for t in known]
    if rule.estimator == "returns":
        totals_N = [spread[t.trajectory_id][0].return_to_go for t in known]
    tasks_N = [t.task_id for t in known]
    if rule.estimator in ("grpo", "dr_grpo"):
        compared_N = compare_with_group(totals_N, tasks_N, rule.singleton)
    else:
        means_N = compute_other_means(totals_N, tasks_N, rule.singleton)
        compared_N = [(mean, 1.0) for mean in means_N]
    credits_of: dict[str, list[TurnCredit]] = {}
    for t, total, (baseline, deviation) in zip(known, totals_N, compared_N, strict=True):
        scale = deviation + STD_EPSILON if rule.estimator == "grpo" else 1.0
        credits_of[t.trajectory_id] = [
            _compare(
                each, each.return_to_go if rule.estimator == "returns" else total, baseline, scale
            )
            for each in spread[t.trajectory_id]
        ]
    return credits_of


def compute_other_means(
    values_N: Sequence[float], groups_N: Sequence[str | None], singleton: Singleton
) -> list[float | None]:
    """Mean over the others of each one's group; a lone one by `singleton`. A group of None is lone.

    Values (1, 0, 0, 5) in groups (a, a, a, b) give (0, .5, .5, None), or 1/3 instead of None.
    """
    means: list[float | None] = [None] * len(values_N)
    overall = sum(values_N)
    for found in _gather_groups(groups_N):
        total = sum(values_N[i] for i in found)
        is_equal = len({values_N[i] for i in found}) == 1
        for i in found:
            if len(found) > 1:  # equal values are their own mean, not one that rounding moved
                others = (total - values_N[i]) / (len(found) - 1)
                means[i] = values_N[i] if is_equal else others
            elif singleton == "global_baseline" and len(values_N) > 1:
                means[i] = (overall - values_N[i]) / (len(values_N) - 1)
    return means


def compare_with_group(
    values_N: Sequence[float], groups_N: Sequence[str | None], singleton: Singleton
) -> list[tuple[float | None, float]]:
    """Mean and deviation (ddof 1) of each one's group, its own value included.

    Values (1, 0, 0) give (1/3, .5774); a lone one (None, 0), or what all values give. Equal values
    are their own mean, so that nothing is left but 0.
    """
    compared: list[tuple[float | None, float]] = [(None, 0.0)] * len(values_N)
    for found in _gather_groups(groups_N):
        values = [values_N[i] for i in found]
        if len(found) == 1 and singleton == "global_baseline":
            values = list(values_N)
        if len(values) == 1:
            continue
        is_equal = min(values) == max(values)
        mean = values[0] if is_equal else fmean(values)
        for i in found:
            compared[i] = (mean, 0.0 if is_equal else stdev(values))
    return compared


def list_turn_rewards(
    trajectory: Trajectory, turns: Sequence[int], rule: CreditRule
) -> list[float]:
    """Weighted process rewards of some turns, the outcome at the last of them."""
    own = {turn.turn: turn.reward or 0.0 for turn in trajectory.turns}
    rewards = [rule.process_weight * own[turn] for turn in turns]
    rewards[-1] += trajectory.reward or 0.0
    return rewards


def _spread_returns(trajectory: Trajectory, rule: CreditRule) -> list[TurnCredit]:
    turns = [turn.turn for turn in trajectory.turns]
    rewards = list_turn_rewards(trajectory, turns, rule)
    returns = compute_turn_returns(rewards, gamma_turn=rule.gamma)
    return [
        TurnCredit(turn=turn, reward=reward, return_to_go=value, baseline=None, advantage=None)
        for turn, reward, value in zip(turns, rewards, returns, strict=True)
    ]


def _compare(credit: TurnCredit, value: float, baseline: float | None, scale: float) -> TurnCredit:
    advantage = None if baseline is None else (value - baseline) / scale
    return replace(credit, baseline=baseline, advantage=advantage)


def _gather_groups(groups_N: Sequence[str | None]) -> list[list[int]]:
    """Places of each group's members; a group of None is lone."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups_N):
        members[f"lone:{i}" if group is None else f"group:{group}"].append(i)
    return list(members.values())


def _estimate_gae(
    trajectory: Trajectory, rule: CreditRule, values: Mapping[tuple[str, int], float]
) -> list[TurnCredit]:
    key = trajectory.trajectory_id
    turns = [turn.turn for turn in trajectory.turns if (key, turn.turn) in values]
    if not turns:
        return []
    rewards = list_turn_rewards(trajectory, turns, rule)
    returns = compute_turn_returns(rewards, gamma_turn=rule.gamma)
    values_K = torch.tensor([values[key, turn] for turn in turns], dtype=torch.float64)
    advantages_K = compute_turn_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        values_K,
        gamma_turn=rule.gamma,
        lam=rule.lam,
        # the last state the critic has seen stands for the one at the cut
        bootstrap_value=float(values_K[-1]) if trajectory.end == "truncated" else 0.0,
    )
    return [
        TurnCredit(
            turn=turn, reward=reward, return_to_go=value, baseline=float(v), advantage=float(a)
        )
        for turn, reward, value, v, a in zip(
            turns, rewards, returns, values_K, advantages_K, strict=True
        )
    ]
