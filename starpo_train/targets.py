"""Tokenized trajectories + an objective -> what its loss is told of them.

Suffixes: N trajectories, R rows, K turns (in row order), A trained tokens of a row, P pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from starpo_train.config import AlgorithmSection, RunConfig
from starpo_train.credit.advantages import list_tasks, read_rewards
from starpo_train.credit.assign import (
    TokenizedTrajectories,
    assign_credit,
    assign_turn_advantages,
    fit_first_values,
    keep_trajectories,
)
from starpo_train.credit.dr_grpo import compute_dr_grpo_advantages
from starpo_train.credit.groups import number_groups
from starpo_train.dataset import Trajectory
from starpo_train.errors import DataError
from starpo_train.losses.awr import compute_awr_weights
from starpo_train.losses.overlong import compute_overlong_penalty
from starpo_train.objective import WITH_BASELINE, Objective
from starpo_train.policy import Policy
from starpo_train.preference import make_pairs, mismatch_rows
from starpo_train.scoring import score_rows
from starpo_train.tokens import TokenSequence

CRITIC: Final = "critic.values_K"
REFERENCE: Final = "reference.logprobs_A"
MISMATCHED: Final = "reference.mismatched_A"


@dataclass(slots=True, kw_only=True)
class Targets:
    """What is left to train on, and what its loss is told; fields as in `TrainingData`."""

    tokenized: TokenizedTrajectories
    advantages_R: list[np.ndarray] = field(default_factory=list)
    outcomes_N: np.ndarray = field(default_factory=lambda: np.empty(0))
    desirable_N: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    pairs_P2: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    reference_R: list[np.ndarray] = field(default_factory=list)
    mismatched: list[TokenSequence] = field(default_factory=list)
    mismatched_reference_R: list[np.ndarray] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def assign_targets(
    tokenized: TokenizedTrajectories,
    objective: Objective,
    config: RunConfig,
    policy: Policy,
    *,
    threshold: float,
    kept: Mapping[str, Tensor],
) -> Targets:
    """Credit, baselines, pairs and the reference's scores, as far as the objective takes them.

    A trajectory is good from `threshold` on; `kept` holds what an earlier life of the run asked of the
    model that it began with.

    Raises:
        DataError: no pair is left.
    """
    targets = Targets(tokenized=tokenized)
    if not tokenized.rows:
        return targets
    if config.algorithm.overlong_length:
        _punish_length(targets, config.algorithm)
    if objective.algorithm == "starpo":
        _assign_advantages(targets, config, policy, kept)
    elif objective.algorithm == "dpo":
        _assign_pairs(targets, config.algorithm)
    elif objective.algorithm == "awac":
        _assign_turn_weights(targets, config, policy, kept)
    targets.outcomes_N = _compare_rewards(targets, objective, config, policy, kept)
    targets.desirable_N = read_rewards(targets.tokenized).numpy() >= threshold
    _require_differences(targets, objective)
    if objective.algorithm == "awr":
        _assign_weights(targets, config.algorithm)
    if objective.algorithm == "kto":
        _assign_mismatched(targets)
    if objective.needs_reference:
        _ask_reference(targets, config, policy, kept)
    return targets


def find_threshold(section: AlgorithmSection, trajectories: Sequence[Trajectory]) -> float:
    """Reward from which on a trajectory is good: as set, else the middle of the range."""
    if section.reward_threshold is not None:
        return section.reward_threshold
    rewards = [t.reward for t in trajectories if t.reward is not None]
    return (min(rewards) + max(rewards)) / 2 if rewards else 0.0


def number_tasks(tokenized: TokenizedTrajectories) -> np.ndarray:
    """int64 [N]; a trajectory that names no task is a task of its own."""
    return number_groups(list_tasks(tokenized)).numpy()


def compare_with_task(tokenized: TokenizedTrajectories) -> np.ndarray:
    """Each reward less the mean of its task's; of a lone attempt, less the mean of all.

    Rewards (1, 0) of one task and 1 of another: (.5, -.5, .3333).
    """
    return compute_dr_grpo_advantages(
        read_rewards(tokenized), list_tasks(tokenized), singleton="global_baseline"
    ).numpy()


def map_to_range(rewards_N: np.ndarray) -> np.ndarray:
    """Rewards -> -1..1, the lowest and the highest seen; 0 where all are equal."""
    low, high = rewards_N.min(), rewards_N.max()
    if low == high:
        return np.zeros_like(rewards_N)
    return 2 * (rewards_N - low) / (high - low) - 1


def _require_differences(targets: Targets, objective: Objective) -> None:
    """Refuse what would clone all alike, or push nothing anywhere."""
    if objective.algorithm in WITH_BASELINE and not targets.outcomes_N.any():
        raise DataError(
            f"algorithm.name = {objective.algorithm!r}: no reward differs from what it is compared "
            "with (the mean of its task's attempts); compare all trajectories with "
            "algorithm.baseline = 'none', or take filtered_bc."
        )
    if objective.algorithm == "kto" and len(set(targets.desirable_N.tolist())) == 1:
        kind = "good" if targets.desirable_N.all() else "bad"
        raise DataError(
            f"algorithm.name = 'kto': every trajectory is {kind}; set algorithm.reward_threshold "
            "between the rewards."
        )


def _punish_length(targets: Targets, section: AlgorithmSection) -> None:
    """Take from the reward of trajectories that sampled too much."""
    tokenized = targets.tokenized
    lengths = [sum(tokenized.rows[r].num_actions for r in rows) for rows in tokenized.rows_of_N]
    penalties = compute_overlong_penalty(
        torch.tensor(lengths), max_length=section.overlong_length, buffer=section.overlong_buffer
    ).tolist()
    tokenized.trajectories = [
        replace(t, reward=None if t.reward is None else t.reward + penalty)
        for t, penalty in zip(tokenized.trajectories, penalties, strict=True)
    ]
    targets.facts["num_overlong"] = sum(penalty < 0 for penalty in penalties)


def _assign_advantages(
    targets: Targets, config: RunConfig, policy: Policy, kept: Mapping[str, Tensor]
) -> None:
    credit = assign_credit(targets.tokenized, config, policy, critic_values_K=kept.get(CRITIC))
    targets.tokenized, targets.advantages_R = credit.tokenized, credit.advantages_R
    targets.facts |= credit.facts
    if credit.critic_values_K is not None:
        targets.kept[CRITIC] = credit.critic_values_K


def _assign_pairs(targets: Targets, section: AlgorithmSection) -> None:
    """Trajectories that are in no pair have nothing to be compared with."""
    tokenized = targets.tokenized
    rewards_N, task_of_N = read_rewards(tokenized).numpy(), number_tasks(tokenized)
    pairs_P2 = make_pairs(rewards_N, task_of_N, per_task=section.pairs_per_task)
    if not len(pairs_P2):
        raise DataError(
            f"algorithm.name = 'dpo': none of {len(set(task_of_N.tolist()))} tasks has two attempts "
            "with different rewards left; take kto, or awr."
        )
    paired = np.unique(pairs_P2)
    is_paired_N = np.isin(np.arange(len(rewards_N)), paired)
    targets.tokenized, _ = keep_trajectories(tokenized, [], is_paired_N.tolist())
    targets.pairs_P2 = np.searchsorted(paired, pairs_P2)
    targets.facts |= {"num_pairs": len(pairs_P2), "num_unpaired": int((~is_paired_N).sum())}


def _assign_turn_weights(
    targets: Targets, config: RunConfig, policy: Policy, kept: Mapping[str, Tensor]
) -> None:
    """AWAC: a weight for each turn, from the critic's advantages."""
    advantages_R, values_K, facts = assign_turn_advantages(
        targets.tokenized, config, policy, critic_values_K=kept.get(CRITIC)
    )
    targets.kept[CRITIC] = values_K
    targets.facts |= facts
    weights_R = _weigh(np.concatenate(advantages_R), config.algorithm, targets.facts)
    ends = np.cumsum([len(part) for part in advantages_R])
    targets.advantages_R = np.split(weights_R, ends[:-1])


