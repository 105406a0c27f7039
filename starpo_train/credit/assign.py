"""Rewards + rows -> an advantage on each trained token, by the run's estimator.

Suffixes: N trajectories, G groups, R rows, K turns (in row order), A trained tokens of a row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starpo_train.config import AlgorithmSection, RunConfig
from starpo_train.credit.advantages import (
    COMPARED_BY_TASK,
    WHITENED_BY_TOKEN,
    compute_token_advantages,
    compute_trajectory_advantages,
    compute_turn_gae,
    list_tasks,
    pick_first_values,
    read_rewards,
)
from starpo_train.credit.filters import (
    compute_soft_weights,
    select_snr_groups,
    select_top_groups,
)
from starpo_train.credit.groups import Groups, build_groups
from starpo_train.credit.turns import (
    TokenizedTrajectories,
    TurnLayout,
    keep_trajectories,
    lay_out_turns,
    split_by_row,
)
from starpo_train.credit.values import Target, fit_critic
from starpo_train.policy import Policy

__all__ = [
    "Credit",
    "TokenizedTrajectories",
    "assign_credit",
    "assign_turn_advantages",
    "compute_trajectory_advantages",
    "fit_first_values",
    "keep_trajectories",
    "needs_groups",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What is left to train on, and with which advantages."""

    tokenized: TokenizedTrajectories
    """Without trajectories that have nothing to teach."""
    advantages_R: list[np.ndarray]
    """float32 [A] per row."""
    critic_values_K: Tensor | None
    """Value of every turn start before anything was left out; None without a critic."""
    facts: dict[str, Any]
    """Counts for the first metrics record."""


def needs_groups(section: AlgorithmSection) -> bool:
    """Whether advantages compare attempts at the same task and nothing else."""
    return section.advantage in COMPARED_BY_TASK and section.singleton == "drop"


def assign_credit(
    tokenized: TokenizedTrajectories,
    config: RunConfig,
    policy: Policy,
    *,
    critic_values_K: Tensor | None = None,
) -> Credit:
    """Filter the groups, then advantages; `critic_values_K` of an earlier call spares the fit."""
    algorithm = config.algorithm
    groups = build_groups(read_rewards(tokenized), list_tasks(tokenized))
    facts: dict[str, Any] = {
        "num_groups": len(groups.std_G),
        "groups_zero_variance": int(((groups.std_G == 0) & (groups.size_G > 1)).sum()),
        "groups_singleton": int((groups.size_G == 1).sum()),
    }
    layout = lay_out_turns(tokenized)
    target = _find_critic_target(algorithm, groups)
    if target is not None and critic_values_K is None:
        critic_values_K, found = _ask_critic(tokenized, layout, config, policy, target=target)
        facts |= found
    weights_G = _weigh_groups(groups.std_G, algorithm)
    facts["num_groups_kept"] = int((weights_G > 0).sum())
    weights_N = weights_G[groups.group_of_N]
    kept, _ = keep_trajectories(tokenized, [], (weights_N > 0).tolist())
    values_K = None if target is None else critic_values_K
    if values_K is not None:
        values_K = values_K[weights_N[layout.trajectory_of_K] > 0]
    layout = lay_out_turns(kept)
    advantages_A = compute_token_advantages(kept, layout, config, values_K=values_K)
    if algorithm.advantage in WHITENED_BY_TOKEN and len(advantages_A) == 1:
        facts["whitening"] = "skipped: there is one token"
    weights_K = weights_N[weights_N > 0][layout.trajectory_of_K]
    advantages_A = advantages_A * weights_K.repeat_interleave(layout.num_tokens_K)
    advantages_R = split_by_row(advantages_A.float(), layout.num_actions_R)
    if algorithm.advantage in COMPARED_BY_TASK:  # an advantage of 0 has no gradient
        taught_N = [any(advantages_R[r].any() for r in rows) for rows in kept.rows_of_N]
        kept, advantages_R = keep_trajectories(kept, advantages_R, taught_N)
    return Credit(
        tokenized=kept, advantages_R=advantages_R, critic_values_K=critic_values_K, facts=facts
    )


def assign_turn_advantages(
    tokenized: TokenizedTrajectories,
    config: RunConfig,
    policy: Policy,
    *,
    critic_values_K: Tensor | None = None,
) -> tuple[list[np.ndarray], Tensor, dict[str, Any]]:
    """Bi-level GAE's advantages before whitening, float64 [A] per row; the critic's values; facts."""
    layout = lay_out_turns(tokenized)
    facts: dict[str, Any] = {}
    if critic_values_K is None:
        critic_values_K, facts = _ask_critic(tokenized, layout, config, policy, target="turns")
    advantages_K = compute_turn_gae(tokenized, layout, config, critic_values_K)
    advantages_A = advantages_K.repeat_interleave(layout.num_tokens_K)
    return split_by_row(advantages_A, layout.num_actions_R), critic_values_K, facts


def fit_first_values(
    tokenized: TokenizedTrajectories,
    config: RunConfig,
    policy: Policy,
    *,
    critic_values_K: Tensor | None = None,
) -> tuple[np.ndarray, Tensor, dict[str, Any]]:
    """The outcome that a critic expects at each first turn, float64 [N]; all its values; facts."""
    layout = lay_out_turns(tokenized)
    facts: dict[str, Any] = {}
    if critic_values_K is None:
        critic_values_K, facts = _ask_critic(tokenized, layout, config, policy, target="outcome")
    return pick_first_values(layout, critic_values_K).numpy(), critic_values_K, facts


def _ask_critic(
    tokenized: TokenizedTrajectories,
    layout: TurnLayout,
    config: RunConfig,
    policy: Policy,
    *,
    target: Target,
) -> tuple[Tensor, dict[str, Any]]:
    values = fit_critic(tokenized, layout, config, policy, target=target)
    return values.values_K, {"critic_explained_variance": values.explained_variance}


def _find_critic_target(section: AlgorithmSection, groups: Groups) -> Target | None:
    """What the critic predicts; None: nothing asks for one."""
    if section.advantage == "bilevel_gae":
        return "turns"
    if section.advantage == "gae":
        return "tokens"
    is_asked = section.advantage in COMPARED_BY_TASK and section.singleton == "learned_value"
    return "outcome" if is_asked and bool((groups.size_G == 1).any()) else None


def _weigh_groups(std_G: Tensor, section: AlgorithmSection) -> Tensor:
    """Factor of each group's advantages; 0: it is left out."""
    weights_G = compute_soft_weights(std_G) if section.soft_filter else torch.ones_like(std_G)
    if section.group_filter == "starpo_s":
        weights_G = weights_G * select_top_groups(std_G, keep=section.keep_groups)
    elif section.group_filter == "snr":
        weights_G = weights_G * select_snr_groups(std_G, top_p=section.snr_top_p)
    return weights_G