def _assign_weights(targets: Targets, section: AlgorithmSection) -> None:
    """AWR: a weight for each trajectory, on all of its tokens."""
    weights_N = _weigh(targets.outcomes_N, section, targets.facts)
    targets.advantages_R = [
        np.full(targets.tokenized.rows[r].num_actions, weights_N[n], dtype=np.float32)
        for n, rows in enumerate(targets.tokenized.rows_of_N)
        for r in rows
    ]


def _weigh(advantages: np.ndarray, section: AlgorithmSection, facts: dict[str, Any]) -> np.ndarray:
    beta = section.beta
    if beta is None:
        beta = float(advantages.std()) or 1.0
    weights = compute_awr_weights(
        torch.from_numpy(advantages), beta=beta, weight_max=section.weight_max
    ).numpy()
    facts |= {
        "beta": beta,
        "weight_mean": float(weights.mean()),
        "weight_held": float((weights >= section.weight_max).mean()),
    }
    return weights.astype(np.float32)


def _compare_rewards(
    targets: Targets,
    objective: Objective,
    config: RunConfig,
    policy: Policy,
    kept: Mapping[str, Tensor],
) -> np.ndarray:
    rewards_N = read_rewards(targets.tokenized).numpy()
    baseline = config.algorithm.baseline
    if baseline == "auto":
        baseline = "none" if objective.algorithm.startswith("topr") else "task_mean"
    if baseline == "none":
        return map_to_range(rewards_N)
    if baseline == "task_mean" or objective.algorithm not in WITH_BASELINE:
        return compare_with_task(targets.tokenized)
    values_N, values_K, facts = fit_first_values(
        targets.tokenized, config, policy, critic_values_K=kept.get(CRITIC)
    )
    targets.kept[CRITIC] = values_K
    targets.facts |= facts
    return rewards_N - values_N


def _assign_mismatched(targets: Targets) -> None:
    tokenized = targets.tokenized
    rows = mismatch_rows(
        tokenized.rows,
        tokenized.rows_of_N,
        number_tasks(tokenized),
        longest=max(row.num_tokens for row in tokenized.rows),
    )
    targets.mismatched = rows or []
    targets.facts["kto_baseline"] = "other prompts" if rows else "0: all are of one task"


def _ask_reference(
    targets: Targets, config: RunConfig, policy: Policy, kept: Mapping[str, Tensor]
) -> None:
    """Score all with the model that the run began with, or take what it said then."""

    def ask(
        key: str, rows: list[TokenSequence], name_row: Callable[[int], str]
    ) -> list[np.ndarray]:
        flat_A = kept.get(key)
        if flat_A is None:
            scores = score_rows(
                policy,
                rows,
                tokens_per_pack=config.train.tokens_per_pack,
                name_row=name_row,
            )
            flat_A = torch.from_numpy(np.concatenate(scores.logprobs_R))
        targets.kept[key] = flat_A
        return list(np.split(flat_A.numpy(), np.cumsum([row.num_actions for row in rows])[:-1]))

    tokenized = targets.tokenized
    targets.reference_R = ask(REFERENCE, tokenized.rows, tokenized.name_row)
    if targets.mismatched:  # one for each trajectory
        targets.mismatched_reference_R = ask(
            MISMATCHED, targets.mismatched, lambda n: tokenized.trajectories[n].trajectory_id
        )
